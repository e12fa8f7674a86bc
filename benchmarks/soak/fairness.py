"""Eight connections with 64 listings each of a large directory: an honest client's reads and listings stay fast.

    python -m benchmarks.soak.fairness [--connections 8] [--listings 64] [--names 100000] [--seconds 20] [--most 20]
                                       [--model MODEL …]

The greedy connections belong to the same user as the honest one. Each always has 64 pending listings: after a response
it requests the next page, or begins again. Meanwhile an honest client reads objects of 4 KiB that are not in memory,
and lists a directory of 20; it does the same for a while before the greedy clients start. Prints the processor time of
the server, the clients and the rest of the machine. Ends with 1 if the 99th percentile of either is above `--most`
milliseconds, or the greedy clients get nothing.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.soak.process_resources import ProcessResources
from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client import OK
from tests.support.raw_client_v2 import COPY, LIST, RawClientV2
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

COLD: Final = 500
SIZE: Final = 4096
SMALL: Final = 20
#: Seconds that a client waits for an answer.
TIMEOUT: Final = 120.0


def make_objects(root: Path, names: int) -> None:
    """The directory that is listed, one that is small, and the objects that are read."""
    for folder, count, content in (("many", names, b""), ("small", SMALL, b""), ("cold", COLD, b"c" * SIZE)):
        (root / folder).mkdir()
        for number in range(count):
            (root / folder / f"{number:08}").write_bytes(content)
    os.sync()


def run_greedy_client(address: str, listings: int, pages: "Synchronized[int]", stop: Event) -> None:
    """Keeps this number of listings pending on one connection."""
    with RawClientV2(address, timeout=TIMEOUT) as v2:
        for _ in range(listings):
            v2.ask(LIST, "/many/")
        while not stop.is_set():
            answer = v2.answer()
            assert answer.status == OK, (answer.status, answer.metadata.message)
            with pages:
                pages.value += 1
            v2.ask(LIST, "/many/", cursor=answer.metadata.cursor)


def evict(path: Path) -> None:
    """Takes a file out of the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def record_time(times: list[float], ask: Callable[[], object]) -> None:
    """Notes how long it takes, in milliseconds."""
    began = time.perf_counter()
    ask()
    times.append((time.perf_counter() - began) * 1000)


def run_honest_client(root: Path, address: str, seconds: float) -> tuple[list[float], list[float]]:
    """Reads and lists for this time. Returns the times of both, sorted."""
    reads: list[float] = []
    lists: list[float] = []
    with RawClientV2(address, timeout=TIMEOUT) as v2:
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            name = f"cold/{number % COLD:08}"
            number += 1
            evict(root / name)
            record_time(reads, lambda name=name: v2.call(COPY, f"/{name}").read())  # type: ignore[misc]
            record_time(lists, lambda: v2.call(LIST, "/small/").entries())
            # A client without pauses would be greedy, too.
            time.sleep(0.002)
    return sorted(reads), sorted(lists)


def process_cpu_seconds(pids: list[int]) -> float:
    """Return the seconds of processors that processes have had."""
    fields = [Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def machine_cpu_seconds() -> float:
    """Return the seconds that its processors have worked."""
    times = [int(each) for each in Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()[1:9]]
    return (sum(times) - sum(times[3:5])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuShares:
    """Processor time of the server, the clients and the whole machine, in seconds."""

    server: float
    clients: float
    machine: float
    at: float

    @classmethod
    def now(cls, server: int, clients: list[int]) -> "CpuShares":
        """Look at the processes."""
        return cls(process_cpu_seconds([server]), process_cpu_seconds(clients), machine_cpu_seconds(), time.monotonic())

    def until(self, later: "CpuShares") -> str:
        """Return the processors that each used meanwhile."""
        seconds = later.at - self.at
        server, clients = (later.server - self.server) / seconds, (later.clients - self.clients) / seconds
        rest = (later.machine - self.machine) / seconds - server - clients
        return f"processors: server {server:.2f}, clients {clients:.2f}, others {max(rest, 0):.2f} of {os.cpu_count()}"


def percentile(times: list[float], percent: float) -> float:
    """Of sorted times."""
    return times[min(len(times) - 1, int(len(times) * percent / 100))]


def is_fair(root: Path, socket: Path, model: Concurrency, given: argparse.Namespace) -> bool:
    """Runs one model and prints a line."""
    with ServerProcess(root, socket, "--concurrency-model", model, "--cache-size", "0") as server:
        address = server.addresses["unix"]
        context = multiprocessing.get_context("spawn")
        pages = context.Value("Q", 0)
        stop = context.Event()
        greedy = [
            context.Process(target=run_greedy_client, args=(address, given.listings, pages, stop), daemon=True)
            for _ in range(given.connections)
        ]
        before = ProcessResources.after_settling(server.pid)
        alone = run_honest_client(root, address, given.seconds / 4)
        for each in greedy:
            each.start()
        try:
            deadline = time.monotonic() + TIMEOUT
            while pages.value < given.connections and time.monotonic() < deadline:
                time.sleep(0.01)
            pids = [os.getpid(), *(each.pid for each in greedy if each.pid)]
            began = CpuShares.now(server.pid, pids)
            reads, lists = run_honest_client(root, address, given.seconds)
            shares = began.until(CpuShares.now(server.pid, pids))
        finally:
            stop.set()
            for each in greedy:
                each.kill()
                each.join()
        after = before.now(server.pid)
    worst = max(percentile(reads, 99), percentile(lists, 99))
    print(
        f"{model:<23}{len(reads):,} cold reads: p50 {percentile(reads, 50):.1f}, p99 {percentile(reads, 99):.1f}, "
        f"most {reads[-1]:.1f} ms; {len(lists):,} small lists: p50 {percentile(lists, 50):.1f}, "
        f"p99 {percentile(lists, 99):.1f}, most {lists[-1]:.1f} ms; {pages.value:,} pages of the greedy; "
        f"{before.resident >> 20} → {after.resident >> 20} MiB; "
        f"alone p99 {percentile(alone[0], 99):.1f} and {percentile(alone[1], 99):.1f} ms; {shares}",
        flush=True,
    )
    return bool(worst <= given.most and pages.value > 0)


def main() -> int:
    """Makes the tree and runs the models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--listings", type=int, default=64, help="that each has under way (64)")
    parser.add_argument("--names", type=int, default=100_000, help="in the directory (100000)")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--most", type=float, default=20, help="milliseconds that the 99th percentile may be (20)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="objmapper-fair-") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        make_objects(root, given.names)
        fair = [is_fair(root, Path(folder) / f"{model}.sock", model, given) for model in given.model or MODELS]
    return 0 if all(fair) else 1


if __name__ == "__main__":
    sys.exit(main())
