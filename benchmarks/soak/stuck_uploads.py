"""Puts that never end: slow content, files that never respond, memory files of a pebibyte; other clients continue.

    python -m benchmarks.soak.stuck_uploads [--seconds 20] [--clients 100] [--model MODEL …]

A quarter of the clients announce 64 MiB and send a byte every tenth of a second; a quarter pass a file of a file system
in user space that does not answer, and a quarter a file of a local one whose disk does not (where those can be mounted:
as root); a quarter pass memory files of a pebibyte. Meanwhile an honest client puts 4 KiB and reads them back. Then the
server stops. Ends with 1 if an honest request fails, a slow upload does not end in time, the server reserves more of
the disk than allowed, or the stop takes longer than its grace period.
"""

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client import OK
from tests.support.raw_client_v2 import COPY, PUT, PUT_DESCRIPTOR, RawClientV2
from tests.support.server_process import ServerProcess
from tests.support.stuck_files import stuck_disk, stuck_file, why_no_disk

#: Of the server: how long a client may send nothing, and what is under way at the end.
TIMEOUT, GRACE = 2, 1
#: Seconds of tolerance for a busy machine.
SLACK = 15
RESERVED = 8 << 20


class HostileUploader(threading.Thread):
    """One client that never ends a put; it connects again when the server closes the connection."""

    def __init__(self, address: str, number: int, stuck: list[int], ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self.ended_in_time = 0
        self._address, self._number, self._stuck, self._ended = address, number, stuck, ended

    def run(self) -> None:
        """Connect again until the end."""
        while not self._ended.is_set():
            with suppress(OSError, EOFError, AssertionError), RawClientV2(self._address, timeout=0.1) as v2:
                self._turn(v2)

    def _turn(self, v2: RawClientV2) -> None:
        if self._number % 4 == 0:
            v2.send(v2.encode(PUT, f"/hostile-{self._number}", content_len=64 << 20))
            began = time.monotonic()
            while not self._ended.wait(0.1):
                try:
                    v2.send(b"x")
                    v2.answer()
                except TimeoutError:
                    continue
                except (OSError, EOFError):
                    pass
                self.ended_in_time += time.monotonic() - began < TIMEOUT + SLACK
                return
            return
        if self._number % 4 <= len(self._stuck):
            source = os.dup(self._stuck[self._number % 4 - 1])
        else:
            source = os.memfd_create("pebibyte")
            os.ftruncate(source, 1 << 50)
        try:
            for _ in range(20):
                socket.send_fds(v2.socket, [v2.encode(PUT_DESCRIPTOR, f"/hostile-{self._number}")], [source])
            self._ended.wait(1)
        finally:
            os.close(source)


def main() -> int:
    """Runs them against each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="for each model (20)")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    given = parser.parse_args()
    if why_no_disk():
        print(f"without files that never answer: {why_no_disk()}")
    failed = [model for model in given.model or MODELS if not run_model(model, given)]
    return 1 if failed else 0


def run_model(model: Concurrency, given: argparse.Namespace) -> bool:
    """Runs them against one model and prints a line."""
    with tempfile.TemporaryDirectory(prefix="objmapper-stuck-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "root").mkdir()
        stuck = list[int]()
        if not why_no_disk():
            below = stack.enter_context(stuck_file(folder / "mounted"))
            stuck.append(os.open(below.path, os.O_RDONLY))
            stack.callback(os.close, stuck[0])
            (folder / "disk").mkdir()
            stuck.append(stack.enter_context(stuck_disk(folder / "disk")).source)
        flags = ["--writable", "--concurrency-model", model, "--request-timeout", f"{TIMEOUT}"]
        flags += ["--shutdown-grace", f"{GRACE}", "--max-reserved-per-uid", f"{RESERVED}", "--cache-size", "0"]
        server = stack.enter_context(ServerProcess(folder / "root", folder / "o.sock", *flags))
        ended = threading.Event()
        alone = honest(server.addresses["unix"], 1.0)
        clients = [HostileUploader(server.addresses["unix"], number, stuck, ended) for number in range(given.clients)]
        for client in clients:
            client.start()
        beside = honest(server.addresses["unix"], given.seconds)
        reserved = held(server.pid)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        while not has_ended(server.pid) and time.monotonic() - began < 2 * SLACK:
            time.sleep(0.01)
        stopped = time.monotonic() - began
        ended.set()
        for client in clients:
            client.join(10)
        server.process.wait(60)
    drips = sum(client.ended_in_time for client in clients)
    print(
        f"{model:<23}honest: {len(beside)} right, p50 {median(alone):.1f} → {median(beside):.1f} ms, p99 "
        f"{last(alone):.1f} → {last(beside):.1f} ms; {drips} drips ended; {reserved >> 20} MiB reserved; "
        f"stopped in {stopped:.1f} s"
    )
    return bool(beside) and drips > 0 and reserved <= 2 * RESERVED and stopped < GRACE + SLACK


def honest(address: str, seconds: float) -> list[float]:
    """Puts and reads for this time. Returns the time of each pair, in ms."""
    times = []
    until = time.monotonic() + seconds
    with RawClientV2(address, timeout=60) as v2:
        while time.monotonic() < until:
            content = os.urandom(4096)
            began = time.monotonic()
            assert v2.put("/honest", content).status == OK
            assert v2.call(COPY, "/honest").read() == content
            times.append((time.monotonic() - began) * 1000)
    return times


def median(times: list[float]) -> float:
    """Return the median."""
    return sorted(times)[len(times) // 2]


def last(times: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(times)[len(times) * 99 // 100]


def held(pid: int) -> int:
    """Bytes that the unfinished files of the server have of the disk."""
    total = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            path = str(entry.readlink())
            if "(deleted)" in path and "/root/" in path:
                total += entry.stat().st_blocks * 512
    return total


def has_ended(pid: int) -> bool:
    """Whether the main thread has; what is stuck in a file system stays with the kernel."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


if __name__ == "__main__":
    sys.exit(main())
