"""Objects over UDP with real sockets, as every verb of the client gives them, and what is refused."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from objmapper_client import (
    AsyncClient,
    Client,
    InvalidRequest,
    LocalProtocolError,
    Mode,
    ObjectNotFound,
    PermissionDenied,
    UnsupportedMode,
    UnsupportedOperation,
)
from objmapper_server import Config, Server
from tests.udp.conftest import SIZES


@pytest.mark.parametrize("name", SIZES)
def test_every_verb_gives_the_object(address: str, root: Path, name: str) -> None:
    content = (root / name).read_bytes()
    with Client(address) as client:
        assert client.read(f"/{name}") == content
        assert client.read(f"/{name}", offset=10, length=20) == content[10:30]
        assert client.read(f"/{name}", offset=len(content) + 5) == b""
        assert b"".join(client.stream(f"/{name}", chunk_size=70_000)) == content
        buffer = bytearray(len(content) + 5)
        assert client.readinto(f"/{name}", buffer) == len(content)
        assert buffer[: len(content)] == content
        with client.open(f"/{name}") as found:
            assert (found.size, found.read(), found.mode) == (len(content), content, Mode.COPY)
            assert found.view() == content
        assert len(client._pool) == 1


@pytest.mark.parametrize("name", SIZES)
def test_every_verb_gives_the_object_to_a_task(address: str, root: Path, name: str) -> None:
    content = (root / name).read_bytes()

    async def use() -> None:
        async with AsyncClient(address) as client:
            assert await client.read(f"/{name}") == content
            assert await client.read(f"/{name}", offset=10, length=20) == content[10:30]
            assert b"".join([chunk async for chunk in client.stream(f"/{name}", chunk_size=70_000)]) == content
            buffer = bytearray(len(content))
            assert await client.readinto(f"/{name}", buffer) == len(content)
            assert buffer == content
            with await client.open(f"/{name}") as found:
                assert found.read() == content

    asyncio.run(use())


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("/none", ObjectNotFound),
        ("/directory", PermissionDenied),
        ("/../x", InvalidRequest),
        ("", LocalProtocolError),
        ("/\ud800", LocalProtocolError),
        ("/too-large", UnsupportedMode),
    ],
)
def test_a_refusal_is_its_error_and_the_connection_stays(address: str, uri: str, kind: type[Exception]) -> None:
    with Client(address, max_connections=1) as client:
        client.read("/small")
        connection = client._pool._idle[0]
        for operation in (client.read, client.open, lambda uri: list(client.stream(uri))):
            with pytest.raises(kind):
                operation(uri)
        client.read("/small")
        assert client._pool._idle == [connection]


def test_an_object_that_is_too_large_is_refused_with_advice(address: str) -> None:
    with Client(address) as client, pytest.raises(UnsupportedMode, match=r"64 MiB.*use tcp://"):
        client.open("/too-large")


@pytest.mark.parametrize("mode", ["fdpass", "splice"])
def test_only_copies_come_over_udp(address: str, mode: str) -> None:
    with Client(address, mode=mode) as client:
        for operation in (client.read, client.open, lambda uri: list(client.stream(uri))):
            with pytest.raises(UnsupportedMode, match="only copy"):
                operation("/a")


def test_a_buffer_is_filled_as_far_as_it_goes(address: str, root: Path) -> None:
    content = (root / "small").read_bytes()
    buffer = bytearray(10)
    with Client(address) as client:
        assert client.readinto("/small", buffer) == 10
        assert buffer == content[:10]
        assert client.readinto("/small", buffer, offset=995) == 5
        assert buffer == content[995:] + content[5:10]
        assert client.readinto("/small", bytearray(), offset=5) == 0


def test_a_stream_of_a_range(address: str, root: Path) -> None:
    content = (root / "huge").read_bytes()
    with Client(address, max_connections=1) as client:
        for offset, length in [
            (0, 10),
            (1_000_000, 3_000_000),
            (len(content) - 5, 100),
            (len(content) + 5, None),
            (7, 0),
        ]:
            end = len(content) if length is None else offset + length
            assert b"".join(client.stream("/huge", offset=offset, length=length)) == content[offset:end]
        with pytest.raises(LocalProtocolError, match="chunk_size must be >= 1"):
            list(client.stream("/huge", chunk_size=0))


def test_a_stream_left_early_costs_nothing(address: str) -> None:
    with Client(address, max_connections=1) as client:
        for _ in range(5):
            for _chunk in client.stream("/huge", chunk_size=1000):
                break
        assert client.read("/small")


def test_metadata_match_those_of_other_transports(root: Path) -> None:
    with (
        Server(Config(root=root, udp="127.0.0.1:0", tcp="127.0.0.1:0")) as server,
        Client(server.addresses["udp"]) as client,
        Client(server.addresses["tcp"]) as other,
    ):
        for name in ("empty", "a", "huge", "too-large"):
            assert client.stat(f"/{name}") == other.stat(f"/{name}")._replace(mtime=0)
        with client.open("/a") as found, other.open("/a") as same:
            assert found.etag == same.etag != ""
        with pytest.raises(ObjectNotFound):
            client.stat("/none")


@pytest.mark.parametrize(
    ("operation", "use"),
    [
        ("put", lambda client: client.put("/new", b"content")),
        ("delete", lambda client: client.delete("/a")),
        ("list", lambda client: list(client.list())),
        ("open_many", lambda client: client.open_many(["/a"])),
    ],
)
def test_what_needs_a_stream_is_refused_with_advice(
    address: str, operation: str, use: Callable[[Client], object]
) -> None:
    with (
        Client(address) as client,
        pytest.raises(UnsupportedOperation, match=rf"{operation} is not supported over UDP.*tcp://"),
    ):
        use(client)


def test_what_needs_a_stream_is_refused_to_a_task_too(address: str) -> None:
    async def use() -> None:
        async with AsyncClient(address) as client:
            for refused in (client.put("/new", b"content"), client.delete("/a"), client.open_many(["/a"])):
                with pytest.raises(UnsupportedOperation, match="over UDP"):
                    await refused
            with pytest.raises(UnsupportedOperation, match="over UDP"):
                [entry async for entry in client.list()]
            assert (await client.stat("/small")).size == 1000

    asyncio.run(use())


def test_a_negative_range_is_the_callers_fault(address: str) -> None:
    with Client(address) as client, pytest.raises(LocalProtocolError, match="must be >= 0"):
        client.read("/small", offset=-1)


def test_sockets_close_on_exec(address: str) -> None:
    with Client(address) as client:
        client.read("/small")
        assert not client._pool._idle[0].socket.get_inheritable()
