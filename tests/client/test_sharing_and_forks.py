"""The life of a client, whatever its transport: threads and tasks share it, children inherit it, others get a copy."""

import asyncio
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from objmapper_client import AsyncClient, Client, LocalProtocolError, Mode
from objmapper_server import Config, Server

SMALL, LARGE = os.urandom(1000), os.urandom(3_000_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root, unix = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run") / "o.sock"
    (root / "small").write_bytes(SMALL)
    (root / "large").write_bytes(LARGE)
    with Server(Config(root=root, unix=unix, tcp="127.0.0.1:0", udp="127.0.0.1:0")) as server:
        for address in server.addresses.values():
            with Client(address) as client:
                client.read("/small")
        yield server


@pytest.fixture(params=["unix", "tcp", "udp"])
def address(server: Server, request: pytest.FixtureRequest) -> str:
    return server.addresses[request.param]


def test_threads_share_a_client(address: str) -> None:
    with Client(address, max_connections=4) as client, ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda _: client.read("/small") == SMALL, range(400)))
        assert len(client._pool) <= 4


@pytest.mark.parametrize(("uri", "content", "times"), [("/small", SMALL, 400), ("/large", LARGE, 20)])
def test_tasks_share_a_client(address: str, uri: str, content: bytes, times: int) -> None:
    async def use() -> None:
        async with AsyncClient(address, max_connections=4) as client:
            results = await asyncio.gather(*(client.read(uri) for _ in range(times)))
            assert all(result == content for result in results)
            assert client._pool is not None
            assert len(client._pool) <= 4

    asyncio.run(use())


def test_a_cancelled_task_leaves_nothing_behind(address: str) -> None:
    async def use() -> None:
        async with AsyncClient(address, mode="copy") as client:
            for _ in range(20):
                task = asyncio.create_task(client.read("/large"))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await client.read("/large") == LARGE

    asyncio.run(use())


def test_a_client_travels_by_its_address(address: str) -> None:
    with Client(address, timeout=7, mode="copy") as client:
        client.read("/small")
        with pickle.loads(pickle.dumps(client)) as other:
            assert (other.address, other.timeout, other.mode) == (client.address, 7, Mode.COPY)
            assert other.read("/small") == client.read("/small")
    assert "timeout=7" in repr(client)
    assert address in repr(client)


def test_a_stream_across_a_fork_says_so(address: str) -> None:
    with Client(address, mode="copy", timeout=20) as client:
        stream = client.stream("/large", chunk_size=10_000)
        first = next(stream)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                try:
                    next(stream)
                except LocalProtocolError as error:
                    code = 0 if "before a fork" in str(error) and client.read("/small") == SMALL else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert first + b"".join(stream) == LARGE


@pytest.mark.parametrize(("uri", "content"), [("/small", SMALL), ("/large", LARGE)])
def test_a_forked_child_makes_connections_of_its_own(address: str, uri: str, content: bytes) -> None:
    with Client(address) as client:
        assert client.read(uri) == content
        connections = len(client._pool)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if client.read(uri) == content and len(client._pool) == connections else 2
            finally:
                os._exit(code)
        # At the same time as the child: over one socket, each would get pieces of the other's.
        assert client.read(uri) == content
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.read(uri) == content
