"""What the client makes of a server that ends before, or right after, the two have agreed on a version."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from objmapper_client import AsyncClient, Client, ConnectionFailed
from objmapper_client.protocol.hello import Capability, encode_hello_ack
from objmapper_client.protocol.v2_requests import encode_close
from objmapper_server import Config, Server
from tests.support.both_clients import call_in_task, call_in_thread
from tests.support.unix_listener import serve_connections

CLOSING = encode_hello_ack(Capability(0x103), 1000, 1) + encode_close(3)


@contextmanager
def front(directory: Path, answers: list[bytes], behind: Path) -> Iterator[str]:
    """Answers the first connections with these bytes, and closes them; then the server `behind` has the address."""
    path = directory / "front.sock"
    left = list(answers)

    def serve(connection: socket.socket) -> None:
        with connection:
            if not left:
                return
            connection.settimeout(20)
            connection.recv(5000)
            answer = left.pop(0)
            if not left:
                # Before the client sees the end, so that its next connection goes there.
                os.symlink(behind, directory / "next")
                os.replace(directory / "next", path)
            connection.sendall(answer)

    with serve_connections(path, serve) as address:
        yield address


@pytest.fixture
def socket_of_server(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "root"
    root.mkdir()
    (root / "x").write_bytes(b"content")
    with Server(Config(root=root, unix=tmp_path / "o.sock", writable=True)):
        yield tmp_path / "o.sock"


def use_in_thread(address: str, first: str) -> None:
    with Client(address) as client:
        for _ in range(5):
            try:
                found = getattr(client, first)("/x")
            except ConnectionFailed:
                continue
            if first == "open":
                found.close()
            break
        assert client.stat("/x").size == 7
        assert [entry.uri for entry in client.list("/")] == ["/x"]
        assert client.put("/y", b"12").size == 2
        client.delete("/y")
        assert client.read("/x") == b"content"


async def use_in_task(address: str, first: str) -> None:
    async with AsyncClient(address) as client:
        for _ in range(5):
            try:
                found = await getattr(client, first)("/x")
            except ConnectionFailed:
                continue
            if first == "open":
                found.close()
            break
        assert (await client.stat("/x")).size == 7
        assert [entry.uri async for entry in client.list("/")] == ["/x"]
        assert (await client.put("/y", b"12")).size == 2
        await client.delete("/y")
        assert await client.read("/x") == b"content"


def use(kind: str, address: str, first: str) -> None:
    if kind == "thread":
        use_in_thread(address, first)
    else:
        asyncio.run(use_in_task(address, first))


@pytest.mark.parametrize("kind", ["thread", "task"])
@pytest.mark.parametrize("first", ["read", "open", "stat"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_hang_up_before_the_hello_is_answered_is_not_taken_for_version_1(
    tmp_path: Path, socket_of_server: Path, count: int, first: str, kind: str
) -> None:
    with front(tmp_path, [b""] * count, socket_of_server) as address:
        use(kind, address, first)


@pytest.mark.parametrize("kind", ["thread", "task"])
@pytest.mark.parametrize("first", ["read", "open", "stat"])
def test_a_server_that_agrees_and_closes_at_once_is_tried_again(
    tmp_path: Path, socket_of_server: Path, first: str, kind: str
) -> None:
    with front(tmp_path, [CLOSING] * 2, socket_of_server) as address:
        call = call_in_thread if kind == "thread" else call_in_task
        found = call(address, (first, "/x"))[0]
        if first == "open":
            found.close()
    with front(tmp_path, [CLOSING] * 3, socket_of_server) as address:
        use(kind, address, first)
