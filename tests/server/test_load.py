"""The load generator counts what it does not get, from servers of the test's own that answer late, in part or never."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from objmapper_server import Config, Server, _engine
from objmapper_server.load import LoadPlan, native_plan, run_load
from tests.support.eventually import eventually

#: What version 1 answers to a copy of "a".
ANSWER = b"\0" + (1).to_bytes(8, "big") + b"a"
REQUEST = len(b"2\0\x02/a")


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that has `answer` deal with each connection in a thread, until it returns; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (accepting, *threads):
            thread.join(20)
            assert not thread.is_alive()


def answer_requests(connection: socket.socket, limit: int) -> None:
    """Answers this number of requests in order."""
    received = sent = 0
    while sent < limit and (chunk := connection.recv(1 << 16)):
        received += len(chunk)
        ready = min(received // REQUEST, limit) - sent
        connection.sendall(ANSWER * ready)
        sent += ready


def read_to_end(connection: socket.socket) -> None:
    with connection:
        while connection.recv(1 << 16):
            pass


def silent_after(limit: int) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        answer_requests(connection, limit)
        read_to_end(connection)

    return answer


def close_after(limit: int) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        with connection:
            answer_requests(connection, limit)

    return answer


def test_unanswered_due_requests_count_as_lost_with_their_wait() -> None:
    with serving(silent_after(200)) as address:
        result = run_load(LoadPlan(address=address, dialect="copy", uris=("/a",), rate=1000, duration=1))
    assert (result.requests, result.lost, result.errors) == (200, 800, 0)
    # The last was due at the end, the first of them 0.8 s before; all were waited for until a second after it.
    assert result.p99_us >= 1_500_000
    assert result.p50_us >= 1_000_000
    assert result.curve[-1] == (1.0, result.max_us)


def test_what_a_broken_connection_owed_and_what_was_due_later_is_lost() -> None:
    with serving(close_after(200)) as address:
        result = run_load(LoadPlan(address=address, dialect="copy", uris=("/a",), rate=1000, duration=1))
    assert (result.requests, result.lost, result.errors) == (200, 800, 1)
    assert result.p50_us >= 250_000


@pytest.mark.parametrize("pipeline", [1, 16])
def test_a_closed_loop_loses_requests_in_progress(pipeline: int) -> None:
    with serving(silent_after(5 * pipeline)) as address:
        plan = LoadPlan(address=address, dialect="copy", uris=("/a",), clients=2, pipeline=pipeline, duration=0.5)
        result = run_load(plan)
    assert (result.requests, result.lost, result.errors) == (10 * pipeline, 2 * pipeline, 0)
    assert result.max_us >= 1_000_000


def test_one_client_that_waits_for_an_answer_ends_with_the_load() -> None:
    with serving(silent_after(5)) as address:
        began = time.monotonic()
        result = run_load(LoadPlan(address=address, dialect="copy", uris=("/a",), duration=0.3))
    assert time.monotonic() - began < 8
    assert (result.requests, result.lost, result.errors) == (5, 1, 0)


def malformed_first() -> Callable[[socket.socket], None]:
    """Answers the first connection with a length that no content has, the others as they should be."""
    connections = iter(range(1 << 20))

    def answer(connection: socket.socket) -> None:
        with connection:
            if next(connections) > 0:
                answer_requests(connection, 50)
            elif connection.recv(1 << 16):
                connection.sendall(b"\0" + b"\xff" * 100)
            read_to_end(connection)

    return answer


def test_a_malformed_answer_to_one_client_ends_no_other() -> None:
    with serving(malformed_first()) as address:
        plan = LoadPlan(address=address, dialect="copy", uris=("/a",), clients=3, pipeline=2, duration=0.5)
        result = run_load(plan)
    assert (result.requests, result.errors) == (100, 1)


def test_with_a_connection_for_each_request_those_that_break_are_errors_and_lost() -> None:
    with serving(close_after(0)) as address:
        result = run_load(LoadPlan(address=address, dialect="copy", uris=("/a",), reconnect=True, duration=0.2))
    assert result.requests == 0
    assert result.lost == result.errors > 1


def test_nothing_is_lost_of_a_server_that_answers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    config = Config(root=tmp_path, unix=None, tcp="127.0.0.1:0", udp="127.0.0.1:0", admin=None)
    with Server(config) as server:
        for transport, changes in (
            ("tcp", {}),
            ("tcp", {"clients": 4, "pipeline": 8}),
            ("tcp", {"clients": 4, "rate": 500.0}),
            ("tcp", {"clients": 2, "reconnect": True}),
            ("udp", {"clients": 4}),
        ):
            plan = LoadPlan(address=server.addresses[transport], dialect="copy", uris=("/a",), duration=0.3, **changes)
            result = run_load(plan)
            assert result.lost == 0, changes
            # A datagram is asked for again after 0.2 s, for which a busy machine may stall.
            assert result.errors == 0 or transport == "udp", changes
            assert result.requests > 0


def test_a_late_answer_over_udp_does_not_count_for_the_next_question() -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.settimeout(0.05)
    ended = threading.Event()

    def answer_late() -> None:
        waiting: list[tuple[float, tuple[str, int]]] = []
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                _, sender = server.recvfrom(100)
                # The generator asks again after 0.2 s.
                waiting.append((time.monotonic() + 0.35, sender))
            while waiting and waiting[0][0] <= time.monotonic():
                server.sendto(ANSWER, waiting.pop(0)[1])

    thread = threading.Thread(target=answer_late)
    thread.start()
    try:
        plan = LoadPlan(
            address=f"udp://127.0.0.1:{server.getsockname()[1]}", dialect="copy", uris=("/a",), duration=1.5
        )
        result = run_load(plan)
    finally:
        ended.set()
        thread.join()
        server.close()
    assert result.errors >= 2
    # The last question alone may be answered: by 0.35 s into the second after the end it is not asked again in time.
    assert result.requests + result.lost == 1
    assert result.max_us >= 1_500_000


def plan_of(address: str, **changes: object) -> _engine.Load:
    return _engine.Load(native_plan(LoadPlan(address=address, dialect="copy", uris=("/a",), **changes)))  # type: ignore[arg-type]


def test_a_load_can_be_stopped_while_a_thread_waits_for_its_end() -> None:
    with serving(silent_after(10)) as address:
        load = plan_of(address, duration=600)
        waiting = threading.Thread(target=load.finish)
        waiting.start()
        eventually(lambda: load.answered == 10)
        began = time.monotonic()
        load.stop()
        assert load.running in {True, False}
        assert time.monotonic() - began < 1
        waiting.join(20)
        assert not waiting.is_alive()
        assert not load.running
        # What came of it can be asked for again.
        assert (load.finish()["requests"], load.finish()["lost"]) == (10, 1)


def test_a_load_that_is_dropped_ends() -> None:
    received, ended = threading.Event(), threading.Event()

    def answer(connection: socket.socket) -> None:
        received.set()
        read_to_end(connection)
        ended.set()

    with serving(answer) as address:
        load = plan_of(address, duration=600)
        assert received.wait(20)
        del load
        assert ended.wait(20)


@pytest.mark.parametrize("dialect", ["copy2", "copy"])
def test_a_load_is_stopped_whose_server_accepts_and_says_nothing(dialect: str) -> None:
    with serving(read_to_end) as address:
        plan = LoadPlan(address=address, dialect=dialect, uris=("/a",), clients=3, duration=600)  # type: ignore[arg-type]
        load = _engine.Load(native_plan(plan))
        load.stop()
        began = time.monotonic()
        load.finish()
        assert time.monotonic() - began < 8


def test_a_load_ends_at_an_interrupt() -> None:
    with serving(silent_after(10)) as address:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                run_load(LoadPlan(address=address, dialect="copy", uris=("/a",), duration=600))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": 1e-300}, "rate"),
        ({"rate": 1e300}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": -1.0}, "rate"),
        ({"rate": 5.0, "reconnect": True}, "reconnect"),
        ({"clients": 10**12}, "clients"),
        ({"duration": float("nan")}, "duration"),
        ({"duration": -1.0}, "duration"),
    ],
)
def test_a_plan_that_makes_no_sense(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plan_of("tcp://127.0.0.1:1", **changes)


def test_a_load_for_ever_is_one() -> None:
    with serving(silent_after(10)) as address:
        load = plan_of(address, duration=1e19)
        eventually(lambda: load.answered == 10)
        load.stop()
        assert load.finish()["errors"] == 0


def test_a_fork_does_not_wait_for_its_parents_load() -> None:
    with serving(silent_after(10)) as address:
        load = plan_of(address, duration=600)
        child = os.fork()
        if child == 0:
            try:
                load.finish()
            except RuntimeError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        load.stop()
        load.finish()
