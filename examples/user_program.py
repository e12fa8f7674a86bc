"""What a program that uses objmapper looks like to a type checker: every verb of both clients, with the type it gives.

``python examples/user_program.py ADDRESS`` runs it against a writable server; it stores, reads and removes objects
below /example/. It is also what mypy --strict and pyright are shown.
"""

# pyright: strict

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type

from objmapper_client import (
    AsyncClient,
    Client,
    Conflict,
    Entry,
    Mode,
    Object,
    ObjectNotFound,
    ObjmapperError,
    RequestTimeout,
    Stat,
)
from objmapper_server import Concurrency, Config, Server


def rows(count: int) -> Iterator[bytes]:
    """Pieces of an object that is made as it is sent."""
    for number in range(count):
        yield b"%08d\n" % number


async def rows_to_come(count: int) -> AsyncIterator[bytes]:
    """The same, of something that is waited for."""
    for row in rows(count):
        await asyncio.sleep(0)
        yield row


def with_threads(address: str) -> int:
    """Every verb of `Client`. Returns the bytes of what it stored."""
    sent: list[int] = []
    with Client(address, timeout=10.0, mode=Mode.COPY) as client:
        stored = client.put("/example/rows", rows(1000), length=9000, make_parents=True, progress=sent.append)
        assert_type(stored, Stat)
        try:
            client.put("/example/rows", b"another", if_none_match="*")
        except Conflict as error:
            print(f"kept: {error}")
        with client.open("/example/rows", mode="copy") as found:
            assert_type(found, Object)
            assert_type(found.size, int)
            assert_type(found.view(), memoryview)
            assert_type(found.read(9), bytes)
            child = subprocess.run(["cat"], stdin=found.fileno(), capture_output=True, check=True)
            with os.fdopen(found.detach(), "rb") as file:
                # Both processes share one open file and its offset: the child has read it to its end.
                assert (child.stdout[:9], file.read()) == (b"00000001\n", b"")
        buffer = bytearray(9)
        assert_type(client.readinto("/example/rows", buffer, offset=9), int)
        assert_type(client.read("/example/rows", offset=0, length=9), bytes)
        total = 0
        for piece in client.stream("/example/rows", chunk_size=4096):
            total += len(assert_type(piece, bytes))
        for each in client.open_many(["/example/rows", "/example/none"]):
            assert_type(each, Object | ObjmapperError)
            if isinstance(each, Object):
                each.close()
            elif not isinstance(each, ObjectNotFound):
                raise each
        for entry in client.list("/example/"):
            assert_type(entry, Entry)
            print(entry.uri, entry.size)
        client.delete("/example/rows", if_match=client.stat("/example/rows").etag)
    assert sent[-1] == total
    return total


async def with_tasks(address: str) -> int:
    """Every verb of `AsyncClient`. Returns the bytes of what it stored."""
    async with AsyncClient(address) as client:
        stored = await client.put("/example/rows", rows_to_come(1000), length=9000, make_parents=True)
        assert_type(stored, Stat)
        first, second = await asyncio.gather(client.read("/example/rows"), client.stat("/example/rows"))
        assert_type(first, bytes)
        assert_type(second, Stat)
        try:
            async with asyncio.timeout(5):
                found = await client.open("/example/rows")
        except (TimeoutError, RequestTimeout):
            return 0
        with found:
            assert found.read() == first
        assert_type(await client.readinto("/example/rows", bytearray(10)), int)
        total = 0
        async for piece in client.stream("/example/rows"):
            total += len(assert_type(piece, bytes))
        for each in await client.open_many(["/example/rows"]):
            assert_type(each, Object | ObjmapperError)
            if isinstance(each, Object):
                each.close()
        async for entry in client.list("/example/"):
            assert_type(entry, Entry)
        await client.delete("/example/rows")
    return total


def with_a_server_of_ones_own(root: Path) -> list[str]:
    """A server inside this program."""
    with Server(Config(root=root, unix=root.parent / "socket", admin=None, writable=True)) as server:
        server.set_concurrency(unix=Concurrency.EPOLL)
        with_threads(server.addresses["unix"])
        assert_type(server.statistics().requests_total, int)
        return sorted(server.addresses)


if __name__ == "__main__":
    print(with_threads(sys.argv[1]), asyncio.run(with_tasks(sys.argv[1])))
