"""A disk that fails every few calls: each reply is right or an error, each failure is counted, nothing leaks.

    python -m benchmarks.soak.failing_disk [--seconds 2] [--seed 1] [--model MODEL …]

strace(1) has each fifth system call of a thread fail with EIO, one kind of call after the other: those that ask the
file system alone (openat2, openat, preadv2, preadv, pread64, fstat, newfstatat, statx, getdents64), and sendfile, whose
EIO is that of the file. The server uses read(2) and splice(2) for no object. Meanwhile clients copy objects of three
sizes, splice, open, stat and list over Unix sockets and TCP in both versions, and fetch over UDP. A response must be
the right content or STORAGE_ERROR; a connection may break only after a head that announced content. A copy of an object
in memory must not fail by read, open or list errors.

Before the first fault nothing fails, and the count is 0. In each round `storage_errors_total` grows at least by the
failed responses and broken connections, the log has at most one line a second, each names an object, and the lines
report the same number of failures as the counter. After the last round nothing fails again, and the server has the same
descriptors as before, and at most 32 MiB more memory. Ends with 1 if one of these fails.
"""

import argparse
import os
import random
import re
import select
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from benchmarks.soak.client_threads import ClientThreads
from benchmarks.soak.faults import EVERY, failing
from benchmarks.soak.process_resources import ProcessResources
from objmapper_cli.admin_client import AdminClient
from objmapper_client import Client, ServerReply
from objmapper_client.protocol.v2_requests import Operation
from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client import COPY as COPY_1
from tests.support.raw_client import FDPASS as FDPASS_1
from tests.support.raw_client import OK, UNAVAILABLE, RawClient
from tests.support.raw_client import SPLICE as SPLICE_1
from tests.support.raw_client_v2 import COPY, FDPASS, LIST, SPLICE, STAT, STORAGE_ERROR, Answer, RawClientV2
from tests.support.server_process import HOME, ServerProcess
from tests.support.strace import why_not

#: The calls that fail in a round, and whether the server can still serve objects from memory.
ROUNDS = {
    "preadv2,preadv,pread64": True,
    "sendfile": True,
    "getdents64": True,
    "openat2": True,
    "fstat,newfstatat,statx": False,
    "openat": False,
    "openat2,openat,preadv2,preadv,pread64,fstat,newfstatat,statx,getdents64,sendfile": False,
}
ERROR = "EIO"
#: Where strace writes.
TRACE = "calls"
MEMORY = "/in-memory"
SIZES = {MEMORY: 1000, "/small": 1000, "/medium": 40_000, "/large": 1 << 20}
#: The server opens its root with it, once a second: each time it fails.
OF_THE_ROOT = "openat"
DIRECTORY, NAMES = "/directory/", 300
#: Requests that a client sends at once, at most.
AHEAD = 4
#: Seconds between two lines of the log, and by how many lines the two ends of a round may add to it.
POLL_INTERVAL, ENDS = 1.0, 2
#: Seconds in which the log is complete, and in which a call has failed.
TIMEOUT = 30.0
#: Bytes by which the server may have grown: buffers that its threads keep.
GROWTH = 32 << 20
FAILURE = re.compile(r"storage failed: [\w-]+ of '(?P<uri>[^']*)': .* \((?P<errno>\w+)\)(?:; and (?P<more>\d+) more)?$")
#: The error for a root that cannot be opened. It does not count as a failure of an object.
ROOT = "root directory"
#: The error of an overloaded pool, which is not a storage failure.
BUSY = "queue is full"


class ReadingClients(ClientThreads):
    """Clients that read in both versions over every transport, and check each answer."""

    def __init__(self, addresses: dict[str, str], contents: dict[str, bytes], seed: int, *, memory: bool) -> None:
        self._contents, self._memory = contents, memory
        kinds: list[tuple[Callable[[str, random.Random], None], str]] = [
            (self._version_2, "unix"),
            (self._version_2, "tcp"),
            (self._version_1, "unix"),
            (self._version_1, "tcp"),
            (self._datagrams, "udp"),
            (self._from_memory, "tcp"),
        ]
        super().__init__(
            (f"{kind.__name__[1:]} over {transport}", partial(kind, addresses[transport], random.Random(seed + number)))
            for number, (kind, transport) in enumerate(kinds)
        )

    def failures(self) -> int:
        """Answers and connections that failed for an object."""
        return self.counts["failed"] + self.counts["broken"]

    def _check(self, what: str, is_right: bool, status: int, message: str | None, *, may_fail: bool = True) -> None:
        if status == OK and is_right:
            self.counts["right"] += 1
        elif status == STORAGE_ERROR and message and may_fail:
            self.counts["root" if ROOT in message else "failed"] += 1
        elif status == UNAVAILABLE and message and BUSY in message:
            self.counts["busy"] += 1
        else:
            self.wrong.append(f"{what}: {status:#x} {message or 'and another content'}")

    def _version_2(self, address: str, generator: random.Random) -> None:
        """One connection, until it breaks or the round ends."""
        operations = [COPY, SPLICE, STAT, LIST] + ([FDPASS] if address.startswith("unix:") else [])
        with RawClientV2(address, timeout=60) as v2:
            while not self._ended.is_set():
                asked = dict(self._ask(v2, generator, operations))
                while asked:
                    waiting = len(v2.pending)
                    try:
                        answer = v2.answer()
                    except (EOFError, ConnectionResetError) as error:
                        if len(v2.pending) == waiting:
                            self.wrong.append(f"closed before a head: {error!r}")
                        self.counts["broken"] += 1
                        return
                    operation, uri = asked.pop(answer.id)
                    right = self._is_right(operation, uri, answer)
                    self._check(f"{operation.name} of {uri}", right, answer.status, answer.metadata.message)

    def _ask(
        self, v2: RawClientV2, generator: random.Random, operations: list[Operation]
    ) -> Iterator[tuple[int, tuple[Operation, str]]]:
        frames = []
        for _ in range(generator.randint(1, AHEAD)):
            operation = generator.choice(operations)
            uri = DIRECTORY if operation is LIST else generator.choice(list(SIZES))
            yield v2.next_id, (operation, uri)
            frames.append(v2.encode(operation, uri))
        # At once: the server may close as soon as it has the first.
        v2.send(*frames)

    def _is_right(self, operation: Operation, uri: str, answer: Answer) -> bool:
        if answer.status != OK:
            return False
        if operation is LIST:
            found = [(entry.uri, entry.size) for entry in answer.entries()]
            return found == [(f"{DIRECTORY}{number:04}", 0) for number in range(NAMES)]
        if operation is STAT:
            return answer.metadata.size == SIZES[uri]
        return answer.read() == self._contents[uri]

    def _version_1(self, address: str, generator: random.Random) -> None:
        """A request at a time, on one connection until it breaks."""
        modes = [COPY_1, SPLICE_1] + ([FDPASS_1] if address.startswith("unix:") else [])
        with RawClient(address, timeout=60) as v1:
            while not self._ended.is_set():
                mode, uri = generator.choice(modes), generator.choice(list(SIZES))
                try:
                    reply = v1.ask(mode, uri)
                except (EOFError, ConnectionResetError) as error:
                    # With the length of an object before it, the end of the connection has a meaning.
                    if uri != "/large" and mode != SPLICE_1:
                        self.wrong.append(f"version 1: closed before a head: {error!r}")
                    self.counts["broken"] += 1
                    return
                right = reply.status == OK and reply.read() == self._contents[uri]
                message = "" if reply.status == OK else reply.content.decode()
                self._check(f"version 1: {mode!r} of {uri}", right, reply.status, message)

    def _datagrams(self, address: str, generator: random.Random) -> None:
        with Client(address, timeout=60, attempts=1) as client:
            while not self._ended.is_set():
                uri = generator.choice(list(SIZES))
                try:
                    content = client.read(uri)
                except ServerReply as error:
                    self._check(f"UDP: {uri}", False, error.status, error.message)
                else:
                    self._check(f"UDP: {uri}", content == self._contents[uri], OK, None)

    def _from_memory(self, address: str, _generator: random.Random) -> None:
        """Asks for what the server has in memory."""
        with RawClientV2(address, timeout=60) as v2:
            while not self._ended.is_set():
                answer = v2.call(COPY, MEMORY)
                right = answer.status == OK and answer.content == self._contents[MEMORY]
                self._check(MEMORY, right, answer.status, answer.metadata.message, may_fail=not self._memory)
                self.counts["from memory"] += right
                self._ended.wait(0.002)


class Log:
    """The server's standard error, read continuously so that the server never blocks."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process.stderr is not None
        self.lines: list[str] = []
        self._stream = server.process.stderr
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self.lines.append(line.strip())

    def failures(self) -> list[str]:
        """The lines about the storage."""
        return [line for line in list(self.lines) if "storage failed" in line]


class Trial:
    """One server, and the results of its clients and faults."""

    def __init__(self, server: ServerProcess, folder: Path, contents: dict[str, bytes], seed: int) -> None:
        self.server, self.folder, self.contents, self.seed = server, folder, contents, seed
        self.log = Log(server)
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self._admin = AdminClient(f"unix:{folder}/admin.sock")

    def counted(self) -> Counter[str]:
        """The failures of the storage that the server has counted, by errno."""
        return Counter(self._admin.read("/stats", "storage_errors_total")["storage_errors_total"])

    def run(self, seconds: float, calls: str = "") -> None:
        """Runs the clients for this time, with faults where calls are named, and compares replies, count and log."""
        before, lines = self.counted(), len(self.log.failures())
        name = calls or "without faults"
        every = 1 if calls == OF_THE_ROOT else EVERY
        faults = failing(self.server.pid, calls, ERROR, self.folder / TRACE, every) if calls else nullcontext()
        began = time.monotonic()
        readers = ReadingClients(self.server.addresses, self.contents, self.seed, memory=ROUNDS.get(calls, True))
        with faults, readers:
            select.select([], [], [], seconds)
            until = time.monotonic() + TIMEOUT
            while calls and not self._injected() and time.monotonic() < until:
                time.sleep(0.05)
        lasted = time.monotonic() - began
        self.counts += readers.counts
        wrong = list(readers.wrong)
        new = self.counted() - before
        if calls:
            self.counts["faults"] += self._injected()
            if not self._injected():
                wrong.append("no call failed")
        if readers.failures() > new.total():
            wrong.append(f"{readers.failures()} failures, of which the server counted {dict(new)}")
        if set(new) - {ERROR} or (new and not calls):
            wrong.append(f"the server counted {dict(new)}")
        if not calls and readers.failures() + readers.counts["root"]:
            wrong.append(f"{dict(readers.counts)}")
        wrong += self._wrong_lines(lines, new.total(), lasted)
        if self.server.process.poll() is not None:
            raise SystemExit(f"{name}: the server has ended with {self.server.process.returncode}")
        self.wrong += [f"{name}: {line}" for line in wrong]

    def _injected(self) -> int:
        return (self.folder / TRACE).read_text(encoding="utf-8").count("(INJECTED)")

    def _wrong_lines(self, before: int, failures: int, lasted: float) -> Iterator[str]:
        """What is wrong with the lines of the log behind the first `before`, which tell of `failures` failures."""
        until = time.monotonic() + TIMEOUT
        while (logged := self._logged(before)) < failures and time.monotonic() < until:
            time.sleep(0.05)
        lines = self.log.failures()[before:]
        if logged != failures:
            yield f"the log has {logged} failures, the count is {failures}"
        if len(lines) > lasted / POLL_INTERVAL + ENDS:
            yield f"{len(lines)} lines of log in {lasted:.1f} s"
        known = {*SIZES, DIRECTORY}
        for line in lines:
            if (found := FAILURE.search(line)) is None or found["uri"] not in known or found["errno"] != ERROR:
                yield f"logged: {line}"
        self.counts["lines"] += len(lines)

    def _logged(self, before: int) -> int:
        found = [FAILURE.search(line) for line in self.log.failures()[before:]]
        return sum(1 + int(each["more"] or 0) for each in found if each is not None)


def fill(root: Path, seed: int) -> dict[str, bytes]:
    """Makes the objects. Returns their contents by URI."""
    generator = random.Random(seed)
    contents = {uri: generator.randbytes(size) for uri, size in SIZES.items()}
    for uri, content in contents.items():
        (root / uri[1:]).write_bytes(content)
        # The server keeps no object in memory whose time is now or in the future.
        when = time.time() + (-3600 if uri == MEMORY else 365 * 86400)
        os.utime(root / uri[1:], (when, when))
    (root / DIRECTORY.strip("/")).mkdir()
    for number in range(NAMES):
        (root / DIRECTORY.strip("/") / f"{number:04}").touch()
    return contents


@contextmanager
def serving(folder: Path, model: Concurrency) -> Iterator[ServerProcess]:
    """A server of this model on all transports, that keeps objects in memory for long."""
    flags = ["--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--udp-rate-limit", "0", "--cache-max-age", "86400"]
    flags += ["--admin", f"unix:{folder}/admin.sock"]
    # UDP has no connections.
    transports = ["unix", "tcp", *([] if model is Concurrency.THREAD_PER_CONNECTION else ["udp"])]
    flags += [word for each in transports for word in ("--concurrency-model", f"{each}={model}")]
    with ServerProcess(folder / "root", folder / f"{model}.sock", *flags) as server:
        yield server


def run_model(folder: Path, contents: dict[str, bytes], model: Concurrency, seconds: float, seed: int) -> bool:
    """Runs every round on a server of this model and prints a line."""
    with serving(folder, model) as server:
        trial = Trial(server, folder, contents, seed)
        trial.run(seconds)
        if trial.counted():
            trial.wrong.append(f"before any fault the server counted {dict(trial.counted())}")
        before = ProcessResources.after_settling(server.pid)
        for calls in ROUNDS:
            trial.run(seconds, calls)
        # The root is opened anew each second.
        time.sleep(2 * POLL_INTERVAL)
        trial.run(seconds)
        after, counted = before.now(server.pid), trial.counted()
    if after.descriptors > before.descriptors or after.resident > before.resident + GROWTH:
        trial.wrong.append(f"the server has {after}, and had {before}")
    counts = trial.counts
    print(
        f"{model}: {counts['faults']:,} calls failed; {counts['right']:,} answers right, {counts['failed']:,} "
        f"STORAGE_ERROR, {counts['root']:,} for the root, {counts['busy']:,} busy, {counts['broken']:,} connections "
        f"broken; counted {dict(counted)}; {counts['lines']} lines of log; {counts['from memory']:,} from memory\n"
        f"  {before} → {after}",
        flush=True,
    )
    for line in trial.wrong[:10]:
        print(f"  {line}")
    return not trial.wrong


def main() -> int:
    """Every model has all rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round (2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    given = parser.parse_args()
    if why_not():
        parser.error(why_not())
    os.chdir(HOME)
    with tempfile.TemporaryDirectory(prefix="objmapper-failing-disk-") as name:
        folder = Path(name)
        (folder / "root").mkdir()
        contents = fill(folder / "root", given.seed)
        results = [run_model(folder, contents, model, given.seconds, given.seed) for model in given.model or MODELS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
