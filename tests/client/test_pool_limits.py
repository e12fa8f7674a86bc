"""Connections beside the shared one: a large content has one of its own, and their number is limited."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from objmapper_client import AsyncClient, Client, RequestTimeout
from objmapper_client.protocol.v2_requests import Operation
from tests.support.fake_server_v2 import Peer, fake_server_v2


def send_large_contents(peer: Peer) -> None:
    while True:
        request = peer.request()
        peer.answer(request, bytes(1 << 20) if request.uri == "/large" else request.uri.encode())


def test_a_large_content_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """While it comes, everything else goes on; a further one waits for the place."""
    begun, release = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.uri == "/large" and request.operation is Operation.COPY:
                begun.set()
                release.wait(20)
                peer.answer(request, bytes(1 << 20))
            else:
                peer.answer(request, request.uri.encode())

    with (
        fake_server_v2(tmp_path, script) as server,
        Client(server.address, mode="copy", max_connections=2, timeout=0.8) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        patient = Client(server.address, mode="copy", max_connections=2)
        large = threads.submit(lambda: sum(map(len, patient.stream("/large"))))
        assert begun.wait(10)
        assert patient.read("/small") == b"/small"
        with contextlib.closing(client.stream("/large")) as chunks, pytest.raises(RequestTimeout, match="no answer"):
            next(chunks)
        release.set()
        assert large.result(10) == 1 << 20
        assert len(patient._pool) == 2
        patient.close()


@pytest.mark.parametrize("most", [1, 2])
def test_a_request_waits_for_a_free_connection(tmp_path: Path, most: int) -> None:
    with (
        fake_server_v2(tmp_path, send_large_contents) as server,
        Client(server.address, mode="copy", max_connections=most, timeout=0.8) as client,
    ):
        chunks = client.stream("/large", chunk_size=1000)
        next(chunks)
        with pytest.raises(RequestTimeout, match="max_connections"):
            next(client.stream("/large"))
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(lambda: sum(map(len, client.stream("/large"))))
            while not client._pool._exclusive_waiters:
                time.sleep(0.001)
            for _ in chunks:
                pass
            assert waiting.result(10) == 1 << 20
        assert client.read("/small") == b"/small"
        assert len(client._pool) <= most


def test_one_connection_alone_carries_both_in_turn(tmp_path: Path) -> None:
    with (
        fake_server_v2(tmp_path, send_large_contents) as server,
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

    with fake_server_v2(tmp_path, send_large_contents) as server:
        asyncio.run(use(server.address))
        assert server.connections == 1
