"""Throughput without monitoring, with metrics polled, and with the dashboard open.

    python benchmarks/monitoring_cost.py [--rounds 41] [--seconds 2] [--transport unix]

Two runs of one server differ by more than the cost of monitoring, so the three take turns in many short rounds. Prints
the median of each round's ratio to no monitoring, and the 95 % confidence interval of the median (from the order of the
ratios, without an assumption on their distribution). "polled" requests /stats, /latency and /metrics each second with a
cheap client; "browser" scrapes /metrics each second and has the dashboard open in a real Chromium on the same machine,
which takes processor time from the server and the load. In the other rounds the browser shows an empty page.
"""

import argparse
import http.client
import math
import shutil
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright
from tqdm import tqdm

from objmapper_cli.commands.bench.own_server import own_server
from objmapper_server.load import LoadPlan, run_load

#: Milliseconds.
SETTLING = 3000


def main() -> int:
    """Serve, then load with each kind of monitoring in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--transport", choices=("unix", "tcp"), default="unix")
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    with ExitStack() as stack:
        server = stack.enter_context(own_server({"small": 4096}, "--admin", "127.0.0.1:0"))
        admin = server.addresses["http"]
        plan = LoadPlan(
            address=server.addresses[given.transport],
            dialect="fdpass" if given.transport == "unix" else "copy",
            uris=("/small",),
            clients=16,
            duration=given.seconds,
        )
        looks: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "none": nullcontext,
            "polled": lambda: polled(admin, ("/stats", "/latency", "/metrics")),
        }
        if chromium is None:
            print("no chromium on PATH: the dashboard is left out", file=sys.stderr)
        else:
            page = stack.enter_context(browser_page(chromium))
            looks["browser"] = lambda: shown(page, admin)
        measured: dict[str, list[float]] = {name: [] for name in looks}
        for turn in tqdm(range(given.rounds), unit="round", disable=None):
            names = list(looks)
            # Each kind is first equally often.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                with looks[name]():
                    measured[name].append(run_load(plan).requests_per_sec)
    for name, rates in measured.items():
        ratios = [rate / base for rate, base in zip(rates, measured["none"], strict=True)]
        low, high = around_median(ratios)
        line = f"{name:8} {statistics.median(rates):10,.0f} requests/s"
        print(line if name == "none" else f"{line}  {statistics.median(ratios):.3f}  ({low:.3f} to {high:.3f})")
    return 0


def around_median(values: list[float]) -> tuple[float, float]:
    """Return the interval that has the true median with a probability of 95 %.

    The number of values below the median is binomial; its normal approximation is good from some ten values on.
    """
    ordered = sorted(values)
    half = 0.98 * math.sqrt(len(ordered))
    low, high = math.floor(len(ordered) / 2 - half), math.ceil(len(ordered) / 2 + half)
    return ordered[max(0, low)], ordered[min(len(ordered) - 1, high)]


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
def browser_page(chromium: str) -> Iterator[Page]:
    """A browser with an empty page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1400, "height": 900})
        browser.close()


@contextmanager
def shown(page: Page, admin: str) -> Iterator[None]:
    """Has the dashboard open, and /metrics scraped."""
    page.goto(admin)
    page.wait_for_function("() => document.getElementById('state').textContent === 'ready'")
    # Do not measure the loading of the page.
    page.wait_for_timeout(SETTLING)
    with polled(admin, ("/metrics",)):
        yield
    page.goto("about:blank")


if __name__ == "__main__":
    sys.exit(main())
