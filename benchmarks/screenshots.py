"""Takes the pictures of the dashboard for the documentation: a server under a load that changes, in a real browser.

    python benchmarks/screenshots.py [--seconds 120] [--into docs]

Needs chromium. The server and the load are this machine's, so the figures in the pictures are not a benchmark.
"""

import argparse
import os
import random
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from objmapper_cli.commands.bench.own_server import own_server
from objmapper_server.load import LoadPlan, LoadProtocol, run_load

TOKEN = "only for these pictures"
SIZES = {"small": 4096, "page": 65536, "big": 2_000_000}


def main() -> int:
    """Serve, load, switch a model on the way, take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--into", type=Path, default=Path(__file__).parent.parent / "docs")
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("chromium is not installed (Debian: chromium)", file=sys.stderr)
        return 1
    flags = ("--admin", "127.0.0.1:0", "--concurrency-model", "tcp=thread-pool", "--max-queue-depth", "20")
    with environment(), own_server(SIZES, *flags) as server, sync_playwright() as playwright:
        admin = server.addresses["http"]
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1790}, color_scheme="light")
        page.goto(admin)
        with loaded(server.addresses["unix"], server.addresses["tcp"]):
            page.wait_for_timeout(given.seconds * 0.6 * 1000)
            change = {"tcp": "epoll"}
            answer = httpx.post(f"{admin}/concurrency", json=change, headers={"Authorization": f"Bearer {TOKEN}"})
            answer.raise_for_status()
            page.wait_for_timeout(given.seconds * 0.4 * 1000)
            page.screenshot(path=given.into / "dashboard.png")
            page.emulate_media(color_scheme="dark")
            page.wait_for_timeout(1500)
            page.screenshot(path=given.into / "dashboard-dark.png")
            page.emulate_media(color_scheme="light")
            page.set_viewport_size({"width": 400, "height": 1500})
            page.wait_for_timeout(4500)
            page.screenshot(path=given.into / "dashboard-phone.png")
        browser.close()
    return 0


@contextmanager
def environment() -> Iterator[None]:
    """Gives the server that is started below the token."""
    os.environ["OBJMAPPER_ADMIN_TOKEN"] = TOKEN
    try:
        yield
    finally:
        del os.environ["OBJMAPPER_ADMIN_TOKEN"]


@contextmanager
def loaded(unix: str, tcp: str) -> Iterator[None]:
    """Several loads at once, each at a rate that changes every few seconds."""
    ended = threading.Event()

    def go(address: str, dialect: LoadProtocol, uris: tuple[str, ...], rate: float, clients: int) -> None:
        random_ = random.Random(clients)
        while not ended.is_set():
            part, duration = random_.uniform(0.6, 1.3), random_.uniform(3, 8)
            plan = LoadPlan(
                address=address, dialect=dialect, uris=uris, clients=clients, rate=rate * part, duration=duration
            )
            run_load(plan)

    loads: tuple[tuple[str, LoadProtocol, tuple[str, ...], float, int], ...] = (
        (unix, "fdpass", ("/small", "/page", "/big"), 9000, 8),
        (tcp, "copy", ("/small", "/page", "/small", "/none"), 5000, 24),
        (tcp, "splice", ("/big",), 40, 3),
    )
    threads = [threading.Thread(target=go, args=load) for load in loads]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    sys.exit(main())
