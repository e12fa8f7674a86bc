"""Streams: what is truncated meanwhile is an error, leaving one early waits for nothing, an event loop goes on."""

import asyncio
import gc
import os
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import AsyncClient, Client, Conflict, RequestTimeout
from objmapper_client.object import Object
from objmapper_client.protocol.v2_responses import Metadata, encode_response
from objmapper_server import Config, Server
from tests.support.both_clients import Caller
from tests.support.eventually import eventually
from tests.support.fake_server_v2 import Peer, fake_server_v2

SIZE = 5_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    path = tmp_path / "root" / "o"
    path.write_bytes(bytes(range(250)) * (SIZE // 250))
    return path


@pytest.fixture
def unix(file: Path, tmp_path: Path) -> Iterator[str]:
    with Server(Config(root=file.parent, unix=tmp_path / "o.sock", admin=None)) as server:
        yield server.addresses["unix"]


@pytest.mark.parametrize("piece", [1000, 1 << 20])
def test_a_file_that_is_truncated_while_it_is_streamed_is_an_error(unix: str, file: Path, piece: int) -> None:
    with Client(unix) as client:
        stream = client.stream("/o", chunk_size=piece)
        assert len(next(stream)) == piece
        os.truncate(file, piece + 10)
        with pytest.raises(Conflict, match=f"truncated while it was read: {piece + 10} of {SIZE}"):
            list(stream)

    async def use() -> None:
        os.truncate(file, SIZE)
        async with AsyncClient(unix) as client:
            stream = client.stream("/o", chunk_size=piece)
            assert len(await anext(stream)) == piece
            os.truncate(file, piece + 10)
            with pytest.raises(Conflict, match="truncated"):
                async for _ in stream:
                    pass

    asyncio.run(use())


def test_a_file_that_grows_is_streamed_as_it_was(unix: str, file: Path) -> None:
    with Client(unix) as client:
        stream = client.stream("/o")
        first = next(stream)
        os.truncate(file, SIZE + 1000)
        assert len(first) + sum(map(len, stream)) == SIZE


@pytest.mark.parametrize("left", [0, 5, 1000, 4_000_000])
@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (10, SIZE - 10), (0, 2000), (10, 990), (3_000_000, 2000)])
def test_a_file_that_is_truncated_between_open_and_read_is_an_error(
    call: Caller, unix: str, file: Path, monkeypatch: pytest.MonkeyPatch, left: int, offset: int, length: int
) -> None:
    content = file.read_bytes()
    examine = Object._read_size

    def truncate_after_opening(found: Object) -> None:
        examine(found)
        os.truncate(file, left)

    # The client has asked the kernel for the size, and has read nothing yet.
    monkeypatch.setattr(Object, "_read_size", truncate_after_opening)
    buffer = bytearray(length)
    calls = [("read", "/o", {"offset": offset, "length": length}), ("readinto", "/o", buffer, {"offset": offset})]
    if length == SIZE - offset:
        calls.append(("read", "/o", {"offset": offset}))
    for operation in calls:
        file.write_bytes(content)
        if left >= offset + length:
            assert call(unix, operation) == [
                length if operation[0] == "readinto" else content[offset : offset + length]
            ]
            continue
        came = max(0, left - offset)
        with pytest.raises(Conflict, match=f"^/o: .* truncated while it was read: {came} of {length} bytes arrived"):
            call(unix, operation)
    assert buffer == content[offset : offset + length] or left < offset + length


def test_an_object_that_is_truncated_is_not_saved(unix: str, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.write_bytes(b"before")
    with Client(unix) as client, client.open("/o") as found:
        os.truncate(file, 1_000_000)
        with pytest.raises(Conflict, match=f"1000000 of {SIZE}"):
            found.save(target)
        # What is safe then: fewer bytes, and no signal.
        assert len(found.read()) == 1_000_000
        assert found.pread(10, 2_000_000) == b""
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "o.sock", "o.sock.lock", "root"]


def tells(peer: Peer) -> None:
    """Sends the beginning of a content of 100,000 bytes, and no more."""
    request = peer.request()
    metadata = Metadata(size=100_000, mtime=7, etag="00000000000000ee")
    peer.send(encode_response(request.id, 0, 100_000, metadata) + bytes(1000))
    peer.wait_for_end()


def test_leaving_a_stream_early_waits_for_nothing(tmp_path: Path) -> None:
    with fake_server_v2(tmp_path, tells) as server, Client(server.address, mode="copy", timeout=60) as client:
        for leave in ("close", "drop", "throw"):
            start = time.monotonic()
            stream = client.stream("/x")
            assert next(stream)
            if leave == "close":
                stream.close()
            elif leave == "throw":
                with pytest.raises(KeyError):
                    stream.throw(KeyError())
            else:
                cycle = [stream]
                cycle.append(cycle)  # type: ignore[arg-type] # the collector's work
                del cycle, stream
                gc.collect()
            assert time.monotonic() - start < 20, leave
        assert len(client._pool) == 0


def test_a_task_leaves_a_stream_early_and_waits_for_nothing(tmp_path: Path) -> None:
    async def use(address: str) -> None:
        async with AsyncClient(address, mode="copy", timeout=60) as client:
            async for _ in client.stream("/x"):
                break
            gc.collect()
            await asyncio.sleep(0.01)
            stream = client.stream("/x")
            await anext(stream)
            await stream.aclose()

    with fake_server_v2(tmp_path, tells) as server:
        start = time.monotonic()
        asyncio.run(use(server.address))
        assert time.monotonic() - start < 30


def test_a_stream_that_is_left_late_keeps_its_connection(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.answer(peer.request(), bytes(100_000))

    with fake_server_v2(tmp_path, script) as server, Client(server.address, mode="copy") as client:
        for _ in range(3):
            stream = client.stream("/x", chunk_size=99_999)
            seen = 0
            while seen < 99_999:
                seen += len(next(stream))
            stream.close()
        assert server.connections <= 2


def test_the_collector_may_close_a_stream_in_the_middle_of_the_pool(tmp_path: Path) -> None:
    """As where it runs in a thread that has the pool's lock."""
    with fake_server_v2(tmp_path, tells) as server, Client(server.address, mode="copy", timeout=60) as client:
        stream = client.stream("/x")
        next(stream)
        with client._pool._lock:
            del stream
            gc.collect()


@pytest.mark.parametrize("piece", [4096, 1 << 20])
def test_a_stream_of_a_file_lets_the_loop_go_on(unix: str, file: Path, piece: int) -> None:
    os.truncate(file, 64 << 20)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def use() -> None:
        async with AsyncClient(unix) as client:
            beside = asyncio.create_task(others())
            length = 0
            async for chunk in client.stream("/o", chunk_size=piece):
                length += len(chunk)
            assert length == 64 << 20
            beside.cancel()

    asyncio.run(use())
    # At least one for each MiB.
    assert turns >= 64


def test_a_client_that_is_closed_while_it_connects_leaves_nothing(unix: str) -> None:
    async def use() -> None:
        client = AsyncClient(unix)
        for operation in (client.stat("/o"), client.read("/o", mode="copy"), client.open_many(["/o"])):
            request = asyncio.create_task(operation)
            await asyncio.sleep(0)
            pool = client._pool
            assert pool is not None
            await client.close()
            found = await request
            if isinstance(found, list):
                assert isinstance(found[0], Object)
                found[0].close()
            assert len(pool) == 0

    asyncio.run(use())


@pytest.mark.parametrize("is_running", [True, False])
def test_a_client_that_is_dropped_without_a_close_is_closed_and_says_so(unix: str, is_running: bool) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def use() -> "weakref.ref[AsyncClient]":
        before = descriptors()
        client = AsyncClient(unix)
        await client.stat("/o")
        gone = weakref.ref(client)
        if is_running:
            with pytest.warns(ResourceWarning, match="unclosed AsyncClient"):
                del client
                gc.collect()
            await asyncio.sleep(0)
            # The server, in this process too, closes its end in a thread of its own.
            assert eventually(lambda: descriptors() <= before)
        else:
            kept.append(client)
        return gone

    kept: list[AsyncClient] = []
    loop = asyncio.new_event_loop()
    try:
        gone = loop.run_until_complete(use())
        if kept:
            with pytest.warns(ResourceWarning, match="unclosed AsyncClient"):
                kept.clear()
                gc.collect()
        assert gone() is None
    finally:
        loop.close()


def test_a_client_that_is_closed_or_never_used_says_nothing(unix: str) -> None:
    async def use() -> None:
        AsyncClient(unix)
        client = AsyncClient(unix)
        await client.stat("/o")
        await client.close()
        del client
        gc.collect()

    asyncio.run(use())
    with pytest.raises(ValueError, match="must be >= 1, got 8 and 0"):
        AsyncClient(unix, attempts=0)
    gc.collect()


def test_where_warnings_are_errors_an_object_is_closed_all_the_same(unix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(found.exc_type))
    with Client(unix) as client:
        found = client.open("/o")
        number = found.fileno()
        del found
        gc.collect()
    assert seen == [ResourceWarning]
    assert eventually(lambda: not os.path.exists(f"/proc/self/fd/{number}"))


def test_a_silent_server_still_costs_the_timeout(tmp_path: Path) -> None:
    with fake_server_v2(tmp_path, tells) as server:
        client = Client(server.address, mode="copy", timeout=0.2)
        with client, pytest.raises(RequestTimeout):
            list(client.stream("/x"))
