"""One connection for many threads, or many tasks: nobody waits for somebody else's answer, and nothing is left
behind."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop

from objmapper_client import AsyncClient, Client, ConnectionFailed, Mode, Object, ObjectNotFound, RequestTimeout
from objmapper_client.protocol_v2 import Operation, Request
from tests.client.lying_server import Peer, Pretend, answers_all, pretend_server
from tests.eventually import eventually

THREADS = 32


def test_threads_share_one_connection(tmp_path: Path) -> None:
    with pretend_server(tmp_path, answers_all) as server, Client(server.address, mode="copy") as client:

        def work(thread: int) -> bool:
            uris = [f"/{thread}/{number}" for number in range(50)]
            return all(client.read(uri) == uri.encode() for uri in uris)

        with ThreadPoolExecutor(THREADS) as threads:
            assert all(threads.map(work, range(THREADS)))
        assert server.connections == 1


def test_tasks_share_one_connection(tmp_path: Path) -> None:
    async def use(address: str) -> None:
        async with AsyncClient(address, mode="copy") as client:
            uris = [f"/{number}" for number in range(2000)]
            assert await asyncio.gather(*(client.read(uri) for uri in uris)) == [uri.encode() for uri in uris]

    for run in (asyncio.run, uvloop.run):
        with pretend_server(tmp_path, answers_all) as server:
            run(use(server.address))
            assert server.connections == 1


def backwards(count: int) -> Callable[[Peer], None]:
    """Answers always so many requests at once, the last one first."""

    def script(peer: Peer) -> None:
        while True:
            for request in reversed([peer.request() for _ in range(count)]):
                peer.answer(request, request.uri.encode())

    return script


def test_answers_in_any_order_find_their_threads(tmp_path: Path) -> None:
    with pretend_server(tmp_path, backwards(8)) as server, Client(server.address, mode="copy") as client:
        with ThreadPoolExecutor(8) as threads:
            for _ in range(50):
                results = list(threads.map(lambda n: client.read(f"/{n}"), range(8)))
                assert results == [f"/{n}".encode() for n in range(8)]
        assert server.connections == 1


class Held:
    """A script that answers all but what is called /slow, and that only when it is told."""

    def __init__(self) -> None:
        self.slow: list[Request] = []
        self.has_slow = threading.Event()
        self.go = threading.Event()
        self.is_answered = threading.Event()

    def __call__(self, peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.uri.startswith("/slow"):
                self.slow.append(request)
                self.has_slow.set()
                threading.Thread(target=self.answer_late, args=(peer, request)).start()
            else:
                peer.answer(request, request.uri.encode() if request.operation is Operation.COPY else b"")

    def answer_late(self, peer: Peer, request: Request) -> None:
        self.go.wait(20)
        with contextlib.suppress(OSError):
            peer.answer(request, b"" if request.operation is Operation.STAT else b"slow")
        self.is_answered.set()


def test_a_slow_answer_holds_up_no_thread_but_its_own(tmp_path: Path) -> None:
    held = Held()
    with pretend_server(tmp_path, held) as server, Client(server.address, mode="copy") as client:
        with ThreadPoolExecutor(5) as threads:
            slow = threads.submit(client.read, "/slow")
            assert held.has_slow.wait(10)
            # The slow one is the reader: it hands the others theirs.
            assert list(threads.map(client.read, ["/a", "/b", "/c", "/d"] * 25)) == [b"/a", b"/b", b"/c", b"/d"] * 25
            assert not slow.done()
            held.go.set()
            assert slow.result(10) == b"slow"
        assert server.connections == 1


def test_the_reading_goes_on_when_the_reader_has_its_answer(tmp_path: Path) -> None:
    """The first of three reads; it is answered first, then the others, one at a time."""
    requests: list[Request] = []
    came = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        while True:
            requests.append(peer.request())
            came.release()

    with pretend_server(tmp_path, script) as server, Client(server.address) as client, ThreadPoolExecutor(3) as threads:
        calls = []
        for name in "abc":
            calls.append(threads.submit(client.stat, f"/{name}"))
            assert came.acquire(timeout=10)
        for request, call in zip(requests, calls, strict=True):
            server.peers[0].answer(request)
            assert call.result(10).uri == request.uri


def test_a_reader_whose_time_is_up_leaves_the_reading_to_another(tmp_path: Path) -> None:
    held = Held()
    with pretend_server(tmp_path, held) as server, Client(server.address, mode="copy", timeout=0.5) as client:
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(client.read, "/slow/1")
            assert held.has_slow.wait(10)
            time.sleep(0.3)  # the second one's time is up later
            second = threads.submit(client.read, "/slow/2")
            with pytest.raises(RequestTimeout):
                first.result(10)
            held.go.set()
            assert second.result(10) == b"slow"
        assert client.read("/x") == b"/x"
        assert server.connections == 1


@pytest.mark.parametrize("mode", ["copy", "fdpass"])
def test_a_late_answer_is_thrown_away_and_the_connection_stays(tmp_path: Path, mode: str) -> None:
    held = Held()
    with pretend_server(tmp_path, held) as server, Client(server.address, mode=mode, timeout=0.2) as client:
        with pytest.raises(RequestTimeout):
            client.open("/slow")
        held.go.set()
        assert held.is_answered.wait(10)
        for _ in range(3):
            client.open("/x").close()
        assert server.connections == 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("mode", ["copy", "fdpass"])
def test_a_late_answer_to_a_task_is_thrown_away(tmp_path: Path, mode: str, run: Callable[[Any], None]) -> None:
    held = Held()

    async def use(address: str) -> None:
        async with AsyncClient(address, mode=mode, timeout=0.2) as client:
            with pytest.raises(RequestTimeout):
                await client.open("/slow")
            held.go.set()
            while not held.is_answered.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            for _ in range(3):
                (await client.open("/x")).close()

    with pretend_server(tmp_path, held) as server:
        run(use(server.address))
        assert server.connections == 1


def test_a_server_that_hangs_costs_a_connection_only_when_it_is_full(tmp_path: Path) -> None:
    held = Held()
    with (
        pretend_server(tmp_path, held, max_pipeline=3) as server,
        Client(server.address, mode="copy", timeout=0.1) as client,
    ):
        for number in range(1, 4):
            with pytest.raises(RequestTimeout):
                client.read("/slow")
            assert server.connections == 1, number
        assert client.read("/x") == b"/x"
        assert server.connections == 2
        held.go.set()


def test_no_more_is_sent_ahead_than_was_agreed(tmp_path: Path) -> None:
    most = 0

    def script(peer: Peer) -> None:
        nonlocal most
        waiting: list[Request] = []
        peer.connection.settimeout(0.05)
        while True:
            try:
                waiting.append(peer.request())
                most = max(most, len(waiting))
            except TimeoutError:
                for request in waiting:
                    peer.answer(request, request.uri.encode())
                waiting.clear()

    async def use(address: str) -> None:
        async with AsyncClient(address, mode="copy") as client:
            results = await asyncio.gather(*(client.read(f"/{n}") for n in range(40)))
            assert results == [f"/{n}".encode() for n in range(40)]

    with pretend_server(tmp_path, script, max_pipeline=5) as server:
        asyncio.run(use(server.address))
        with Client(server.address, mode="copy") as client:
            with ThreadPoolExecutor(16) as threads:
                assert len(list(threads.map(client.read, map(str, range(40))))) == 40
            found = client.open_many([str(n) for n in range(40)])
            assert [each.read() for each in found if isinstance(each, Object)] == [str(n).encode() for n in range(40)]
            for each in found:
                assert isinstance(each, Object)
                each.close()
        assert server.connections == 2
    assert most == 5


def kill_after(count: int) -> Callable[[Peer], None]:
    """The first connection ends after so many answers, with requests under way; later ones are as they should be."""

    def script(peer: Peer) -> None:
        if peer.number:
            answers_all(peer)
        for _ in range(count):
            request = peer.request()
            peer.answer(request, request.uri.encode())
        peer.request()

    return script


def test_a_server_that_dies_midway_costs_nobody_an_answer(tmp_path: Path) -> None:
    with pretend_server(tmp_path, kill_after(20)) as server, Client(server.address, mode="copy") as client:
        with ThreadPoolExecutor(8) as threads:
            uris = [f"/{n}" for n in range(100)]
            assert list(threads.map(client.read, uris)) == [uri.encode() for uri in uris]
        assert server.connections == 2

    async def use(address: str) -> None:
        async with AsyncClient(address, mode="copy") as client:
            results = await asyncio.gather(*(client.read(f"/{n}") for n in range(9)))
            assert results == [f"/{n}".encode() for n in range(9)]

    with pretend_server(tmp_path, kill_after(4)) as server:
        asyncio.run(use(server.address))
        assert server.connections == 2


def test_a_server_that_is_gone_is_a_failed_connection_for_all(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        for _ in range(8):
            peer.request()

    with pretend_server(tmp_path, script) as server:
        client = Client(server.address, attempts=1, mode="copy")

        def read(number: int) -> type[BaseException]:
            with pytest.raises(ConnectionFailed) as caught:
                client.read(f"/{number}")
            return caught.type

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(read, range(8))) == {ConnectionFailed}
        client.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("mode", ["fdpass", "copy"])
def test_a_storm_of_cancellations_leaves_nothing(tmp_path: Path, mode: str, run: Callable[[Any], None]) -> None:
    async def use(server: Pretend) -> None:
        async with AsyncClient(server.address, mode=mode) as client:
            (await client.open("/first")).close()

            async def one(number: int) -> None:
                (await client.open(f"/{number}")).close()

            for turns in range(60):
                tasks = [asyncio.create_task(one(number)) for number in range(20)]
                for _ in range(turns % 7):
                    await asyncio.sleep(0)
                if turns % 3 == 0:
                    await asyncio.sleep(0.001)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            (await client.open("/last")).close()
            assert len(asyncio.all_tasks()) == 1
        assert server.connections == 1

    threads = threading.active_count()
    with pretend_server(tmp_path, answers_all) as server:
        run(use(server))
    assert threading.active_count() == threads


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_open_many_that_is_cancelled_leaves_nothing_open(tmp_path: Path, run: Callable[[Any], None]) -> None:
    held = Held()

    async def use(address: str) -> None:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.open_many(["/a", "/b", "/slow", "/c"]))
            while not held.has_slow.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.go.set()
            while not held.is_answered.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            (await client.open("/d")).close()

    with pretend_server(tmp_path, held) as server:
        run(use(server.address))


def stays_where_it_is(thread: int) -> bool:
    """Whether a thread waits in a call."""
    seen = set()
    for _ in range(20):
        frame = sys._current_frames()[thread]
        seen.add((frame.f_code.co_name, frame.f_lasti))
        time.sleep(0.005)
    return len(seen) == 1


def test_an_interrupted_thread_leaves_nothing_open(tmp_path: Path) -> None:
    """Ctrl-C while an answer is waited for: the others on the connection are tried again."""
    held = Held()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pretend_server(tmp_path, held) as server, Client(server.address) as client:
            main = threading.get_ident()

            def send() -> None:
                held.has_slow.wait(10)
                # Not while a descriptor is between the kernel and the first line that could keep it.
                eventually(lambda: stays_where_it_is(main))
                signal.pthread_kill(main, signal.SIGUSR1)

            sender = threading.Thread(target=send)
            sender.start()
            with pytest.raises(KeyboardInterrupt):
                client.open_many(["/a", "/b", "/slow"])
            sender.join()
            held.go.set()
            client.open("/x").close()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_thousand_are_opened_on_one_connection_with_errors_among_them(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.uri.endswith("7"):
                peer.refuse(request, 0x01, "none")
            else:
                peer.answer(request)

    uris = [f"/{number}" for number in range(1000)]

    def judge(results: list[Any]) -> None:
        assert len(results) == 1000
        for uri, result in zip(uris, results, strict=True):
            if uri.endswith("7"):
                assert isinstance(result, ObjectNotFound)
                assert result.uri == uri
            else:
                assert (result.uri, result.mode) == (uri, Mode.FDPASS)
                result.close()

    async def use(address: str) -> None:
        async with AsyncClient(address) as client:
            judge(await client.open_many(uris))

    with pretend_server(tmp_path, script) as server:
        with Client(server.address) as client:
            judge(client.open_many(uris))
        asyncio.run(use(server.address))
        assert server.connections == 2


def test_a_child_begins_anew_whatever_its_parents_threads_hold(tmp_path: Path) -> None:
    held = Held()
    with pretend_server(tmp_path, held) as server, Client(server.address, mode="copy") as client:
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(client.read, "/slow") for _ in range(3)]
            assert held.has_slow.wait(10)
            # A lock that a thread of the parent holds is held for ever in the child.
            shared = client._pool.shared
            assert shared is not None
            with shared.lock, client._pool._lock:
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        code = 0 if client.read("/x") == b"/x" and client.stat("/y").uri == "/y" else 2
                        client.close()
                    finally:
                        os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            held.go.set()
            assert [each.result(10) for each in waiting] == [b"slow"] * 3
        assert client.read("/x") == b"/x"
        assert server.connections == 2


def test_a_client_serves_one_event_loop_after_the_other(tmp_path: Path) -> None:
    with pretend_server(tmp_path, answers_all) as server:
        client = AsyncClient(server.address, mode="copy")

        async def use() -> None:
            assert await client.read("/x") == b"/x"

        asyncio.run(use())
        asyncio.run(use())
        uvloop.run(use())
        uvloop.run(client.close())


def test_a_large_content_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """While it comes, everything else goes on; a further one waits for the place."""
    begun, go = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.uri == "/large" and request.operation is Operation.COPY:
                begun.set()
                go.wait(20)
                peer.answer(request, bytes(1 << 20))
            else:
                peer.answer(request, request.uri.encode())

    with (
        pretend_server(tmp_path, script) as server,
        Client(server.address, mode="copy", max_connections=2, timeout=0.3) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        patient = Client(server.address, mode="copy", max_connections=2)
        large = threads.submit(lambda: sum(map(len, patient.stream("/large"))))
        assert begun.wait(10)
        assert patient.read("/small") == b"/small"
        with contextlib.closing(client.stream("/large")) as chunks, pytest.raises(RequestTimeout, match="no answer"):
            next(chunks)
        go.set()
        assert large.result(10) == 1 << 20
        assert len(patient._pool) == 2
        patient.close()


@pytest.mark.parametrize("most", [1, 2])
def test_who_wants_a_place_waits_for_it(tmp_path: Path, most: int) -> None:
    with (
        pretend_server(tmp_path, large_ones) as server,
        Client(server.address, mode="copy", max_connections=most, timeout=0.3) as client,
    ):
        chunks = client.stream("/large", chunk_size=1000)
        next(chunks)
        with pytest.raises(RequestTimeout, match="max_connections"):
            next(client.stream("/large"))
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(lambda: sum(map(len, client.stream("/large"))))
            while not client._pool._wanting:
                time.sleep(0.001)
            for _ in chunks:
                pass
            assert waiting.result(10) == 1 << 20
        assert client.read("/small") == b"/small"
        assert len(client._pool) <= most


def large_ones(peer: Peer) -> None:
    while True:
        request = peer.request()
        peer.answer(request, bytes(1 << 20) if request.uri == "/large" else request.uri.encode())


def test_one_connection_alone_carries_both_in_turn(tmp_path: Path) -> None:
    with (
        pretend_server(tmp_path, large_ones) as server,
        Client(server.address, mode="copy", max_connections=1) as client,
        ThreadPoolExecutor(8) as threads,
    ):

        def both(number: int) -> bool:
            return (
                client.read(f"/{number}") == f"/{number}".encode() and len(b"".join(client.stream("/large"))) == 1 << 20
            )

        assert all(threads.map(both, range(40)))
        assert server.connections == 1

    async def use(address: str) -> None:
        async with AsyncClient(address, mode="copy", max_connections=1) as client:

            async def both(number: int) -> bool:
                small = await client.read(f"/{number}")
                large = b"".join([chunk async for chunk in client.stream("/large")])
                return small == f"/{number}".encode() and len(large) == 1 << 20

            assert all(await asyncio.gather(*(both(number) for number in range(40))))

    with pretend_server(tmp_path, large_ones) as server:
        asyncio.run(use(server.address))
        assert server.connections == 1
