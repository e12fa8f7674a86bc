"""Answers that cannot be true, though each is well-formed: short contents, lists that stray or never end."""

import itertools
import struct
from pathlib import Path

import pytest

from objmapper_client import RemoteProtocolError
from objmapper_client.filesystem import ObjmapperFileSystem
from objmapper_client.protocol.v2_requests import Operation
from objmapper_client.protocol.v2_responses import Entry, Metadata, encode_entry
from tests.support.both_clients import Call, Caller
from tests.support.fake_server_v2 import Peer, fake_server_v2


def entries(*names: str, size: int = 1) -> bytes:
    return b"".join(encode_entry(Entry(name, size, 7)) for name in names)


@pytest.mark.parametrize("have", [0, 3, 1 << 17])
@pytest.mark.parametrize("length", [None, 200_000, 1 << 20])
def test_a_content_shorter_than_its_size_is_not_taken_for_whole(
    call: Caller, tmp_path: Path, have: int, length: int | None
) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            metadata = Metadata(size=1 << 22, mtime=7, etag="00000000000000ee")
            peer.answer(request, bytes(have), metadata=metadata)

    with fake_server_v2(tmp_path, script) as server:
        with pytest.raises(RemoteProtocolError, match=f"/x: the server sen(t|ds) {have} bytes of a content of"):
            call(server.address, ("read", "/x", {"mode": "copy", "length": length}))
        with pytest.raises(RemoteProtocolError, match="bytes of a content of"):
            call(server.address, ("stream", "/x", {"mode": "copy", "length": length}))
        with pytest.raises(RemoteProtocolError, match="bytes of a content of"):
            call(server.address, ("open", "/x", {"mode": "copy"}))
        ((found,),) = call(server.address, ("open_many", ["/x"], {"mode": "copy"}))
        assert isinstance(found, RemoteProtocolError)


@pytest.mark.parametrize("more", [1, 1 << 20])
@pytest.mark.parametrize("mode", ["copy", "splice"])
@pytest.mark.parametrize(("size", "offset", "length"), [(0, 0, None), (10, 4, None), (10, 4, 20), (1 << 17, 7, None)])
def test_a_content_longer_than_its_size_is_refused(
    call: Caller, tmp_path: Path, mode: str, size: int, offset: int, length: int | None, more: int
) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            at = request.parameters.offset or 0
            asked = min(filter(None, (request.parameters.length, size + more - at)))
            metadata = Metadata(size=size, mtime=7, etag="00000000000000ee")
            peer.answer(request, bytes(asked), metadata=metadata)

    ranged = {"mode": mode, "offset": offset, "length": length}
    with fake_server_v2(tmp_path, script) as server:
        calls: list[Call] = [("read", "/x", ranged), ("stream", "/x", ranged), ("open", "/x", {"mode": mode})]
        for verb in [*calls, ("readinto", "/x", bytearray(size + more), {"mode": mode})]:
            with pytest.raises(RemoteProtocolError, match=r"/x: the server sen(t|ds) \d+ bytes of a content of"):
                call(server.address, verb)
        ((found,),) = call(server.address, ("open_many", ["/x"], {"mode": mode}))
        assert isinstance(found, RemoteProtocolError)


def test_the_end_of_an_object_is_shorter_than_what_was_asked_for(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            at, length = request.parameters.offset or 0, request.parameters.length
            metadata = Metadata(size=10, mtime=7, etag="00000000000000ee")
            end = 10 if length is None else at + length
            peer.answer(request, b"0123456789"[at:end], metadata=metadata)

    with fake_server_v2(tmp_path, script) as server:
        for offset, length, expected in [(8, 5, b"89"), (8, None, b"89"), (20, 5, b""), (2, 3, b"234"), (0, 0, b"")]:
            options = {"mode": "copy", "offset": offset, "length": length}
            assert call(server.address, ("read", "/x", options)) == [expected]
            assert b"".join(call(server.address, ("stream", "/x", options))[0]) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (entries("/logs/1", "/other"), "'/other', which does not begin with '/logs/'"),
        (entries("/logs"), "does not begin"),
        (entries("/logs/2", "/logs/1"), "'/logs/1' after '/logs/2'"),
        (entries("/logs/1", size=1 << 63), "more than any file can have"),
        (entries("/logs/../1"), "'/logs/../1', which has an invalid segment"),
        (entries("/logs/./1"), "invalid segment"),
        (entries("/logs//1"), "invalid segment"),
        (entries("/logs/1/"), "invalid segment"),
        (entries("/logs/1/.."), "invalid segment"),
    ],
)
def test_a_list_of_what_cannot_be_there_is_refused(call: Caller, tmp_path: Path, content: bytes, words: str) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.answer(peer.request(), content)

    with fake_server_v2(tmp_path, script) as server, pytest.raises(RemoteProtocolError, match=words):
        call(server.address, ("list", "/logs/"))


def test_names_that_begin_with_dots_are_listed(call: Caller, tmp_path: Path) -> None:
    names = ["/logs/...", "/logs/..a", "/logs/.a", "/logs/a.", "/logs/a/.../b"]

    def script(peer: Peer) -> None:
        peer.answer(peer.request(), entries(*names))

    with fake_server_v2(tmp_path, script) as server:
        assert [entry.uri for entry in call(server.address, ("list", "/logs/"))[0]] == names


def test_a_server_does_not_have_files_written_outside_the_folder_of_a_copy(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.operation is Operation.LIST:
                peer.answer(request, entries("/logs/../../outside"))
            elif request.operation is Operation.STAT and not request.uri.endswith("outside"):
                peer.refuse(request, 1)
            else:
                peer.answer(
                    request, b"x" if request.operation is Operation.COPY else b"", metadata=Metadata(1, 7, "0" * 16)
                )

    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with fake_server_v2(tmp_path, script) as server:
        files = ObjmapperFileSystem(server.address, mode="copy", skip_instance_cache=True)
        with files.client, pytest.raises(RemoteProtocolError, match="invalid segment"):
            files.get("/logs/", str(folder), recursive=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


def test_a_size_that_no_file_can_have_is_refused(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.answer(peer.request(), metadata=Metadata(size=1 << 63, mtime=1, etag="00000000000000ee"))

    with fake_server_v2(tmp_path, script) as server, pytest.raises(RemoteProtocolError, match="than any file can have"):
        call(server.address, ("stat", "/x"))


@pytest.mark.parametrize("kind", ["same cursor", "two cursors", "same entries", "backwards", "new cursors"])
def test_a_list_that_never_ends_is_given_up(call: Caller, tmp_path: Path, kind: str) -> None:
    def script(peer: Peer) -> None:
        for count in itertools.count():
            request = peer.request()
            assert request.operation is Operation.LIST
            content = entries("/a", "/b") if count == 0 or kind == "same entries" else b""
            number = {"same cursor": 1, "two cursors": count % 2}.get(kind, count)
            if kind == "backwards" and count:
                content = entries("/a")
            peer.answer(request, content, metadata=Metadata(cursor=struct.pack(">I", number)))

    with (
        fake_server_v2(tmp_path, script) as server,
        pytest.raises(RemoteProtocolError, match=r"does not advance|after"),
    ):
        call(server.address, ("list", "/", {"page_size": 2}))


def test_an_entry_that_comes_twice_is_listed_once(call: Caller, tmp_path: Path) -> None:
    pages = [entries("/a", "/a", "/b"), b"", entries("/b", "/c")]

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            at = struct.unpack(">I", request.parameters.cursor)[0] if request.parameters.cursor else 0
            cursor = struct.pack(">I", at + 1) if at + 1 < len(pages) else None
            peer.answer(request, pages[at], metadata=Metadata(cursor=cursor))

    with fake_server_v2(tmp_path, script) as server:
        (found,) = call(server.address, ("list", "/"))
    assert [entry.uri for entry in found] == ["/a", "/b", "/c"]
