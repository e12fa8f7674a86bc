"""What a killed server leaves: writes, kills in the midst of them, and what must hold afterwards.

Every write here goes to a root of its own making. After the kill each object must be a whole one, the old or the new;
the new one where the server had answered; and when a server has started again there, nothing else may be left.
"""

import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fork_server import ForkServer
from tests.support.raw_client import INVALID_REQUEST, NOT_FOUND, OK
from tests.support.raw_client_v2 import COPY, DELETE, PUT, PUT_DESCRIPTOR, RawClientV2
from tests.support.strace import Call, Strace, await_death, threads_of

OLD, NEW = b"old" * 20_000, b"new!" * 30_000
#: Waits for others, and memory: how often they are called is chance, so not every kill comes that is planned.
VARYING_CALLS = {"epoll_pwait", "epoll_wait", "futex", "poll", "ppoll", "restart_syscall", "recvfrom", "recvmsg"}
# A content is written in pieces as it comes, and each wakes a thread by way of an eventfd: how many is chance.
VARYING_CALLS |= {"pwrite64", "read", "write"}
VARYING_CALLS |= {"brk", "madvise", "mmap", "mprotect", "munmap", "sched_yield"}
#: No version of an object.
TORN = -1


@dataclass(frozen=True)
class Write:
    """A write to /object: what it is over, what it leads to, and how it is asked for."""

    name: str
    old: bytes | None
    new: bytes | None
    send: Callable[[RawClientV2, Path], None]


def _put(v2: RawClientV2, _: Path) -> None:
    v2.send(v2.encode(PUT, "/object", content_len=len(NEW)), NEW)


def _put_new(v2: RawClientV2, _: Path) -> None:
    v2.send(v2.encode(PUT, "/object", content_len=len(NEW), if_none_match="*"), NEW)


def _put_descriptor(v2: RawClientV2, source: Path) -> None:
    with source.open("rb") as file:
        socket.send_fds(v2.socket, [v2.encode(PUT_DESCRIPTOR, "/object")], [file.fileno()])


def _delete(v2: RawClientV2, _: Path) -> None:
    v2.ask(DELETE, "/object")


WRITES = [
    Write("put", OLD, NEW, _put),
    Write("put where nothing is", None, NEW, _put_new),
    Write("put by descriptor", OLD, NEW, _put_descriptor),
    Write("delete", OLD, None, _delete),
]


def read(path: Path) -> bytes | None:
    """The content, None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def leftover_files(root: Path) -> list[str]:
    """What a server that has just started finds beside objects, but for the directory that is its own."""
    server_directory = root / ".objmapper"
    entries = sorted(server_directory.iterdir())
    files = [path for path in server_directory.rglob("*") if not path.is_dir()]
    return [str(path.relative_to(root)) for path in [*files, *entries[1:]]]


@dataclass
class CrashSetup:
    """A root, and servers on it one after the other."""

    fork_server: ForkServer
    folder: Path
    settings: dict[str, object]

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def socket(self) -> Path:
        return self.folder / "o.sock"

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def start(self) -> int:
        """Starts a server on what is there."""
        return self.fork_server.start(self.root, self.socket, **self.settings)

    @contextmanager
    def prepared(self, write: Write) -> Iterator[tuple[int, RawClientV2]]:
        """A fresh root, a server on it, and a client that has written once: each has all that it will need."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        (self.folder / "source").write_bytes(NEW)
        if write.old is not None:
            (self.root / "object").write_bytes(write.old)
        pid = self.start()
        with RawClientV2(self.address) as v2:
            assert v2.put("/bystander", OLD).status == OK
            # The threads that copy files are made when there is work: one waits for the next piece of it.
            with Path("/dev/null").open("rb") as device:
                assert v2.put_descriptor("/refused", device.fileno()).status == INVALID_REQUEST
            yield pid, v2

    def calls(self, write: Write) -> list[Call]:
        """The system calls of this write."""
        with self.prepared(write) as (pid, v2):
            threads = threads_of(pid)
            with Strace(threads, self.folder / "calls") as strace:
                write.send(v2, self.folder / "source")
                assert v2.answer().status == OK
                # Once that has been answered, the server is done with the write.
                assert v2.call(COPY, "/bystander").status == OK
            found = strace.calls(threads)
        assert self.fork_server.stop() == 0
        return found

    def kill_at(self, write: Write, call: Call) -> "CrashReport":
        """Has the server killed when it enters this call, and looks at what is left."""
        with self.prepared(write) as (pid, v2):
            threads = [thread for thread, name in threads_of(pid).items() if name == call.thread]
            inject = f"{call.name}:signal=KILL:when={call.ordinal}"
            is_answered = False
            with Strace(threads, self.folder / "calls", inject):
                try:
                    write.send(v2, self.folder / "source")
                    is_answered = v2.answer().status == OK
                    v2.call(COPY, "/bystander")
                except (EOFError, ConnectionError):
                    pass
                # The waits at the end are reached when nothing more comes, or never.
                has_fired = await_death(pid, 0.05 if is_answered else 5.0)
                if not has_fired:
                    os.kill(pid, 9)
            self.fork_server.await_end()
        report = CrashReport(write, call, has_fired, is_answered)
        for moment, content in (("after the kill", read(self.root / "object")), ("after a restart", self._restart())):
            if content not in (write.old, write.new):
                report.wrong.append(f"torn {moment}")
            elif is_answered and content != write.new:
                report.wrong.append(f"lost {moment}")
        report.wrong += [f"stray {name}" for name in self.left]
        if read(self.root / "bystander") != OLD:
            report.wrong.append("the bystander has changed")
        return report

    def _restart(self) -> bytes | None:
        """Has another server sweep, asks it for the object, and stops it."""
        self.start()
        self.left = leftover_files(self.root)
        with RawClientV2(self.address) as v2:
            answer = v2.call(COPY, "/object")
            content = None if answer.status == NOT_FOUND else answer.read()
        assert self.fork_server.stop() == 0
        names = {path.name for path in self.root.iterdir()}
        self.left += sorted(names - {"object", "bystander"})
        return content


@dataclass
class CrashReport:
    """What became of one write when the server was killed in a call."""

    write: Write
    call: Call
    has_fired: bool
    is_answered: bool
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.write.name}, killed at {self.call.name} {self.call.ordinal} of {self.call.thread}: {self.wrong}"


def content_of(uri: str, version: int) -> bytes:
    """What the `version`-th put to a URI stores."""
    generator = random.Random(f"{uri} {version}")
    size = generator.choice([0, 100, 5_000, 40_000, 200_000])
    return b"%d %d\n" % (version, size) + generator.randbytes(size)


def version_of(uri: str, content: bytes | None) -> int | None:
    """Which put has stored this; None for no object, TORN for no put's content."""
    if content is None:
        return None
    number = content.split(b" ", 1)[0]
    version = int(number) if number.isdigit() else TORN
    return version if content == content_of(uri, version) else TORN


class Writer(threading.Thread):
    """Puts and deletes objects of its own, as fast as it is answered, until the connection ends."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.uris = [f"/writer-{number}-{object_}" for object_ in range(4)]
        self.random = random.Random(number)
        #: The version that was answered for, None for nothing; and what may have become of it since.
        self.acknowledged: dict[str, int | None] = dict.fromkeys(self.uris)
        self.pending_write: tuple[str, int | None] | None = None
        self.version = 0
        self.writes = 0
        self.address = ""
        self.error: BaseException | None = None

    def reconnected(self, address: str) -> "Writer":
        """The same writer on a new connection, with what it knows: a thread runs once."""
        writer = Writer(0)
        writer.uris, writer.random, writer.acknowledged = self.uris, self.random, self.acknowledged
        writer.version, writer.writes, writer.address = self.version, self.writes, address
        return writer

    def run(self) -> None:
        try:
            with RawClientV2(self.address) as v2:
                while True:
                    self._write(v2)
        except (EOFError, ConnectionError):
            pass
        except BaseException as error:
            self.error = error

    def _write(self, v2: RawClientV2) -> None:
        uri = self.random.choice(self.uris)
        kind = self.random.choice([PUT, PUT, PUT_DESCRIPTOR, DELETE])
        self.version += 1
        new = None if kind is DELETE else self.version
        self.pending_write = (uri, new)
        if kind is DELETE:
            answer = v2.call(DELETE, uri)
        elif kind is PUT:
            answer = v2.put(uri, content_of(uri, self.version))
        else:
            with os.fdopen(os.memfd_create("content"), "w+b") as file:
                file.write(content_of(uri, self.version))
                file.flush()
                answer = v2.put_descriptor(uri, file.fileno())
        expected = NOT_FOUND if kind is DELETE and self.acknowledged[uri] is None else OK
        assert answer.status == expected, answer
        self.acknowledged[uri] = new
        self.pending_write = None
        self.writes += 1

    def check(self, root: Path) -> list[str]:
        """What is not as it must be, now that the server is gone. What is there is what holds from now on."""
        wrong = []
        for uri in self.uris:
            content = read(root / uri[1:])
            versions = [self.acknowledged[uri]]
            if self.pending_write is not None and self.pending_write[0] == uri:
                versions.append(self.pending_write[1])
            found = version_of(uri, content)
            if found not in versions:
                wrong.append(f"{'torn' if found == TORN else 'lost'} {uri}")
            self.acknowledged[uri] = found
        self.pending_write = None
        return wrong


@dataclass
class CrashRun:
    """Writers at work on a server that is killed again and again."""

    setup: CrashSetup
    writers: list[Writer]
    random: random.Random
    kills: int = 0
    torn_or_lost: list[str] = field(default_factory=list)
    leftover_files: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, setup: CrashSetup, writers: int = 8, seed: int = 1) -> "CrashRun":
        """On a fresh root."""
        shutil.rmtree(setup.root, ignore_errors=True)
        setup.root.mkdir()
        return cls(setup, [Writer(number) for number in range(writers)], random.Random(seed))

    @property
    def writes(self) -> int:
        """How many were answered for."""
        return sum(writer.writes for writer in self.writers)

    def kill(self) -> None:
        """Starts the server and the writers, kills the server at a random moment, and checks the root."""
        pid = self.setup.start()
        self.leftover_files += leftover_files(self.setup.root)
        self.writers = [writer.reconnected(self.setup.address) for writer in self.writers]
        for writer in self.writers:
            writer.start()
        time.sleep(self.random.uniform(0.0, 0.1))
        os.kill(pid, 9)
        self.setup.fork_server.await_end()
        for writer in self.writers:
            writer.join()
            if writer.error is not None:
                raise writer.error
            self.torn_or_lost += writer.check(self.setup.root)
        self.kills += 1

    def end(self) -> None:
        """One start and one stop more: then there is nothing but objects."""
        self.setup.start()
        self.leftover_files += leftover_files(self.setup.root)
        assert self.setup.fork_server.stop() == 0
        objects = {uri[1:] for writer in self.writers for uri in writer.uris}
        self.leftover_files += sorted({path.name for path in self.setup.root.iterdir()} - objects)
