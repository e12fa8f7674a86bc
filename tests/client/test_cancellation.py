"""A shared connection when a caller gives up, or gets no reply: time is up, a task is cancelled, a signal
comes, the server dies. Nothing is left behind, and the others get theirs."""

import asyncio
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

from objmapper_client import AsyncClient, Client, ConnectionFailed, RequestTimeout
from tests.support.eventually import eventually
from tests.support.fake_server_v2 import FakeServerV2, HeldReplies, Peer, answer_all, fake_server_v2


def test_a_reader_whose_time_is_up_leaves_the_reading_to_another(tmp_path: Path) -> None:
    held = HeldReplies()
    with fake_server_v2(tmp_path, held) as server, Client(server.address, mode="copy", timeout=1.5) as client:
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(client.read, "/slow/1")
            assert held.has_slow.wait(10)
            time.sleep(1)  # the second one's time is up later
            second = threads.submit(client.read, "/slow/2")
            with pytest.raises(RequestTimeout):
                first.result(10)
            held.release.set()
            assert second.result(10) == b"slow"
        assert client.read("/x") == b"/x"
        # Nothing had been answered while the first one waited: its connection got no further requests.
        assert server.connections == 2


@pytest.mark.parametrize("mode", ["copy", "fdpass"])
def test_a_late_answer_is_thrown_away_and_the_connection_stays(tmp_path: Path, mode: str) -> None:
    held = HeldReplies()
    with (
        fake_server_v2(tmp_path, held) as server,
        Client(server.address, mode=mode, timeout=1.5) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        slow = threads.submit(client.open, "/slow")
        assert held.has_slow.wait(10)
        client.open("/x").close()
        with pytest.raises(RequestTimeout):
            slow.result(10)
        held.release.set()
        assert held.is_answered.wait(10)
        for _ in range(3):
            client.open("/x").close()
        assert server.connections == 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("mode", ["copy", "fdpass"])
def test_a_late_answer_to_a_task_is_thrown_away(tmp_path: Path, mode: str, run: Callable[[Any], None]) -> None:
    held = HeldReplies()

    async def use(address: str) -> None:
        async with AsyncClient(address, mode=mode, timeout=1.5) as client:
            slow = asyncio.create_task(client.open("/slow"))
            while not held.has_slow.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            (await client.open("/x")).close()
            with pytest.raises(RequestTimeout):
                await slow
            held.release.set()
            while not held.is_answered.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            for _ in range(3):
                (await client.open("/x")).close()

    with fake_server_v2(tmp_path, held) as server:
        run(use(server.address))
        assert server.connections == 1


def test_a_server_that_hangs_costs_one_timeout(tmp_path: Path) -> None:
    """Where nothing was answered since the request was sent, the next one has another connection."""
    held = HeldReplies()
    with (
        fake_server_v2(tmp_path, held) as server,
        Client(server.address, mode="copy", timeout=0.6) as client,
    ):
        for number in range(1, 4):
            with pytest.raises(RequestTimeout):
                client.read("/slow")
            assert server.connections == number
        assert client.read("/x") == b"/x"
        held.release.set()


def test_a_slow_answer_on_a_living_connection_costs_no_connection(tmp_path: Path) -> None:
    held = HeldReplies()
    with (
        fake_server_v2(tmp_path, held) as server,
        Client(server.address, mode="copy", timeout=1.5) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        slow = threads.submit(client.read, "/slow")
        assert held.has_slow.wait(10)
        assert client.read("/x") == b"/x"
        with pytest.raises(RequestTimeout):
            slow.result(10)
        held.release.set()
        assert client.read("/x") == b"/x"
        assert server.connections == 1


def kill_after(count: int) -> Callable[[Peer], None]:
    """The first connection ends after this number of replies, with requests pending; later ones work."""

    def script(peer: Peer) -> None:
        if peer.number:
            answer_all(peer)
        for _ in range(count):
            request = peer.request()
            peer.answer(request, request.uri.encode())
        peer.request()

    return script


def test_every_request_ends_when_the_server_dies(tmp_path: Path) -> None:
    with fake_server_v2(tmp_path, kill_after(20)) as server, Client(server.address, mode="copy") as client:
        with ThreadPoolExecutor(8) as threads:
            uris = [f"/{n}" for n in range(100)]
            assert list(threads.map(client.read, uris)) == [uri.encode() for uri in uris]
        assert server.connections == 2

    async def use(address: str) -> None:
        async with AsyncClient(address, mode="copy") as client:
            results = await asyncio.gather(*(client.read(f"/{n}") for n in range(9)))
            assert results == [f"/{n}".encode() for n in range(9)]

    with fake_server_v2(tmp_path, kill_after(4)) as server:
        asyncio.run(use(server.address))
        assert server.connections == 2


def test_a_server_that_is_gone_is_a_failed_connection_for_all(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        for _ in range(8):
            peer.request()

    with fake_server_v2(tmp_path, script) as server:
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
    async def use(server: FakeServerV2) -> None:
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
    with fake_server_v2(tmp_path, answer_all) as server:
        run(use(server))
    assert threading.active_count() == threads


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_cancelled_requests_that_fill_a_hung_connection_do_not_stop_the_next(
    tmp_path: Path, run: Callable[[Any], None]
) -> None:
    held = HeldReplies()

    async def use(server: FakeServerV2) -> None:
        async with AsyncClient(server.address, mode="copy", timeout=30) as client:
            tasks = [asyncio.create_task(client.read(f"/slow/{number}")) for number in range(4)]
            while len(held.slow) < 4:  # noqa: ASYNC110 - another thread adds them
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The time that a server has before the client takes it to hang.
            await asyncio.sleep(1.2)
            assert await client.read("/x") == b"/x"
            assert server.connections == 2

    with fake_server_v2(tmp_path, held, max_pipeline=4) as server:
        run(use(server))
        held.release.set()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_open_many_that_is_cancelled_leaves_nothing_open(tmp_path: Path, run: Callable[[Any], None]) -> None:
    held = HeldReplies()

    async def use(address: str) -> None:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.open_many(["/a", "/b", "/slow", "/c"]))
            while not held.has_slow.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.release.set()
            while not held.is_answered.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            (await client.open("/d")).close()

    with fake_server_v2(tmp_path, held) as server:
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
    held = HeldReplies()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with fake_server_v2(tmp_path, held) as server, Client(server.address) as client:
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
            held.release.set()
            client.open("/x").close()
    finally:
        signal.signal(signal.SIGUSR1, before)
