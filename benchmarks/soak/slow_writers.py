"""Five thousand clients that send a byte a second: the server closes all of them after `header_timeout`.

    python -m benchmarks.soak.slow_writers [--clients 5000] [--header-timeout 10] [--model MODEL …]

Each begins a request and never ends it. Meanwhile an honest client sends requests, on one connection and on new ones. A
client is slow if its request is incomplete `header_timeout` after its first byte. Ends with 1 if a slow connection
stays open two seconds longer, or an honest request fails.
"""

import argparse
import resource
import select
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.soak.process_resources import ProcessResources
from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client import COPY, FDPASS, RawClient, request
from tests.support.server_process import ServerProcess

#: Seconds that it may take longer.
GRACE = 2
#: The object that only honest clients request.
OBJECT, CONTENT = "/honest", b"hello"


class WellBehavedClient:
    """Sends requests until the block ends."""

    def __init__(self, address: str) -> None:
        self.right = 0
        self.wrong: list[str] = []
        self._address = address
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "WellBehavedClient":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        with RawClient(self._address) as kept:
            while not self._ended.wait(0.002):
                with RawClient(self._address) as new:
                    for v1, mode in ((kept, COPY), (new, FDPASS)):
                        try:
                            self.right += v1.ask(mode, OBJECT).read() == CONTENT
                        except (AssertionError, OSError, EOFError) as error:
                            self.wrong.append(repr(error))
                            return


def main() -> int:
    """Connects the slow clients, lets them send, reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--header-timeout", type=float, default=10, help="seconds (10)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and given.clients + 200 > hard // 4 * 3:
        parser.error(f"RLIMIT_NOFILE is {hard}: no room for {given.clients} clients, raise it with ulimit -n")
    with tempfile.TemporaryDirectory(prefix="objmapper-slow-") as folder:
        (Path(folder) / "root").mkdir()
        (Path(folder) / "root" / OBJECT.removeprefix("/")).write_bytes(CONTENT)
        failed = [model for model in given.model or MODELS if not run_model(Path(folder), model, given)]
    return 1 if failed else 0


def run_model(folder: Path, model: Concurrency, given: argparse.Namespace) -> bool:
    """Runs them against one model and prints a line."""
    clients, timeout = given.clients, given.header_timeout
    room = str(clients + 100)
    flags = ["--concurrency-model", model, "--max-threads", room, "--max-connections", room]
    with ServerProcess(folder / "root", folder / f"{model}.sock", *flags, "--header-timeout", f"{timeout}") as server:
        address = server.addresses["unix"]
        with RawClient(address) as first:
            assert first.ask(COPY, OBJECT).read() == CONTENT
        before = ProcessResources.after_settling(server.pid)
        with WellBehavedClient(address) as honest:
            late, stayed = drip(address, clients, timeout, model)
        after = before.now(server.pid)
    print(
        f"{model:<23}{clients - stayed:>6,} of {clients:,} gone, the last {late:+.1f} s after its time; honest: "
        f"{honest.right:,} right, {len(honest.wrong)} wrong; {before.descriptors} → {after.descriptors} descriptors"
    )
    for line in honest.wrong[:5]:
        print(f"  {line}")
    return not stayed and not honest.wrong and honest.right > 0 and after.descriptors <= before.descriptors


def drip(address: str, clients: int, timeout: float, model: Concurrency) -> tuple[float, int]:
    """Have them send a byte a second. Returns how long after its time the last was closed, and how many were not."""
    message = request(COPY, "/" + "a" * 1000)
    poll = select.poll()
    open_now: dict[int, tuple[RawClient, float]] = {}
    late = 0.0
    for _ in range(clients):
        # One with a time limit would not wait where the backlog is full.
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
        v1 = RawClient(connection)
        v1.send(message[:1])
        open_now[v1.socket.fileno()] = (v1, time.monotonic())
        poll.register(v1.socket, select.POLLIN | select.POLLHUP)
    until = time.monotonic() + timeout + GRACE
    next_byte = time.monotonic() + 1
    with tqdm(total=clients, desc=str(model), unit="gone", leave=False, disable=None) as bar:
        while open_now and time.monotonic() < until:
            for number, _ in poll.poll(max(0, (next_byte - time.monotonic()) * 1000)):
                # A last word, or the end; either way the server is through with this one.
                v1, began = open_now.pop(number)
                late = max(late, time.monotonic() - began - timeout)
                poll.unregister(number)
                v1.close()
                bar.update()
            if time.monotonic() >= next_byte:
                next_byte += 1
                for v1, _ in open_now.values():
                    try:
                        v1.send(message[1:2])
                    except OSError:
                        # Closed meanwhile: the poll tells.
                        continue
    for v1, _ in open_now.values():
        v1.close()
    return late, len(open_now)


if __name__ == "__main__":
    sys.exit(main())
