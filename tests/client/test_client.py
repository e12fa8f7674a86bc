"""The clients against a real server: what a program sees."""

import asyncio
import inspect
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from objmapper_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidRequest,
    LocalProtocolError,
    Mode,
    ObjectNotFound,
    PermissionDenied,
    RequestTimeout,
    UnsupportedMode,
)
from objmapper_server import Config, Server

SIZES = {"empty": 0, "small": 1000, "large": 3_000_000}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for name, size in SIZES.items():
        (root / name).write_bytes(os.urandom(size))
    (root / "directory").mkdir()
    return root


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("run") / "o.sock"
    with Server(Config(root=root, unix=path, tcp="127.0.0.1:0")) as server:
        for address in server.addresses.values():
            with Client(address) as client:
                client.read("/small")
        yield server


@pytest.fixture(params=["unix", "tcp"])
def address(server: Server, request: pytest.FixtureRequest) -> str:
    return server.addresses[request.param]


@pytest.mark.parametrize("name", SIZES)
def test_every_verb_gives_the_object(address: str, root: Path, name: str) -> None:
    content = (root / name).read_bytes()
    with Client(address) as client:
        assert client.read(f"/{name}") == content
        assert client.read(f"/{name}", offset=10, length=20) == content[10:30]
        assert b"".join(client.stream(f"/{name}", chunk_size=4096)) == content
        buffer = bytearray(len(content) + 5)
        assert client.readinto(f"/{name}", buffer) == len(content)
        assert buffer[: len(content)] == content
        with client.open(f"/{name}") as found:
            assert (found.size, found.read(), found.uri) == (len(content), content, f"/{name}")
            assert found.view() == content
            assert found.mode is (Mode.FDPASS if address.startswith("unix") else Mode.COPY)


@pytest.mark.parametrize("name", SIZES)
def test_every_verb_gives_the_object_to_a_task(address: str, root: Path, name: str) -> None:
    content = (root / name).read_bytes()

    async def use() -> None:
        async with AsyncClient(address) as client:
            assert await client.read(f"/{name}") == content
            assert await client.read(f"/{name}", offset=10, length=20) == content[10:30]
            assert b"".join([chunk async for chunk in client.stream(f"/{name}", chunk_size=4096)]) == content
            buffer = bytearray(len(content))
            assert await client.readinto(f"/{name}", buffer) == len(content)
            assert buffer == content
            with await client.open(f"/{name}") as found:
                assert found.read() == content

    asyncio.run(use())


def test_the_two_clients_have_the_same_verbs() -> None:
    def verbs(client: type) -> dict[str, list[tuple[str, object, object]]]:
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]
            for name, member in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
        }

    assert verbs(Client) == verbs(AsyncClient)
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    for name in verbs(Client):
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__


@pytest.mark.parametrize(
    ("uri", "kind"),
    [("/none", ObjectNotFound), ("/directory", PermissionDenied), ("/../x", InvalidRequest), ("", LocalProtocolError)],
)
def test_a_refusal_is_its_error_and_the_connection_stays(address: str, uri: str, kind: type[Exception]) -> None:
    with Client(address, max_connections=1) as client:
        client.read("/small")
        connection = client._pool._idle[0]
        with pytest.raises(kind):
            client.read(uri)
        client.read("/small")
        assert client._pool._idle == [connection]


def test_a_missing_object_is_a_missing_file(address: str) -> None:
    with Client(address) as client, pytest.raises(FileNotFoundError) as caught:
        client.read("/none")
    assert caught.value.errno == 2


def test_descriptors_do_not_pass_over_tcp(server: Server) -> None:
    with Client(server.addresses["tcp"], mode="fdpass") as client, pytest.raises(UnsupportedMode, match="Unix"):
        client.read("/small")


def test_nobody_there_is_a_failed_connection(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="not reached"):
        Client(tmp_path / "none").read("/x")
    with pytest.raises(ConnectionFailed, match="unknown host"):
        Client("tcp://no-such-host.invalid:1").read("/x")


def test_descriptors_close_on_exec(address: str) -> None:
    with Client(address) as client, client.open("/small") as found:
        assert not os.get_inheritable(found.fileno())
        assert not any(connection.socket.get_inheritable() for connection in client._pool._idle)


def test_threads_share_a_client(address: str, root: Path) -> None:
    content = (root / "small").read_bytes()
    with Client(address, max_connections=4) as client, ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda _: client.read("/small") == content, range(400)))
        assert all(results)
        assert len(client._pool) <= 4


def test_tasks_share_a_client(address: str, root: Path) -> None:
    content = (root / "small").read_bytes()

    async def use() -> None:
        async with AsyncClient(address, max_connections=4) as client:
            results = await asyncio.gather(*(client.read("/small") for _ in range(400)))
            assert all(result == content for result in results)
            assert len(client._pool) <= 4

    asyncio.run(use())


def test_a_pool_that_is_used_up_waits_and_then_says_so(address: str) -> None:
    with Client(address, max_connections=1, timeout=0.2, mode="copy") as client:
        chunks = client.stream("/large", chunk_size=1000)
        next(chunks)
        with pytest.raises(RequestTimeout, match="max_connections"):
            client.read("/small")
        chunks.close()  # type: ignore[attr-defined]
        assert client.read("/small")


def test_a_stream_left_early_costs_its_connection_alone(address: str) -> None:
    with Client(address, max_connections=1, mode="copy") as client:
        for _ in range(5):
            for _chunk in client.stream("/large", chunk_size=1000):
                break
        assert client.read("/small")


def test_a_cancelled_task_leaves_nothing_behind(address: str, root: Path) -> None:
    async def use() -> None:
        async with AsyncClient(address, mode="copy") as client:
            for _ in range(20):
                task = asyncio.create_task(client.read("/large"))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await client.read("/large") == (root / "large").read_bytes()

    asyncio.run(use())


def test_a_client_travels_by_its_address(address: str) -> None:
    with Client(address, timeout=7, mode="copy") as client:
        client.read("/small")
        with pickle.loads(pickle.dumps(client)) as other:
            assert (other.address, other.timeout, other.mode) == (client.address, 7, Mode.COPY)
            assert other.read("/small") == client.read("/small")
    assert "timeout=7" in repr(client)
    assert address in repr(client)


def test_a_forked_child_makes_connections_of_its_own(address: str, root: Path) -> None:
    content = (root / "small").read_bytes()
    with Client(address) as client:
        assert client.read("/small") == content
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if client.read("/small") == content and len(client._pool) == 1 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.read("/small") == content


def test_a_connection_that_the_server_closed_is_replaced(root: Path, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", idle_timeout=0.1)
    with Server(config) as server, Client(server.addresses["unix"], attempts=1) as client:
        client.read("/small")
        closed = threading.Event()
        while not closed.is_set():
            if server.statistics().transports["unix"].connections == 0:
                closed.set()
        assert client.read("/small") == (root / "small").read_bytes()
