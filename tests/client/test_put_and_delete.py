"""The rest of an object's life, against a real server: stat, list, put, delete, and the conditions."""

import asyncio
import io
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import (
    AsyncClient,
    Client,
    Conflict,
    ConnectionFailed,
    LocalProtocolError,
    ObjectNotFound,
    OutcomeUnknown,
    PermissionDenied,
    RequestTimeout,
    ServerBusy,
)
from objmapper_client.protocol.v2_requests import encode_close
from objmapper_server import Config, Server
from tests.support.both_clients import Call, Caller
from tests.support.eventually import eventually
from tests.support.fake_server_v2 import Peer, answer_all, fake_server_v2

LARGE = os.urandom(3_000_000)


class Unseekable(io.RawIOBase):
    """A file without a descriptor, a position or a size, as a decompressor is."""

    def __init__(self, content: bytes) -> None:
        self._left = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._left.readinto(buffer)


def sources(tmp_path: Path, content: bytes) -> dict[str, Any]:
    """The same content in every form that can be put."""
    path = tmp_path / "source"
    path.write_bytes(b"before" + content)
    alone = tmp_path / "alone"
    alone.write_bytes(content)
    from_position = path.open("rb")
    from_position.read(6)
    return {
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "path": alone,
        "name": str(alone),
        "file": alone.open("rb"),
        "file from its position on": from_position,
        "BytesIO": io.BytesIO(content),
        "unseekable file": Unseekable(content),
        "iterator": iter([content[:10], b"", content[10:]]),
        "list": [content[:10], content[10:]],
    }


@pytest.mark.parametrize("content", [b"", b"small", LARGE, LARGE * 4], ids=["empty", "small", "large", "spooled"])
def test_whatever_holds_bytes_can_be_put(
    call: Caller, address: str, root: Path, tmp_path: Path, content: bytes
) -> None:
    for name, source in sources(tmp_path, content).items():
        stored = call(address, ("put", "/x", source))[0]
        assert (root / "x").read_bytes() == content, name
        assert (stored.uri, stored.size, len(stored.etag)) == ("/x", len(content), 16)
        assert stored == call(address, ("stat", "/x"))[0]
        if hasattr(source, "close"):
            source.close()


def test_an_object_that_came_can_be_put_elsewhere(address: str, root: Path) -> None:
    (root / "a").write_bytes(LARGE)
    with Client(address) as client, client.open("/a") as found:
        client.put("/b", found)
    assert (root / "b").read_bytes() == LARGE


def test_async_iterators_are_put(address: str, root: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(LARGE), 100_000):
            yield LARGE[at : at + 100_000]
            await asyncio.sleep(0)

    async def use() -> None:
        async with AsyncClient(address) as client:
            assert (await client.put("/a", pieces())).size == len(LARGE)
            assert (await client.put("/b", pieces(), length=len(LARGE))).size == len(LARGE)
            for wrong in (len(LARGE) - 1, len(LARGE) + 1):
                with pytest.raises(LocalProtocolError, match="does not have"):
                    await client.put("/c", pieces(), length=wrong)

    asyncio.run(use())
    assert (root / "a").read_bytes() == LARGE == (root / "b").read_bytes()
    assert not (root / "c").exists()


@pytest.mark.parametrize("wrong", [io.StringIO("text"), 5, None, ["text"]])
def test_what_holds_no_bytes_is_a_type_error(call: Caller, address: str, wrong: object) -> None:
    with pytest.raises(TypeError):
        call(address, ("put", "/x", wrong))


def test_progress_tells_the_bytes_so_far(call: Caller, address: str, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    for source in (LARGE, path, iter([LARGE[:1000], LARGE[1000:]]), b"small"):
        reported: list[int] = []
        stored = call(address, ("put", "/x", source, {"progress": reported.append}))[0]
        assert reported == sorted(reported)
        assert reported[-1] == stored.size


def test_a_condition_that_does_not_hold_is_a_conflict(call: Caller, address: str, root: Path) -> None:
    first = call(address, ("put", "/x", b"1", {"if_none_match": "*"}))[0]
    for content in (b"2", LARGE):
        with pytest.raises(Conflict):
            call(address, ("put", "/x", content, {"if_none_match": "*"}))
        with pytest.raises(Conflict):
            call(address, ("put", "/x", content, {"if_match": "0123456789abcdef"}))
    with pytest.raises(Conflict):
        call(address, ("delete", "/x", {"if_match": "0123456789abcdef"}))
    assert (root / "x").read_bytes() == b"1"
    second = call(address, ("put", "/x", b"22", {"if_match": first.etag}))[0]
    assert second.etag != first.etag
    call(address, ("delete", "/x", {"if_match": second.etag}))
    assert not (root / "x").exists()


def test_directories_are_made_where_that_is_wanted(call: Caller, address: str, root: Path) -> None:
    with pytest.raises(ObjectNotFound):
        call(address, ("put", "/a/b/c", b"1"))
    call(address, ("put", "/a/b/c", b"1", {"make_parents": True}))
    assert (root / "a/b/c").read_bytes() == b"1"


def test_what_was_deleted_is_gone(call: Caller, address: str) -> None:
    call(address, ("put", "/x", b"1"), ("delete", "/x"))
    for verb in ("delete", "stat", "read"):
        with pytest.raises(ObjectNotFound):
            call(address, (verb, "/x"))


def test_lists_are_in_order_whole_and_of_what_begins_so(call: Caller, address: str, root: Path) -> None:
    for number in range(250):
        (root / f"o{number:03}").write_bytes(bytes(number))
    (root / "sub").mkdir()
    (root / "sub/x").write_bytes(b"1")
    everything = call(address, ("list",))[0]
    assert [(entry.uri, entry.size) for entry in everything] == [
        *((f"/o{number:03}", number) for number in range(250)),
        ("/sub/x", 1),
    ]
    assert everything == call(address, ("list", "/", {"page_size": 7}))[0]
    assert [entry.uri for entry in call(address, ("list", "/o12"))[0]] == [f"/o12{digit}" for digit in range(10)]
    assert call(address, ("list", "/none"))[0] == []
    with pytest.raises(LocalProtocolError, match="page_size must be >= 1"):
        call(address, ("list", "/", {"page_size": 0}))


def test_a_list_is_left_early_at_no_cost(address: str, root: Path) -> None:
    for number in range(20):
        (root / f"{number:02}").touch()
    with Client(address) as client:
        for entry in client.list(page_size=5):
            if entry.uri == "/07":
                break
        assert client.stat("/07").size == 0


def test_a_server_that_is_read_only_says_so(call: Caller, root: Path, tmp_path: Path) -> None:
    (root / "x").write_bytes(b"1")
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    with Server(Config(root=root, unix=tmp_path / "r.sock", tcp="127.0.0.1:0")) as server:
        for address in server.addresses.values():
            for content in (b"small", LARGE, path, iter([LARGE, LARGE])):
                with pytest.raises(PermissionDenied):
                    call(address, ("put", "/x", content))
            with pytest.raises(PermissionDenied):
                call(address, ("delete", "/x"))
    assert (root / "x").read_bytes() == b"1"


def test_a_refusal_ends_a_large_put_before_all_was_sent(call: Caller, tmp_path: Path) -> None:
    reported: list[int] = []

    def script(peer: Peer) -> None:
        request = peer.request()
        peer.refuse(request, 0x07, "word")
        peer.wait_for_end()

    with fake_server_v2(tmp_path, script) as server, pytest.raises(Conflict, match="word"):
        call(server.address, ("put", "/x", bytes(100 << 20), {"progress": reported.append}))
    assert len(reported) < 100


def test_a_put_is_not_repeated_where_it_may_have_been_executed(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.content(peer.request())

    (tmp_path / "file").write_bytes(LARGE)
    calls: list[Call] = [
        ("put", "/x", b"1"),
        ("put", "/x", LARGE),
        ("put", "/x", tmp_path / "file"),
        ("delete", "/x"),
        # A repetition would meet the first one's success as a conflict.
        ("put", "/x", b"1", {"if_match": "e"}),
        ("put", "/x", LARGE, {"if_none_match": "*"}),
        ("delete", "/x", {"if_match": "e"}),
    ]
    for verb in calls:
        with fake_server_v2(tmp_path, script) as server, pytest.raises(OutcomeUnknown, match="unknown") as caught:
            call(server.address, verb)
        assert isinstance(caught.value, ConnectionFailed)
        assert (caught.value.operation.split("_")[0], caught.value.uri) == (verb[0], "/x")
        assert server.connections == 1


def test_a_put_whose_time_is_up_has_an_unknown_outcome(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.content(peer.request())
        peer.wait_for_end()

    for verb in (("put", "/x", b"1"), ("put", "/x", LARGE[:100_000]), ("delete", "/x")):
        with fake_server_v2(tmp_path, script) as server, pytest.raises(OutcomeUnknown) as caught:
            call(server.address, verb, timeout=2)
        assert isinstance(caught.value, RequestTimeout)


def test_a_delete_that_was_sent_before_the_close_came_is_not_repeated(call: Caller, tmp_path: Path) -> None:
    deleted = []

    def script(peer: Peer) -> None:
        deleted.append(peer.request().uri)
        peer.send(encode_close(3))

    with fake_server_v2(tmp_path, script) as server, pytest.raises(OutcomeUnknown):
        call(server.address, ("delete", "/x"))
    assert deleted == ["/x"]


def test_a_server_that_died_while_a_connection_was_idle_costs_no_write(tmp_path: Path) -> None:
    """It answers one request and is gone: the next put or delete finds out before it is sent."""

    def script(peer: Peer) -> None:
        request = peer.request()
        peer.content(request)
        peer.answer(request)

    calls: list[Call] = [("put", "/x", b"1"), ("delete", "/x"), ("put", "/x", LARGE), ("put", "/x", b"2")]
    with fake_server_v2(tmp_path, script) as server:

        def wait_until_closed() -> None:
            assert eventually(lambda: all(peer.connection.fileno() < 0 for peer in server.peers))

        async def use() -> None:
            async with AsyncClient(server.address) as client:
                for name, *given in calls:
                    await client.stat("/x")
                    # The loop is not run meanwhile, and does not hear of it.
                    wait_until_closed()
                    await getattr(client, name)(*given)
                    wait_until_closed()

        with Client(server.address) as client:
            for name, *given in calls:
                client.stat("/x")
                wait_until_closed()
                getattr(client, name)(*given)
                wait_until_closed()
        asyncio.run(use())


def test_a_busy_server_is_not_masked_by_pieces_that_were_taken(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        request = peer.request()
        peer.content(request)
        peer.refuse(request, 0x14, "busy")
        peer.wait_for_end()

    with fake_server_v2(tmp_path, script) as server, pytest.raises(ServerBusy, match="busy"):
        call(server.address, ("put", "/x", iter([LARGE]), {"length": len(LARGE)}))


def test_time_in_the_callers_data_is_not_the_servers(call: Caller, tmp_path: Path) -> None:
    def slowly(pieces: list[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            time.sleep(0.3)
            yield piece

    with fake_server_v2(tmp_path, answer_all) as server:
        call(server.address, ("put", "/x", slowly([b"a", b"b", b"c"])), timeout=0.5)
        pieces = [bytes(40_000)] * 3
        call(server.address, ("put", "/x", slowly(pieces), {"length": 120_000}), timeout=0.5)


def test_small_pieces_extend_the_time_limit_as_large_ones_do(call: Caller, tmp_path: Path) -> None:
    """The server takes 4 MiB in twice the time limit."""

    def script(peer: Peer) -> None:
        request = peer.request()
        length = request.parameters.content_len or 0
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        left = length - len(peer._decoder.take_content(length))
        while left:
            left -= len(peer.connection.recv(min(left, 1 << 18), socket.MSG_WAITALL))
            time.sleep(0.25)
        peer.answer(request)

    for size in (1 << 14, 1 << 16):
        pieces = iter([bytes(size)] * ((4 << 20) // size))
        with fake_server_v2(tmp_path, script) as server:
            call(server.address, ("put", "/x", pieces, {"length": 4 << 20}), timeout=2)


def test_a_put_that_the_server_had_no_room_for_is_repeated(call: Caller, tmp_path: Path) -> None:
    stored: list[bytes] = []

    def script(peer: Peer) -> None:
        for turn in range(9):
            request = peer.request()
            content = peer.content(request)
            if turn == 0:
                peer.refuse(request, 0x14, "busy")
            else:
                stored.append(content)
                peer.answer(request)

    (tmp_path / "file").write_bytes(LARGE)
    for source in (b"1", LARGE, tmp_path / "file"):
        with fake_server_v2(tmp_path, script) as server:
            call(server.address, ("put", "/x", source))
    assert stored[:2] == [b"1", LARGE]


def test_the_server_keeps_what_was_stored_whatever_becomes_of_the_file(
    address: str, root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    with Client(address) as client:
        client.put("/x", path)
        with path.open("r+b") as file:
            file.write(b"changed")
        assert client.read("/x") == LARGE
    assert os.stat(root / "x").st_ino != os.stat(path).st_ino
