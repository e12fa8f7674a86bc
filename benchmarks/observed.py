"""What it costs to be looked at: throughput with nobody looking, with what watches polled, and with the dashboard open.

    python benchmarks/observed.py [--rounds 7] [--seconds 4] [--transport unix]

The three take turns within each round; shown are medians, and their ratio to that of nobody looking. "polled" asks for
/stats, /latency and /metrics each second, as the dashboard and a scraper together do, with a client that costs little;
"browser" is that and a real Chromium that draws the dashboard on the same machine, where it takes what the server and
the load would have had.
"""

import argparse
import http.client
import shutil
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from objmapper_cli.bench.own_server import own_server
from objmapper_server.load import LoadPlan, run_load

#: Milliseconds.
SETTLING = 5000


def main() -> int:
    """Serve, then load under each way of looking in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--transport", choices=("unix", "tcp"), default="unix")
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    with own_server({"small": 4096}, "--admin", "127.0.0.1:0") as server:
        admin = server.addresses["http"]
        plan = LoadPlan(
            address=server.addresses[given.transport],
            dialect="fdpass" if given.transport == "unix" else "copy",
            uris=("/small",),
            clients=16,
            duration=given.seconds,
        )
        looks: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "nobody": nullcontext,
            "polled": lambda: polled(admin, ("/stats", "/latency", "/metrics")),
        }
        if chromium is not None:
            looks["browser"] = lambda: shown(chromium, admin)
        measured: dict[str, list[float]] = {name: [] for name in looks}
        for _ in range(given.rounds):
            for name, look in looks.items():
                with look():
                    measured[name].append(run_load(plan).requests_per_sec)
    base = statistics.median(measured["nobody"])
    for name, rates in measured.items():
        middle = statistics.median(rates)
        print(f"{name:8} {middle:10,.0f} requests/s  {middle / base:.3f}  ({min(rates):,.0f} to {max(rates):,.0f})")
    return 0


@contextmanager
def polled(admin: str, paths: tuple[str, ...]) -> Iterator[None]:
    """Asks for each path, and again a second later."""
    ended = threading.Event()
    wrong: list[str] = []

    def poll() -> None:
        target = urlsplit(admin)
        connection = http.client.HTTPConnection(target.hostname or "", target.port)
        while True:
            for path in paths:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    wrong.append(f"{path}: {answer.status}")
            if ended.wait(1):
                connection.close()
                return

    polling = threading.Thread(target=poll)
    polling.start()
    try:
        yield
    finally:
        ended.set()
        polling.join()
    if wrong:
        raise RuntimeError(f"the admin endpoint failed: {wrong[0]}")


@contextmanager
def shown(chromium: str, admin: str) -> Iterator[None]:
    """Has the dashboard open in a browser, and /metrics scraped."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(admin)
        page.wait_for_function("() => document.getElementById('state').textContent === 'ready'")
        # A browser is busy with itself at first.
        page.wait_for_timeout(SETTLING)
        with polled(admin, ("/metrics",)):
            yield
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
