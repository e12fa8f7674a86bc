"""What comes for an object: descriptor or content, whole or a part, with metadata, under a condition, by a deadline."""

import fcntl
import os
import socket
import struct
from pathlib import Path

import pytest

from objmapper_client.protocol.v2_requests import Operation
from objmapper_server import Concurrency, Server
from tests.support.raw_client import (
    FORBIDDEN,
    INVALID_MODE,
    INVALID_REQUEST,
    NOT_FOUND,
    OK,
    PROTOCOL_ERROR,
    TIMEOUT,
    URI_TOO_LONG,
)
from tests.support.raw_client_v2 import (
    CONFLICT,
    COPY,
    DELETE,
    EXTENDED,
    FDPASS,
    LIST,
    PLAIN,
    SPLICE,
    STAT,
    Answer,
    RawClientV2,
    frame,
    parameter,
)
from tests.wire_v2.conftest import SIZES

HEAD = struct.Struct(">BIBQH")
EITHER_WAY = [(COPY, "unix"), (SPLICE, "unix"), (FDPASS, "unix"), (COPY, "tcp"), (SPLICE, "tcp")]


@pytest.mark.parametrize("capabilities", [PLAIN, EXTENDED], ids=["plain", "extended"])
@pytest.mark.parametrize(("operation", "transport"), EITHER_WAY, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("name", [*SIZES, "directory/nested é"])
def test_an_object_arrives_whole(address: str, root: Path, operation: Operation, name: str, capabilities: int) -> None:
    with RawClientV2(address, capabilities) as v2:
        assert v2.call(operation, f"/{name}").read() == (root / name).read_bytes()
        assert not v2.arrived


def test_plain_version_2_sends_the_descriptor_in_a_message_of_its_own(unix: str, root: Path) -> None:
    with RawClientV2(unix, PLAIN) as v2:
        for _ in range(3):
            number = v2.ask(FDPASS, "/small")
            kind, answered, status, content_len, metadata_len = HEAD.unpack(v2.take(HEAD.size))
            assert (kind, answered, status, content_len) == (2, number, OK, 0)
            v2.take(metadata_len)
            assert not v2.descriptors
            assert v2.take(1) == b"\x58"
            (descriptor,) = v2.descriptors
            v2.descriptors.clear()
            with os.fdopen(descriptor, "rb") as file:
                assert file.read() == (root / "small").read_bytes()


def test_plain_version_2_keeps_each_descriptor_with_its_answer(unix: str, root: Path) -> None:
    names = [f"many/{number:02}" for number in range(64)]
    with RawClientV2(unix, PLAIN) as v2:
        plan = [v2.encode(FDPASS, name) + v2.encode(COPY, name) + v2.encode(FDPASS, "missing") for name in names]
        v2.send(*plan)
        found = v2.answers(3 * 64)
        for at, name in enumerate(names):
            assert found[3 * at + 1].read() == (root / name).read_bytes()
            assert found[3 * at + 2].read() == (root / name).read_bytes()
            assert found[3 * at + 3].fails(NOT_FOUND)
        assert set(v2.batches) == {1}


def test_the_extended_answers_descriptor_rides_on_its_first_byte(unix: str, root: Path) -> None:
    with RawClientV2(unix) as v2:
        number = v2.ask(FDPASS, "/small")
        assert v2.take(1) == b"\2"
        (descriptor,) = v2.descriptors
        v2.descriptors.clear()
        assert struct.unpack_from(">IBQ", v2.take(HEAD.size - 1)) == (number, OK, 4096)
        with os.fdopen(descriptor, "rb") as file:
            assert file.read() == (root / "small").read_bytes()


def test_extended_answers_share_messages_of_up_to_64_descriptors(unix: str, root: Path, model: Concurrency) -> None:
    names = [f"many/{number:02}" for number in range(64)]
    with RawClientV2(unix) as v2:
        # Once before: then every path is in the kernel's cache, and nothing is answered by way of the storage pool.
        for _ in range(2):
            v2.batches.clear()
            v2.send(*(v2.encode(FDPASS, name) for name in names))
            found = v2.answers(64)
            for answer, name in zip(sorted(found.values(), key=lambda answer: answer.id), names, strict=True):
                assert answer.descriptor is not None
                assert os.fstat(answer.descriptor).st_ino == (root / name).stat().st_ino
                assert answer.read() == (root / name).read_bytes()
        # In a pool a turn ends after a time.
        is_in_turns = model in {Concurrency.THREAD_POOL, Concurrency.WORK_STEALING}
        assert (sum(v2.batches) == 64) if is_in_turns else (v2.batches == [64])


def test_errors_and_contents_between_descriptors_take_none(unix: str, root: Path) -> None:
    with RawClientV2(unix) as v2:
        names = [f"many/{number:02}" for number in range(64)]
        for name in names:
            v2.send(v2.encode(FDPASS, name), v2.encode(COPY, name), v2.encode(FDPASS, "none"), v2.encode(STAT, name))
        found = v2.answers(4 * 64)
        for at, name in enumerate(names):
            assert found[4 * at + 1].read() == (root / name).read_bytes()
            assert found[4 * at + 2].read() == (root / name).read_bytes()
            assert found[4 * at + 3].fails(NOT_FOUND)
            assert found[4 * at + 4].metadata.size == 2
        assert not v2.arrived


def test_a_passed_descriptor_is_a_fresh_read_only_open_file(unix: str) -> None:
    with RawClientV2(unix) as v2:
        first, second = v2.call(FDPASS, "/small").descriptor, v2.call(FDPASS, "/small").descriptor
        assert first is not None
        assert second is not None
        flags = fcntl.fcntl(first, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == os.O_RDONLY
        assert not flags & os.O_NONBLOCK
        os.read(first, 100)
        assert os.lseek(second, 0, os.SEEK_CUR) == 0
        os.close(first)
        os.close(second)


def test_descriptors_pass_over_unix_only(server: Server) -> None:
    with RawClientV2(server.addresses["tcp"]) as v2:
        assert v2.call(FDPASS, "/a").fails(INVALID_MODE)
        assert v2.call(COPY, "/a").status == OK


def seen(answer: Answer) -> tuple[int | None, int | None, str | None]:
    answer.read()
    return (answer.metadata.size, answer.metadata.mtime, answer.metadata.etag)


def test_metadata_are_the_same_in_every_operation(server: Server, root: Path) -> None:
    path = root / "changing"
    path.write_bytes(b"1234567")
    os.utime(path, (1, 1_234_567_890))
    found = set()
    for transport, operations in {"unix": (FDPASS, COPY, SPLICE, STAT), "tcp": (COPY, SPLICE, STAT)}.items():
        for capabilities in (PLAIN, EXTENDED):
            with RawClientV2(server.addresses[transport], capabilities) as v2:
                for operation in operations:
                    if operation is not STAT or capabilities == EXTENDED:
                        found |= {seen(v2.call(operation, "/changing")) for _ in range(3)}
    assert len(found) == 1
    size, mtime, etag = found.pop()
    assert (size, mtime) == (7, 1_234_567_890)
    assert etag is not None
    assert len(bytes.fromhex(etag)) == 8
    with RawClientV2(server.addresses["unix"]) as v2:
        (entry,) = v2.call(LIST, "/changing").entries()
        assert (entry.size, entry.mtime) == (7, 1_234_567_890)
        path.write_bytes(b"7654321")
        os.utime(path, (1, 1_234_567_890))
        assert seen(v2.call(STAT, "/changing"))[2] != etag
    path.unlink()


def test_stat_and_get_of_a_non_object_have_the_same_status(v2: RawClientV2) -> None:
    for uri, status in [
        ("/missing", NOT_FOUND),
        ("/a/below", NOT_FOUND),
        ("/directory", FORBIDDEN),
        ("/fifo", FORBIDDEN),
        ("/link", FORBIDDEN),
        ("/.objmapper", NOT_FOUND),
        ("/.objmapper/x", NOT_FOUND),
        ("/../a", INVALID_REQUEST),
        ("//a", INVALID_REQUEST),
        ("/directory/", INVALID_REQUEST),
        ("/" + "n" * 256, INVALID_REQUEST),
    ]:
        assert v2.call(STAT, uri).fails(status), uri
        assert v2.call(COPY, uri).fails(status), uri


@pytest.mark.parametrize("operation", [COPY, SPLICE])
@pytest.mark.parametrize("name", ["empty", "small", "large"])
def test_a_part_of_an_object(v2: RawClientV2, root: Path, operation: Operation, name: str) -> None:
    content = (root / name).read_bytes()
    size = len(content)
    end = (1 << 64) - 1
    for offset, length in [
        (0, 0),
        (0, 1),
        (5, 10),
        (0, size),
        (0, end),
        (size - 1, 1),
        (size, 1),
        (size + 1, 1),
        (100, size),
        (end, end),
        (1, end),
        (100_000, 70_000),
        (4095, 2),
        (None, 10),
        (10, None),
    ]:
        if offset is not None and offset < 0:
            continue
        wanted = content[offset or 0 :][: size if length is None else length]
        answer = v2.call(operation, f"/{name}", offset=offset, length=length)
        assert answer.read() == wanted, (offset, length)
        assert answer.metadata.size == size


def test_a_range_of_a_cached_object(v2: RawClientV2, root: Path) -> None:
    os.utime(root / "small", (1, 1))
    content = (root / "small").read_bytes()
    for _ in range(3):
        assert v2.call(COPY, "/small").read() == content
        assert v2.call(COPY, "/small", offset=100, length=50).read() == content[100:150]
        assert v2.call(COPY, "/small", offset=5000).read() == b""


def test_a_part_means_nothing_to_a_descriptor(unix: str) -> None:
    with RawClientV2(unix) as v2:
        answer = v2.call(FDPASS, "/small", offset=5, length=3)
        assert answer.content_len == 4096
        assert len(answer.read()) == 4096


@pytest.mark.parametrize("operation", [COPY, SPLICE, STAT, LIST, DELETE])
def test_a_deadline_that_has_passed_is_a_timeout(v2: RawClientV2, operation: Operation) -> None:
    assert v2.call(operation, "/a", deadline_ms=0).fails(TIMEOUT)
    assert v2.call(COPY, "/a", deadline_ms=60_000).status == OK


@pytest.mark.parametrize("operation", [COPY, SPLICE, STAT])
def test_conditions_hold_for_reading_too(v2: RawClientV2, operation: Operation) -> None:
    etag = v2.call(STAT, "/small").metadata.etag
    assert etag is not None
    other = "0" * 16
    assert v2.call(operation, "/small", if_match=etag).status == OK
    assert v2.call(operation, "/small", if_match=etag.upper()).status == OK
    assert v2.call(operation, "/small", if_match="*").status == OK
    assert v2.call(operation, "/small", if_match=other).fails(CONFLICT)
    assert v2.call(operation, "/small", if_none_match=other).status == OK
    assert v2.call(operation, "/small", if_none_match=etag).fails(CONFLICT)
    assert v2.call(operation, "/small", if_none_match="*").fails(CONFLICT)
    assert v2.call(operation, "/missing", if_match="*").fails(NOT_FOUND)
    for wrong in ("", "W/abc", "0" * 15, "g" * 16, "**"):
        assert v2.call(operation, "/small", if_match=wrong).fails(INVALID_REQUEST), wrong


NUMBER = struct.pack(">Q", 1)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (frame(9, b"4", b"/a"), INVALID_MODE),
        (frame(9, b"s", b"/a")[:6] + b"?" + frame(9, b"s", b"/a")[7:], INVALID_MODE),
        (frame(9, b"2", b""), INVALID_REQUEST),
        (frame(9, b"2", b"/\xff"), INVALID_REQUEST),
        (frame(9, b"2", b"/a\0"), INVALID_REQUEST),
        (frame(9, b"2", b"/" + b"n" * 5000), URI_TOO_LONG),
        (frame(9, b"2", b"n" * 65535, parameters=parameter(0x81, NUMBER)), URI_TOO_LONG),
        (frame(9, b"4", b"n" * 65535), INVALID_MODE),
        (frame(9, b"2", b"/a", parameters=b"\x81"), INVALID_REQUEST),
        (frame(9, b"2", b"/a", parameters=b"\x81\x00\x08abc"), INVALID_REQUEST),
        (frame(9, b"2", b"/a", parameters=parameter(0x81, b"1234567")), INVALID_REQUEST),
        (frame(9, b"2", b"/a", parameters=parameter(0x81, NUMBER) * 2), INVALID_REQUEST),
        (frame(9, b"2", b"/a", parameters=parameter(0x89, b"x")), INVALID_REQUEST),
        (frame(9, b"p", b"/a"), INVALID_REQUEST),
        (frame(9, b"p", b"/a", parameters=b""), INVALID_REQUEST),
        (frame(9, b"2", b"/a", parameters=parameter(0x84, NUMBER)) + b"x", INVALID_REQUEST),
        (frame(9, b"4", b"/a", parameters=parameter(0x84, NUMBER)) + b"x", INVALID_MODE),
        (frame(9, b"p", b"/\xff", parameters=parameter(0x84, NUMBER)) + b"x", INVALID_REQUEST),
        (frame(9, b"p", b"n" * 9999, parameters=parameter(0x84, NUMBER)) + b"x", URI_TOO_LONG),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_refused_frame_has_its_status_and_the_connection_goes_on(
    v2: RawClientV2, request_: bytes, status: int
) -> None:
    for pieces in ([request_], [request_[at : at + 1] for at in range(len(request_))][:200] + [request_[200:]]):
        v2.expect(9)
        for piece in pieces:
            v2.send(piece)
        answer = v2.answer()
        assert answer.id == 9
        assert answer.fails(status)
        v2.next_id = 10
        assert v2.call(COPY, "/a").status == OK


@pytest.mark.parametrize(
    "request_",
    [
        b"\0",
        b"\2\0\0\0\1\0",
        b"\4\0\0\0\0\1",
        b"2\0\2/a",
        frame(9, b"2", b"/a")[:9] + b"/a\x20\x01",
        frame(9, b"p", b"/a", parameters=parameter(0x84, NUMBER) * 2),
        frame(9, b"p", b"/a", parameters=parameter(0x84, b"123")),
        frame(9, b"p", b"/a", parameters=parameter(0x84, b"\x80" + bytes(7))),
        frame(9, b"p", b"/a", parameters=b"\x81\x00\x09" + parameter(0x84, NUMBER)[:3]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_understood_is_answered_once_and_closed(v2: RawClientV2, request_: bytes) -> None:
    v2.send(v2.encode(COPY, "/a"), request_ if request_[:1] != b"\1" or request_[5] & 0x80 else flagged(request_))
    assert v2.answer().status == OK
    v2.expect(0)
    assert v2.answer().fails(PROTOCOL_ERROR)
    assert v2.is_closed()


def flagged(request_: bytes) -> bytes:
    return request_[:5] + b"\x80" + request_[6:]


def test_without_the_extension_there_are_neither_parameters_nor_operations(address: str) -> None:
    with RawClientV2(address, PLAIN) as v2:
        for mode in b"slpPd":
            v2.expect(mode)
            v2.send(frame(mode, bytes([mode]), b"/a"))
            assert v2.answer().fails(INVALID_MODE)
        v2.send(frame(9, b"2", b"/a", parameters=b""))
        v2.expect(0)
        assert v2.answer().fails(PROTOCOL_ERROR)
        assert v2.is_closed()


def test_parameters_that_are_unknown_are_skipped(v2: RawClientV2) -> None:
    v2.send(frame(9, b"2", b"/small", parameters=parameter(0x8A, b"x") + parameter(0x82, struct.pack(">Q", 3))))
    v2.expect(9)
    assert len(v2.answer().read()) == 3


def test_every_id_comes_back_as_it_was(v2: RawClientV2) -> None:
    numbers = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x01020304]
    for number in numbers:
        v2.expect(number)
    v2.send(*(frame(number, b"2", b"/a") for number in numbers))
    assert set(v2.answers(len(numbers))) == set(numbers)


def test_a_client_that_ends_its_side_still_gets_its_answers(v2: RawClientV2, root: Path) -> None:
    v2.send(v2.encode(SPLICE, "/huge"), v2.encode(COPY, "/a"), v2.encode(LIST, "/many/", limit=3), b"\1\0\0")
    v2.socket.shutdown(socket.SHUT_WR)
    found = v2.answers(3)
    assert found[1].read() == (root / "huge").read_bytes()
    assert found[2].status == OK
    assert [entry.uri for entry in found[3].entries()] == ["/many/00", "/many/01", "/many/02"]
    assert v2.is_closed()
