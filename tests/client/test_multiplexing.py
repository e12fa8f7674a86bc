"""One connection for many threads, or many tasks: no request waits for the reply of another."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvloop

from objmapper_client import AsyncClient, Client, ConnectionFailed, Mode, Object, ObjectNotFound
from objmapper_client._runtime import threads
from objmapper_client._runtime.thread_multiplexer import ThreadMultiplexer
from tests.support.eventually import eventually
from tests.support.fake_server_v2 import HeldReplies, Peer, answer_all, fake_server_v2

if TYPE_CHECKING:
    from objmapper_client.protocol.v2_requests import Request

THREADS = 32


def test_threads_share_one_connection(tmp_path: Path) -> None:
    with fake_server_v2(tmp_path, answer_all) as server, Client(server.address, mode="copy") as client:

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
        with fake_server_v2(tmp_path, answer_all) as server:
            run(use(server.address))
            assert server.connections == 1


def backwards(count: int) -> Callable[[Peer], None]:
    """Answers requests in groups of this size, the last one first."""

    def script(peer: Peer) -> None:
        while True:
            for request in reversed([peer.request() for _ in range(count)]):
                peer.answer(request, request.uri.encode())

    return script


def test_answers_in_any_order_find_their_threads(tmp_path: Path) -> None:
    with fake_server_v2(tmp_path, backwards(8)) as server, Client(server.address, mode="copy") as client:
        with ThreadPoolExecutor(8) as threads:
            for _ in range(50):
                results = list(threads.map(lambda n: client.read(f"/{n}"), range(8)))
                assert results == [f"/{n}".encode() for n in range(8)]
        assert server.connections == 1


def test_a_slow_answer_holds_up_no_thread_but_its_own(tmp_path: Path) -> None:
    held = HeldReplies()
    with fake_server_v2(tmp_path, held) as server, Client(server.address, mode="copy") as client:
        with ThreadPoolExecutor(5) as threads:
            slow = threads.submit(client.read, "/slow")
            assert held.has_slow.wait(10)
            # The slow one is the reader: it hands the others theirs.
            assert list(threads.map(client.read, ["/a", "/b", "/c", "/d"] * 25)) == [b"/a", b"/b", b"/c", b"/d"] * 25
            assert not slow.done()
            held.release.set()
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

    with fake_server_v2(tmp_path, script) as server, Client(server.address) as client, ThreadPoolExecutor(3) as threads:
        calls = []
        for name in "abc":
            calls.append(threads.submit(client.stat, f"/{name}"))
            assert came.acquire(timeout=10)
        for request, call in zip(requests, calls, strict=True):
            server.peers[0].answer(request)
            assert call.result(10).uri == request.uri


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

    with fake_server_v2(tmp_path, script, max_pipeline=5) as server:
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


def delayed_replies(count: int, is_read: threading.Event, release: threading.Event) -> Callable[[Peer], None]:
    """Reads one request, and no more until it may go on; then it reads all of them before it answers any."""

    def script(peer: Peer) -> None:
        first = peer.request()
        is_read.set()
        assert release.wait(60)
        for request in [peer.request() for _ in range(count)]:
            peer.answer(request, request.uri[:6].encode())
        peer.answer(first, b"first")
        peer.wait_for_end()

    return script


def has_queued(client: Client | AsyncClient, count: int) -> bool:
    """Whether this number of requests is pending, and some of them wait for room in the shared connection's socket."""
    shared = None if client._pool is None else client._pool.shared
    return shared is not None and len(shared.pending) == count and bool(shared.outgoing)


def test_queued_frames_are_sent_while_the_reader_sleeps(tmp_path: Path) -> None:
    """The reader waits for an answer that comes last; what the others could not send goes out as soon as it can."""
    count = 200
    uris = [f"/{number:05}{'n' * 3900}" for number in range(count)]
    is_read, release = threading.Event(), threading.Event()
    with fake_server_v2(tmp_path, delayed_replies(count, is_read, release)) as server:
        with (
            Client(server.address, mode="copy", timeout=30, attempts=1) as client,
            ThreadPoolExecutor(count + 1) as threads,
        ):
            first = threads.submit(client.read, "/first")
            assert is_read.wait(30)
            others = [threads.submit(client.read, uri) for uri in uris]
            assert eventually(lambda: has_queued(client, count + 1))
            release.set()
            assert [other.result() for other in others] == [uri[:6].encode() for uri in uris]
            assert first.result() == b"first"
        assert server.connections == 1


def test_what_tasks_have_queued_is_sent_as_soon_as_it_can_be(tmp_path: Path) -> None:
    count = 200
    uris = [f"/{number:05}{'n' * 3900}" for number in range(count)]

    async def use(address: str, is_read: threading.Event, release: threading.Event) -> None:
        async with AsyncClient(address, mode="copy", timeout=30, attempts=1) as client:
            first = asyncio.ensure_future(client.read("/first"))
            assert await asyncio.to_thread(is_read.wait, 30)
            others = [asyncio.ensure_future(client.read(uri)) for uri in uris]
            assert await asyncio.to_thread(eventually, lambda: has_queued(client, count + 1))
            release.set()
            assert await asyncio.gather(*others) == [uri[:6].encode() for uri in uris]
            assert await first == b"first"

    for run in (asyncio.run, uvloop.run):
        is_read, release = threading.Event(), threading.Event()
        with fake_server_v2(tmp_path, delayed_replies(count, is_read, release)) as server:
            run(use(server.address, is_read, release))
            assert server.connections == 1


def test_a_thousand_are_opened_on_one_connection_with_errors_among_them(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.uri.endswith("7"):
                peer.refuse(request, 0x01, "none")
            else:
                peer.answer(request)

    uris = [f"/{number}" for number in range(1000)]

    def check_results(results: list[Any]) -> None:
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
            check_results(await client.open_many(uris))

    with fake_server_v2(tmp_path, script) as server:
        with Client(server.address) as client:
            check_results(client.open_many(uris))
        asyncio.run(use(server.address))
        assert server.connections == 2


def test_a_child_begins_anew_whatever_its_parents_threads_hold(tmp_path: Path) -> None:
    held = HeldReplies()
    with fake_server_v2(tmp_path, held) as server, Client(server.address, mode="copy") as client:
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
            held.release.set()
            assert [each.result(10) for each in waiting] == [b"slow"] * 3
        assert client.read("/x") == b"/x"
        assert server.connections == 2


def test_a_client_serves_one_event_loop_after_the_other(tmp_path: Path) -> None:
    with fake_server_v2(tmp_path, answer_all) as server:
        client = AsyncClient(server.address, mode="copy")

        async def use() -> None:
            assert await client.read("/x") == b"/x"

        asyncio.run(use())
        asyncio.run(use())
        uvloop.run(use())
        uvloop.run(client.close())


def test_a_reader_whose_connection_another_thread_gives_up_raises_what_broke_it(tmp_path: Path) -> None:
    """Between the reader's look whether it has its answer, and its wait for it."""
    raised: list[BaseException] = []

    def give_up(multiplex: ThreadMultiplexer) -> None:
        with multiplex.lock:
            multiplex.on_finished(multiplex.fail(ConnectionFailed("given up by another thread")))

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is ThreadMultiplexer._ready.__code__:
            other = threading.Thread(target=give_up, args=(frame.f_locals["self"],))
            other.start()
            other.join()

    def script(peer: Peer) -> None:
        peer.answer(peer.request(), b"x")
        peer.wait_for_end()

    with fake_server_v2(tmp_path, script) as server, Client(server.address, mode="copy", attempts=1) as client:
        assert client.read("/a") == b"x"

        def work() -> None:
            sys.settrace(interrupt)
            try:
                # With less than the client's time limit left, a thread looks before it sleeps in the socket.
                threads.run(client._pool, client._operations.stat(client._pool, "/b"), time.monotonic() + 10)
            except BaseException as error:
                raised.append(error)
            finally:
                sys.settrace(None)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)
    assert [str(error) for error in raised] == ["given up by another thread"]
