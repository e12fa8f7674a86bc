"""An exception out of a signal handler, at every bytecode of every verb: nothing is leaked, and the client is usable.

CPython runs the handlers of signals between bytecodes. A trace function raises before the Nth bytecode of a call; then
the test runs the call again with the next N, until the call comes to its end.
"""

import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from objmapper_client import Client, Object
from objmapper_server import Config, Server
from tests.conftest import open_descriptors

#: Where a call has more bytecodes than this, the test takes as many of them, evenly spread, and all where it is 0.
MAX_INTERRUPTIONS = int(os.environ.get("OBJMAPPER_INTERRUPTIONS", "16"))
SMALL, LARGE = b"small" * 20, os.urandom(700_000)


class Interrupted(BaseException):
    """What the handler raises."""


class Interrupter:
    """Raises before one bytecode of a call, and counts them."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.seen = 0
        #: Where it raised.
        self.place = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> "Interrupter":
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            self.seen += 1
            if self.seen == self._at:
                code = frame.f_code
                self.place = f"{code.co_filename}:{frame.f_lineno} {code.co_name} +{frame.f_lasti}"
                raise Interrupted
        return self

    def run(self, call: Callable[[], object]) -> bool:
        """Whether the call came to its end."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except Interrupted:
            return False
        finally:
            sys.settrace(before)
        return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root, unix = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run") / "o.sock"
    (root / "small").write_bytes(SMALL)
    (root / "large").write_bytes(LARGE)
    with Server(Config(root=root, unix=unix, tcp="127.0.0.1:0", udp="127.0.0.1:0", writable=True)) as server:
        yield server


def close_all(results: list[Any]) -> None:
    for each in results:
        if isinstance(each, Object):
            each.close()


def open_and_close(client: Client, uri: str, **named: Any) -> None:
    client.open(uri, **named).close()


def put_and_delete(client: Client) -> None:
    client.put("/new", b"x" * 100)
    client.delete("/new")


OPERATIONS: dict[str, Callable[[Client], object]] = {
    "open": lambda client: open_and_close(client, "/small"),
    "open, copied": lambda client: open_and_close(client, "/small", mode="copy"),
    "open, large": lambda client: open_and_close(client, "/large", mode="copy"),
    "open_many": lambda client: close_all(client.open_many(["/small", "/large", "/none", "/small"])),
    "open_many, copied": lambda client: close_all(client.open_many(["/small", "/large"], mode="copy")),
    "read": lambda client: client.read("/small"),
    "read, copied": lambda client: client.read("/small", mode="copy"),
    "read, large": lambda client: client.read("/large", mode="copy"),
    "readinto": lambda client: client.readinto("/large", bytearray(len(LARGE))),
    "readinto, copied": lambda client: client.readinto("/large", bytearray(len(LARGE)), mode="copy"),
    "stream": lambda client: b"".join(client.stream("/large")),
    "stream, copied": lambda client: b"".join(client.stream("/large", mode="copy", chunk_size=100_000)),
    "stat": lambda client: client.stat("/small"),
    "list": lambda client: list(client.list("/")),
    "put and delete": put_and_delete,
    "put, large": lambda client: client.put("/new", LARGE),
    "put, a file": lambda client: client.put("/new", __file__),
    "put, pieces": lambda client: client.put("/new", iter([LARGE[:99], LARGE[99:]]), length=len(LARGE)),
}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        gc.collect()
        time.sleep(0.001)
    return True


def is_usable(client: Client, mode: str) -> bool:
    """Whether each of its places can be had: a large content on every connection but the shared one, at once."""
    streams = [client.stream("/large", mode="copy", chunk_size=1000) for _ in range(client.max_connections - 1)]
    for stream in streams:
        next(stream)
    found = client.read("/small", mode=mode) == SMALL and client.stat("/small").size == len(SMALL)
    for stream in streams:
        stream.close()
    return found


def interruptions(call: Callable[[], object]) -> list[int]:
    """At which bytecodes the call is interrupted."""
    counter = Interrupter(0)
    assert counter.run(call)
    step = max(1, counter.seen // MAX_INTERRUPTIONS) if MAX_INTERRUPTIONS else 1
    return list(range(1, counter.seen + 1, step))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("state", ["warm", "cold"])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_an_exception_at_any_bytecode_leaks_nothing(server: Server, transport: str, state: str, name: str) -> None:
    operation = OPERATIONS[name]
    mode = "copy" if transport == "tcp" else "fdpass"
    warnings.simplefilter("ignore", ResourceWarning)

    def make() -> Client:
        return Client(server.addresses[transport], timeout=20, max_connections=3)

    with make() as client:
        # What is imported on the way is not interrupted.
        assert is_usable(client, mode)
        operation(client)
        points = interruptions(lambda: operation(client))
    if state == "cold":
        with make() as client:
            points = interruptions(lambda: operation(client))
        points = points[:: max(1, len(points) // 8) if MAX_INTERRUPTIONS else 1]
    gc.collect()
    # What is there already need not be looked at by each collection below.
    gc.freeze()
    before = descriptors()
    with make() as client:
        for at in points:
            if state == "cold":
                client.close()
            else:
                client.read("/small", mode=mode)
            interrupter = Interrupter(at)
            interrupter.run(lambda: operation(client))
            place = interrupter.place
            assert client.read("/small", mode=mode) == SMALL, place
            pool = client._pool
            assert not pool._in_use, place
            assert pool._connecting is None, place
            assert not pool._lock._is_owned(), place  # type: ignore[attr-defined]
            client.close()
            # The server, which is in this process, closes its ends a moment later.
            assert is_soon(lambda: descriptors() <= before), place
        assert is_usable(client, mode)


def test_a_client_is_usable_after_an_alarm_at_any_moment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real signals, whose handler raises: SIGALRM after random times.

    Python ignores what a handler raises as a `__del__` begins, and does not call that again: its descriptor stays open.
    """
    import random
    import signal

    def interrupt(*_: object) -> None:
        raise Interrupted

    warnings.simplefilter("ignore", ResourceWarning)
    chance = random.Random(7)
    ignored: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: ignored.append(repr(found.object)))
    before = signal.signal(signal.SIGALRM, interrupt)
    (tmp_path / "file").write_bytes(LARGE)
    try:
        with Client(server.addresses["unix"], timeout=20, max_connections=3) as client:
            assert is_usable(client, "fdpass")
            at_rest = open_descriptors()
            gc.collect()
            gc.freeze()
            for _ in range(300):
                operation = chance.choice([*OPERATIONS.values()])
                # What the interrupted call before has left goes now, and not in the midst of another alarm.
                gc.collect()
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 3e-3))
                        operation(client)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    pass
            assert is_usable(client, "fdpass")
            client.close()
            # Pairs: another descriptor may have been closed and its number be taken anew.
            if not is_soon(lambda: open_descriptors().items() <= at_rest.items()):
                left = dict(open_descriptors().items() - at_rest.items())
                assert len(left) <= 3 * len(ignored), (left, ignored)
                for number in left:
                    os.close(number)
    finally:
        gc.unfreeze()
        signal.signal(signal.SIGALRM, before)
