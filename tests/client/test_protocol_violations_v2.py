"""A server of version 2 that lies: the error says which rule was broken, the connection is closed, nothing is left."""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import (
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    Object,
    ObjectNotFound,
    PermissionDenied,
    RemoteProtocolError,
    RequestTimeout,
    ServerBusy,
    ServerFailed,
    ServerTimeout,
    UnsupportedMode,
)
from objmapper_client.protocol.v2_requests import CLOSE_ACK_FRAME, encode_close
from objmapper_client.protocol.v2_responses import Entry, Metadata, encode_entry, encode_response
from tests.support.both_clients import Call, Caller, call_in_thread
from tests.support.fake_server_v2 import (
    Peer,
    PeerScript,
    answer_all,
    fake_server_v2,
    send_with_descriptors,
    wait_for_end,
)
from tests.support.misbehaving_server import misbehaving_server, raw_server

USUAL = Metadata(size=1, mtime=7, etag="00000000000000ee")


def reply_with(make: Callable[[int], bytes], *, descriptors: int = 0, path: str = __file__) -> PeerScript:
    """Answers the first request with what is made of its id, then waits until the client has closed."""

    def script(peer: Peer) -> None:
        data = make(peer.request().id)
        if descriptors:
            send_with_descriptors(peer.connection, data, descriptors, path)
        else:
            peer.send(data)
        peer.wait_for_end()

    return script


def good(number: int, content_len: int = 1) -> bytes:
    return encode_response(number, 0, content_len, USUAL._replace(size=content_len))


OPEN: Call = ("open", "/x", {"mode": "fdpass"})
READ: Call = ("read", "/x", {"mode": "copy"})
LARGE: Call = ("read", "/x", {"mode": "copy", "length": 1 << 20})
STAT: Call = ("stat", "/x")


@pytest.mark.parametrize(
    ("verb", "script", "words"),
    [
        (OPEN, reply_with(good), "passed 0 descriptors where one was expected"),
        (OPEN, reply_with(good, descriptors=2), "passed 2 descriptors where one was expected"),
        (OPEN, reply_with(good, descriptors=253), "passed 253 descriptors where one was expected"),
        (OPEN, reply_with(good, descriptors=1, path="/"), "not a regular file"),
        (
            OPEN,
            reply_with(lambda n: encode_response(n, 1), descriptors=1),
            "passed 1 descriptors where 0 were expected",
        ),
        (READ, reply_with(lambda n: good(n) + b"x", descriptors=1), "passed 1 descriptors where 0 were expected"),
        (STAT, reply_with(lambda n: good(n, 0), descriptors=1), "passed 1 descriptors where 0 were expected"),
        (STAT, reply_with(lambda n: good(n + 1, 0)), "request 2, which is not pending"),
        (STAT, reply_with(lambda n: good(n, 0) * 2), "request 1, which is not pending"),
        (STAT, reply_with(lambda n: good(n, 0) + good(n + 7, 0)), "request 8, which is not pending"),
        (STAT, reply_with(lambda _: encode_response(0, 0x20)), "request 0, which is not pending"),
        (STAT, reply_with(good), "1 bytes, more than requested"),
        (READ, reply_with(lambda n: good(n, (1 << 18) + 1)), "262145 bytes, more than requested"),
        (READ, reply_with(lambda n: good(n, 1 << 63)), "more than any file can have"),
        (READ, reply_with(lambda n: encode_response(n, 1, 5)), "5 bytes where none can follow"),
        (READ, reply_with(lambda n: good(n, 1) + b"xy"), "unknown type 79"),
        (READ, reply_with(lambda _: b"\x99"), "unknown type 99"),
        (READ, reply_with(lambda _: CLOSE_ACK_FRAME.pack(4, 0, 0)), "confirmed a close that the client did not send"),
        (READ, reply_with(lambda n: encode_response(n, 0)[:-2] + b"\0\1\5"), "ends inside an entry"),
        (LARGE, reply_with(lambda n: good(n, (1 << 20) + 1)), "1048577 bytes, more than requested"),
        (LARGE, reply_with(lambda n: good(n, 2) + b"xyz"), "unknown type 7a"),
        (LARGE, reply_with(lambda n: good(n, 2) + b"xy" + good(n)), "request 1, which is not pending"),
        (LARGE, reply_with(lambda n: good(n, 2) + b"xy", descriptors=1), "descriptor that was not requested"),
        (LARGE, reply_with(lambda _: CLOSE_ACK_FRAME.pack(4, 0, 0)), "confirmed a close that the client did not send"),
        (("list",), reply_with(lambda n: good(n, 5) + b"\0\3/ab"), "ends inside an entry"),
        (("list",), reply_with(lambda n: good(n, 1 << 25)), "more than requested"),
    ],
)
def test_a_broken_rule_is_named(call: Caller, tmp_path: Path, verb: Call, script: PeerScript, words: str) -> None:
    with fake_server_v2(tmp_path, script) as server, pytest.raises(RemoteProtocolError, match=words):
        call(server.address, verb)
    assert server.connections <= 2


@pytest.mark.parametrize(
    ("ack", "words"),
    [
        (b"HTTP/1.1 400", "not an objmapper server"),
        (b"OBJM\3\1\3\0\1\1", "version 3"),
        (b"OBJM\2\1\3\0\1\1\0", "more than requested"),
    ],
)
def test_what_answers_a_hello_wrongly_is_named(call: Caller, tmp_path: Path, ack: bytes, words: str) -> None:
    with raw_server(tmp_path, ack) as address, pytest.raises(RemoteProtocolError, match=words):
        call(address, STAT)


def test_others_on_a_connection_that_was_given_up_are_tried_again(call: Caller, tmp_path: Path) -> None:
    """Of four that are under way the second is answered with two descriptors; it alone fails."""

    def script(peer: Peer) -> None:
        if peer.number:
            answer_all(peer)
        requests = [peer.request() for _ in range(4)]
        send_with_descriptors(peer.connection, good(requests[1].id), 5, __file__)
        peer.wait_for_end()

    with fake_server_v2(tmp_path, script) as server:
        results = call(server.address, ("open_many", ["/a", "/b", "/c", "/d"]))[0]
        kinds = [type(result).__name__ for result in results]
        assert kinds == ["Object", "RemoteProtocolError", "Object", "Object"]
        for result in results:
            if not isinstance(result, Exception):
                result.close()
        assert server.connections == 2


def test_what_a_server_that_speaks_version_1_from_now_on_has_answered_before_is_kept(
    call: Caller, tmp_path: Path
) -> None:
    """It answers two of four, is gone, and another takes its place: one of before."""

    def version_2(peer: Peer) -> None:
        requests = [peer.request() for _ in range(4)]
        for request in (requests[0], requests[2]):
            peer.answer(request, path=__file__)

    def version_1(connection: socket.socket) -> None:
        # Only those that have no answer are asked for again, one after the other.
        send_with_descriptors(connection, b"\0", 1, __file__)
        assert connection.recv(5000) == b"1\0\2/d"
        send_with_descriptors(connection, b"\0", 1, __file__)
        wait_for_end(connection)

    with misbehaving_server(tmp_path, version_1, first_v2=version_2) as address:
        results = call(address, ("open_many", ["/a", "/b", "/c", "/d"]))[0]
        for result in results:
            assert isinstance(result, Object)
            assert os.fstat(result.fileno()).st_ino == os.stat(__file__).st_ino
            result.close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0x01, ObjectNotFound),
        (0x02, InvalidRequest),
        (0x03, UnsupportedMode),
        (0x05, UnsupportedMode),
        (0x06, PermissionDenied),
        (0x07, Conflict),
        (0x10, ServerFailed),
        (0x13, ServerTimeout),
        (0x14, ServerBusy),
        (0x99, ServerFailed),
    ],
)
@pytest.mark.parametrize("verb", [OPEN, READ, LARGE, STAT, ("delete", "/x"), ("put", "/x", b"1"), ("list",)])
def test_a_status_is_its_error(tmp_path: Path, status: int, kind: type[Exception], verb: Call) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            peer.content(request)
            peer.refuse(request, status, "word")

    with fake_server_v2(tmp_path, script) as server, pytest.raises(kind, match="word"):
        call_in_thread(server.address, verb)


def test_what_the_server_says_of_an_object_comes_with_it(call: Caller, tmp_path: Path) -> None:
    with fake_server_v2(tmp_path, answer_all) as server:
        for mode in ("fdpass", "copy"):
            with call(server.address, ("open", "/x", {"mode": mode}))[0] as found:
                assert (found.etag, found.mtime) == ("00000000000000ee", 7)
        assert call(server.address, STAT)[0] == ("/x", 2, 7, "00000000000000ee")


def test_deadlines_are_sent_along(call: Caller, tmp_path: Path) -> None:
    seen: list[Any] = []

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            seen.append((request.operation.name, request.parameters.deadline_ms))
            peer.content(request)
            peer.answer(request, b"x" if request.operation.name == "COPY" else b"")

    calls = [STAT, READ, LARGE, ("delete", "/x"), ("put", "/x", b"1"), ("put", "/x", bytes(100_000)), ("list",)]
    with fake_server_v2(tmp_path, script) as server:
        call(server.address, *calls, timeout=12.5)
    assert [name for name, _ in seen] == ["STAT", "COPY", "COPY", "DELETE", "PUT", "PUT", "LIST"]
    assert all(12_000 <= left <= 12_500 for _, left in seen)


def test_an_answer_may_come_byte_by_byte(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            for byte in good(request.id, 3) + b"abc":
                peer.send(bytes([byte]))

    with fake_server_v2(tmp_path, script) as server:
        assert call(server.address, READ, READ) == [b"abc", b"abc"]


def test_a_descriptor_comes_with_the_first_byte_of_its_answer(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        for _ in range(2):
            data = good(peer.request().id)
            send_with_descriptors(peer.connection, data[:1], 1, __file__)
            peer.send(data[1:])
        peer.wait_for_end()

    with fake_server_v2(tmp_path, script) as server:
        for found in call(server.address, OPEN, OPEN):
            assert found.read() == Path(__file__).read_bytes()
            found.close()


def test_a_batch_of_answers_takes_its_descriptors_in_order(call: Caller, tmp_path: Path) -> None:
    """Six descriptors with the first byte, seven answers, out of order and cut in two, an error among them."""
    files = [tmp_path / f"{number}" for number in range(7)]
    for number, file in enumerate(files):
        file.write_text(str(number))

    def script(peer: Peer) -> None:
        requests = {request.uri: request for request in (peer.request() for _ in files)}
        order = [3, 1, 0, 2, 6, 5, 4]
        data = b"".join(
            encode_response(requests[f"/{n}"].id, 1) if n == 0 else good(requests[f"/{n}"].id) for n in order
        )
        descriptors = [os.open(files[n], os.O_RDONLY) for n in order if n]
        try:
            socket.send_fds(peer.connection, [data[:100]], descriptors)
            peer.send(data[100:])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        peer.wait_for_end()

    with fake_server_v2(tmp_path, script) as server:
        results = call(server.address, ("open_many", [f"/{number}" for number in range(7)]))[0]
        assert isinstance(results[0], ObjectNotFound)
        for number, found in enumerate(results[1:], 1):
            assert found.read() == str(number).encode()
            found.close()


def test_a_content_that_ends_early_is_a_broken_connection(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send(good(peer.request().id, 100) + b"only this")

    for verb in (READ, LARGE):
        with fake_server_v2(tmp_path, script) as server, pytest.raises(ConnectionFailed, match="middle of an answer"):
            call(server.address, verb)
        assert server.connections <= 1


def test_a_server_that_stops_midway_costs_the_timeout(call: Caller, tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send(good(peer.request().id, 100) + b"only this")
        peer.wait_for_end()

    for verb in (READ, LARGE):
        with fake_server_v2(tmp_path, script) as server, pytest.raises(RequestTimeout):
            call(server.address, verb, timeout=0.2)


def test_an_object_that_changes_between_its_parts_is_read_anew(call: Caller, tmp_path: Path) -> None:
    """The first part is of an object of 300,000 bytes; the rest is refused with a conflict, then all of it comes."""
    seen: list[tuple[int | None, int | None, str | None]] = []

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            parameters = request.parameters
            seen.append((parameters.offset, parameters.length, parameters.if_match))
            if parameters.if_match:
                peer.refuse(request, 0x07)
            elif parameters.length:
                size = Metadata(size=300_000, mtime=7, etag="00000000000000aa")
                peer.answer(request, b"o" * parameters.length, metadata=size)
            else:
                peer.answer(request, b"n" * 280_000)

    with fake_server_v2(tmp_path, script) as server:
        assert call(server.address, READ) == [b"n" * 280_000]
        with call(server.address, ("open", "/x", {"mode": "copy"}))[0] as found:
            assert (found.size, found.read(), found.etag) == (280_000, b"n" * 280_000, "00000000000000ee")
    assert seen[:3] == [(None, 1 << 18, None), (1 << 18, 300_000 - (1 << 18), "00000000000000aa"), (None, None, None)]


def test_a_server_that_hangs_up_after_its_word_is_understood(call: Caller, tmp_path: Path) -> None:
    """CLOSE ends a connection in order: what is under way is answered, the next request has another one."""

    def script(peer: Peer) -> None:
        request = peer.request()
        peer.send(encode_close(3))
        peer.answer(request)
        peer.wait_for_end()

    with fake_server_v2(tmp_path, script) as server:
        assert len(call(server.address, STAT, STAT, STAT)) == 3
    assert server.connections == 3


def test_lists_go_on_at_their_cursor(call: Caller, tmp_path: Path) -> None:
    everything = [Entry(f"/{number:03}", number, 7) for number in range(250)]
    pages: list[int] = []

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            assert request.parameters.limit == 100
            start = struct.unpack(">I", request.parameters.cursor)[0] if request.parameters.cursor else 0
            page = everything[start : start + 100]
            pages.append(len(page))
            cursor = struct.pack(">I", start + 100) if start + 100 < len(everything) else None
            peer.answer(request, b"".join(map(encode_entry, page)), metadata=Metadata(cursor=cursor))

    with fake_server_v2(tmp_path, script) as server:
        assert call(server.address, ("list", "/", {"page_size": 100})) == [everything]
    assert pages == [100, 100, 50]
