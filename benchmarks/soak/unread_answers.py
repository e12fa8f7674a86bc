"""Forty clients that ask for pages of a long list and never read: how much memory the server takes, and gives back.

    python -m benchmarks.soak.unread_answers [--clients 40] [--names 20000] [--seconds 5] [--model MODEL …]

Each sends 64 requests for a page of 10,000 names. Meanwhile an honest client lists and reads. Then all leave. Ends with
1 where the server took more than `max_output_memory`, or more than `max_output_buffer` for each client, and 64 MiB for
all else; where 10 seconds after they left it has 32 MiB more than before they came; or where an honest request failed.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.soak.vitals import Vitals
from objmapper_server import Concurrency
from tests.server_process import ServerProcess
from tests.version_two.client import COPY, LIST, Two

MODELS = [Concurrency.THREAD_PER_CONNECTION, Concurrency.THREAD_POOL, Concurrency.WORK_STEALING, Concurrency.EPOLL]
REQUESTS = 64
#: The defaults, in bytes.
PER_CONNECTION, TOTAL = 4 << 20, 256 << 20
#: What the server may take besides: the page being read by each thread, what it keeps of directories.
BESIDES = 64 << 20
#: After so many seconds without the clients it may have so many bytes more than before.
REST, LEFT = 10, 32 << 20


def main() -> int:
    """Makes the names, runs the models, reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--names", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=5, help="how long they stay (5)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="objmapper-unread-") as folder:
        root = Path(folder) / "root"
        (root / "names").mkdir(parents=True)
        (root / "content").write_bytes(b"hello")
        for number in range(given.names):
            (root / "names" / f"{number:0120}").touch()
        failed = [model for model in given.model or MODELS if not withstood(Path(folder), model, given)]
    return 1 if failed else 0


def withstood(folder: Path, model: Concurrency, given: argparse.Namespace) -> bool:
    """Runs them against one model and prints a line."""
    with ServerProcess(folder / "root", folder / f"{model}.sock", "--concurrency-model", model) as server:
        address = server.addresses["unix"]
        with Two(address) as honest:
            # What listing takes by itself is no answer.
            assert honest.call(LIST, "/names/", limit=10_000).entries()
        before = Vitals.settled(server.pid).resident
        most, slowest, honest_requests = before, 0.0, 0
        with contextlib.ExitStack() as clients:
            for _ in range(given.clients):
                two = clients.enter_context(Two(address, timeout=60))
                two.send(b"".join(two.encode(LIST, "/names/", limit=10_000) for _ in range(REQUESTS)))
            honest = clients.enter_context(Two(address, timeout=60))
            until = time.monotonic() + given.seconds
            while time.monotonic() < until or not honest_requests:
                began = time.monotonic()
                assert honest.call(COPY, "/content").content == b"hello"
                assert honest.call(LIST, "/names/", limit=10).entries()
                slowest = max(slowest, time.monotonic() - began)
                honest_requests += 2
                most = max(most, Vitals.of(server.pid).resident)
                time.sleep(0.01)
        time.sleep(REST)
        after = Vitals.of(server.pid).resident
    bound = min(given.clients * PER_CONNECTION, TOTAL) + BESIDES
    print(
        f"{model:<23}{before / 2**20:6.1f} MiB before, {(most - before) / 2**20:+.1f} with {given.clients} clients, "
        f"{(after - before) / 2**20:+.1f} {REST} s after they left; honest: {honest_requests} requests, "
        f"the slowest two {slowest * 1000:.0f} ms"
    )
    return most - before <= bound and after - before <= LEFT


if __name__ == "__main__":
    sys.exit(main())
