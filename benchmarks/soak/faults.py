"""Descriptors under faults: none may leak, on either side, and none be inheritable.

    python -m benchmarks.soak.faults [--replies 1000000] [--faults 100000] [--model MODEL …]

First clients request descriptors by the hundred, through the SDK in threads and under asyncio, while others disconnect
before they receive them, or are at their limit of open files and receive none. Then strace(1) makes the server's system
calls fail, one kind and one error after the other, every few calls, with the same clients: each request must return a
descriptor or an error of the SDK. After each round the server must serve as before, and both processes must have the
same descriptors as before. Ends with 1 if one of these fails.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from benchmarks.soak.client_threads import ClientThreads
from benchmarks.soak.process_resources import ProcessResources
from objmapper_client import AsyncClient, Client, Object, ObjmapperError
from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client import FDPASS, RawClient, request
from tests.support.server_process import HOME, ServerProcess
from tests.support.strace import why_not

CONTENT = b"content"
#: Objects that are asked for at once.
AT_ONCE = 50
#: Seconds of one round.
ROUND = 2.0
#: Seconds that strace has to attach.
ATTACH_TIMEOUT = 10.0
#: One of this number of calls fails.
EVERY = 5
#: The calls that fail, and the errors that the kernel may return for each.
FAULTS = {
    "sendmsg": ("EAGAIN", "EINTR", "ENOBUFS", "ENOMEM", "ETOOMANYREFS", "EPIPE", "ECONNRESET"),
    "sendmmsg": ("EAGAIN", "EINTR", "ENOBUFS", "ETOOMANYREFS", "ECONNRESET"),
    "openat2": ("EMFILE", "ENFILE", "ENOMEM", "EIO", "EACCES", "EAGAIN", "EINTR"),
    "fstat": ("EIO", "ENOMEM"),
    "fcntl": ("EPERM",),
    "recvfrom": ("EAGAIN", "EINTR", "ECONNRESET", "ENOMEM"),
    "recvmsg": ("EAGAIN", "EINTR", "ECONNRESET"),
    "accept4": ("ECONNABORTED", "EINTR", "EMFILE", "ENOBUFS"),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "ioctl": ("ENOTTY",),
}


class DescriptorClients(ClientThreads):
    """Clients that ask for descriptors in every way; an error that a fault explains is counted."""

    def __init__(self, address: str) -> None:
        self._address = address
        clients = {
            "in turn": self._in_turn,
            "asyncio": self._under_asyncio,
            "version 1": self._version_1,
            "leaving": self._leave,
        }
        super().__init__(clients.items(), (ObjmapperError, ConnectionError, EOFError, TimeoutError))

    def _take(self, found: "list[Object | ObjmapperError]") -> None:
        for each in found:
            if isinstance(each, ObjmapperError):
                self.counts["errors"] += 1
                continue
            with each:
                if os.pread(each.fileno(), 100, 0) != CONTENT:
                    self.wrong.append("another content")
                if os.get_inheritable(each.fileno()):
                    self.wrong.append("an inheritable descriptor")
            self.counts["replies"] += 1

    def _in_turn(self) -> None:
        with Client(self._address, timeout=5) as client:
            while not self._ended.is_set():
                self._take(client.open_many(["/a"] * AT_ONCE))

    def _under_asyncio(self) -> None:
        async def take() -> None:
            async with AsyncClient(self._address, timeout=5) as client:
                while not self._ended.is_set():
                    self._take(await client.open_many(["/a"] * AT_ONCE))

        asyncio.run(take())

    def _version_1(self) -> None:
        with RawClient(self._address, timeout=5) as v1:
            while not self._ended.is_set():
                v1.send(request(FDPASS, "/a") * 8)
                for _ in range(8):
                    reply = v1.reply(FDPASS)
                    if reply.descriptor is None:
                        self.counts["errors"] += 1
                        continue
                    os.close(reply.descriptor)
                    self.counts["replies"] += 1

    def _leave(self) -> None:
        """Send requests and disconnect: before the responses, or during them."""
        with RawClient(self._address, timeout=5) as v1:
            v1.send(request(FDPASS, "/a") * 20)
            self.counts["left"] += 1
            if self.counts["left"] % 2 and (reply := v1.reply(FDPASS)).descriptor is not None:
                os.close(reply.descriptor)
        self._ended.wait(0.002)


def at_its_limit(address: str, until: float) -> Counter[str]:
    """Has a process that may open nothing more ask for descriptors: each answer is an error, and nothing is kept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    counts = Counter[str]()
    with Client(address, timeout=5) as client:
        # The kernel returns the lowest free number next.
        with client.open("/a") as found:
            lowest = found.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            while time.monotonic() < until:
                try:
                    client.open("/a").close()
                    counts["opened"] += 1
                except (ObjmapperError, OSError):
                    counts["refused"] += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return counts


@contextmanager
def failing(pid: int, call: str, error: str, log: Path, every: int = EVERY) -> Iterator[None]:
    """Within the block each `every`-th call of a thread of the server fails so."""
    faults = f"inject={call}:error={error}:when={every}+{every}"
    command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", "status=failed", "-e", faults, "-s", "0"]
    process = subprocess.Popen([*command, "-o", str(log), "-p", str(pid)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + ATTACH_TIMEOUT
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8"):
            assert process.poll() is None, "strace did not attach"
            assert time.monotonic() < until, "strace did not attach in time"
            time.sleep(0.01)
        yield
    finally:
        # SIGTERM makes strace detach; SIGKILL would end the threads, too.
        process.send_signal(signal.SIGTERM)
        process.wait()


class Trial:
    """One server, and the results of its clients and faults."""

    def __init__(self, server: ServerProcess, scratch: Path) -> None:
        self.server = server
        self.address = server.addresses["unix"]
        self.scratch = scratch
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        with DescriptorClients(self.address) as clients:
            # Then everything that the process keeps is there.
            time.sleep(0.5)
        self.wrong += clients.wrong
        self.before, self.own = ProcessResources.after_settling(server.pid), ProcessResources.of()

    def round(self, name: str, seconds: float, call: str = "", error: str = "") -> None:
        """Runs the clients for these seconds, with faults where a call is named; then checks what is left."""
        log = self.scratch / "faults"
        with contextlib.ExitStack() as stack:
            clients = stack.enter_context(DescriptorClients(self.address))
            if call:
                stack.enter_context(failing(self.server.pid, call, error, log))
            select.select([], [], [], seconds)
        if call:
            self.counts["faults"] += log.read_text(encoding="utf-8").count("(INJECTED)")
        self.counts += clients.counts
        self.wrong += [f"{name}: {line}" for line in clients.wrong]
        self.look(name)

    def look(self, name: str) -> None:
        """Checks that the server serves, and that neither side has more descriptors than before."""
        if self.server.process.poll() is not None:
            raise SystemExit(f"{name}: the server has ended with {self.server.process.returncode}")
        with Client(self.address, timeout=5) as client:
            if client.read("/a") != CONTENT:
                self.wrong.append(f"{name}: another content")
        now, own = self.before.now(self.server.pid), ProcessResources.of()
        if now.descriptors > self.before.descriptors or now.inheritable > self.before.inheritable:
            self.wrong.append(f"{name}: the server has {now}, and had {self.before}")
        if own.descriptors > self.own.descriptors or own.inheritable > self.own.inheritable:
            self.wrong.append(f"{name}: the clients have {own}, and had {self.own}")


def run_model(folder: Path, model: Concurrency, replies: int, faults: int) -> bool:
    """Runs every round on a server of this model until both numbers are reached, and prints a line."""
    flags = ("--concurrency-model", model)
    with ServerProcess(folder / "root", folder / f"{model}.sock", *flags) as server:
        trial = Trial(server, folder)
        limited = at_its_limit(trial.address, time.monotonic() + ROUND)
        trial.look("at the limit of open files")
        with tqdm(total=faults, desc=f"{model}: faults", unit="fault", leave=False, disable=None) as bar:
            while trial.counts["faults"] < faults:
                for call, errors in FAULTS.items():
                    for error in errors:
                        trial.round(f"{call}: {error}", ROUND / 4, call, error)
                        bar.update(trial.counts["faults"] - bar.n)
        while trial.counts["replies"] < replies:
            trial.round("without faults", ROUND)
        after = ProcessResources.of(server.pid)
    counts = trial.counts
    print(
        f"{model}: {counts['replies']:,} descriptors received, {counts['faults']:,} faults, {counts['errors']:,} "
        f"errors, {counts['left']:,} left early, {limited['refused']:,} at their limit\n"
        f"  server {trial.before} → {after}; "
        f"clients {trial.own.descriptors} → {ProcessResources.of().descriptors} descriptors"
    )
    for line in trial.wrong[:10]:
        print(f"  {line}")
    return not trial.wrong


def main() -> int:
    """Every model has its part of the replies and faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replies", type=int, default=1_000_000, help="over all models (1,000,000)")
    parser.add_argument("--faults", type=int, default=100_000, help="over all models (100,000)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    given = parser.parse_args()
    if why_not():
        parser.error(why_not())
    models = given.model or MODELS
    os.chdir(HOME)
    with tempfile.TemporaryDirectory(prefix="objmapper-faults-") as name:
        folder = Path(name)
        (folder / "root").mkdir()
        (folder / "root/a").write_bytes(CONTENT)
        parts = given.replies // len(models), given.faults // len(models)
        results = [run_model(folder, model, *parts) for model in models]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
