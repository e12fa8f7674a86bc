"""Put by content, delete, list: all clients see acknowledged writes, and no others."""

import random
import socket
import struct
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.raw_client import COPY as COPY_ONE
from tests.support.raw_client import (
    FORBIDDEN,
    INVALID_REQUEST,
    NOT_FOUND,
    OK,
    TIMEOUT,
    URI_TOO_LONG,
    RawClient,
    descriptors_of,
)
from tests.support.raw_client_v2 import (
    CONFLICT,
    COPY,
    DELETE,
    EXTENDED,
    FDPASS,
    LIST,
    PUT,
    PUT_DESCRIPTOR,
    SPLICE,
    STAT,
    RawClientV2,
    frame,
    parameter,
)
from tests.support.unfinished_writes import unfinished_writes

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def test_every_operation_sees_a_put(v2: RawClientV2, server: Server, target: Path, content: bytes) -> None:
    answer = v2.put("/target", content)
    assert answer.status == OK
    assert answer.content_len == 0
    assert target.read_bytes() == content
    assert answer.metadata.size == len(content)
    assert answer.metadata.mtime == int(target.stat().st_mtime)
    with RawClientV2(server.addresses["unix"]) as other:
        for operation in (STAT, FDPASS, COPY, SPLICE, COPY):
            found = other.call(operation, "/target")
            # A reply with content carries the time in whole seconds.
            exact = answer.metadata.nanoseconds if operation is STAT else None
            assert found.metadata == answer.metadata._replace(nanoseconds=exact)
            assert operation is STAT or found.read() == content


def test_a_put_may_come_in_pieces(v2: RawClientV2, target: Path) -> None:
    content = random.Random(4).randbytes(50_000)
    request = v2.encode(PUT, "/target", content_len=len(content))
    for byte in request:
        v2.send(bytes([byte]))
    for at in range(100):
        v2.send(content[at : at + 1])
    for at in range(100, len(content), 7_000):
        v2.send(content[at : at + 7_000])
    assert v2.answer().status == OK
    assert target.read_bytes() == content


def test_puts_and_gets_in_one_packet(v2: RawClientV2, root: Path) -> None:
    contents = {f"ahead-{number}": b"%d" % number * number for number in range(40)}
    pieces = []
    for name, content in contents.items():
        pieces += [v2.encode(PUT, name, content_len=len(content)), content, v2.encode(COPY, "/a")]
    v2.send(*pieces)
    assert all(answer.status == OK for answer in v2.answers(80).values())
    for name, content in contents.items():
        assert (root / name).read_bytes() == content
        (root / name).unlink()


def test_a_put_replaces_and_open_descriptors_keep_the_old_object(v2: RawClientV2, unix: str, target: Path) -> None:
    target.write_bytes(b"old" * 1000)
    target.chmod(0o640)
    with RawClientV2(unix) as reader:
        held = reader.call(FDPASS, "/target")
        assert v2.put("/target", b"new").status == OK
        assert held.read() == b"old" * 1000
        assert reader.call(FDPASS, "/target").read() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_long_answer_under_way_stays_that_of_the_old_object(
    v2: RawClientV2, address: str, root: Path, target: Path
) -> None:
    old = (root / "huge").read_bytes()
    target.write_bytes(old)
    with RawClientV2(address) as reader:
        # Neither socket's buffers hold all of it: the server has to go on reading from the old one.
        reader.ask(SPLICE, "/target")
        assert reader.receive(1) == b"\2"
        reader.decoder.feed(b"\2")
        assert v2.put("/target", b"new").status == OK
        assert v2.call(DELETE, "/target").status == OK
        assert reader.answer().read() == old


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("/directory", FORBIDDEN),
        ("/link", FORBIDDEN),
        ("/fifo", FORBIDDEN),
        ("/a/below", FORBIDDEN),
        ("/none/below", NOT_FOUND),
        ("/.objmapper/x", NOT_FOUND),
        ("/.objmapper", NOT_FOUND),
        ("/../x", INVALID_REQUEST),
        ("/directory/", INVALID_REQUEST),
        ("/" + "n" * 256, INVALID_REQUEST),
    ],
)
def test_a_refused_put_is_answered_at_once_and_the_rest_skipped(v2: RawClientV2, uri: str, status: int) -> None:
    """The answer is there before the content: a client that has much to send may stop preparing it."""
    content = random.Random(5).randbytes(100_000)
    v2.send(v2.encode(PUT, uri, content_len=len(content)))
    assert v2.answer().fails(status)
    v2.send(content, v2.encode(COPY, "/a"))
    assert v2.answer().status == OK


def test_a_frame_that_is_refused_has_its_content_skipped(v2: RawClientV2) -> None:
    length = parameter(0x84, struct.pack(">Q", 100_000))
    for number, refused, status in [
        (1, frame(1, b"p", b"n" * 9000, parameters=length), URI_TOO_LONG),
        (2, frame(2, b"p", b"/\xff", parameters=length), INVALID_REQUEST),
        (3, frame(3, b"2", b"/a", parameters=length), INVALID_REQUEST),
        (4, frame(4, b"p", b"/a", parameters=length + parameter(0x81, b"")), INVALID_REQUEST),
    ]:
        v2.expect(number)
        v2.next_id = 5
        v2.send(refused)
        assert v2.answer().fails(status)
        v2.send(b"\1" * 100_000, v2.encode(COPY, "/a"))
        assert v2.answer().status == OK


def test_directories_are_made_where_that_was_asked_for(v2: RawClientV2, root: Path) -> None:
    assert v2.put("/deep/er/object", b"x").fails(NOT_FOUND)
    assert v2.put("/deep/er/object", b"x", make_parents=True).status == OK
    assert (root / "deep/er/object").read_bytes() == b"x"
    assert v2.put("/deep/er/object", b"y", make_parents=True).status == OK
    assert v2.call(DELETE, "/deep/er/object").status == OK
    (root / "deep/er").rmdir()
    (root / "deep").rmdir()


def test_a_deadline_that_has_passed_touches_nothing(v2: RawClientV2, target: Path) -> None:
    v2.send(v2.encode(PUT, "/target", content_len=1 << 20, deadline_ms=0))
    # At once, not when the content has come.
    assert v2.answer().fails(TIMEOUT)
    v2.send(bytes(1 << 20), v2.encode(COPY, "/a"))
    assert v2.answer().status == OK
    assert not target.exists()


def test_conditions_of_a_put(v2: RawClientV2, target: Path) -> None:
    assert v2.put("/target", b"1", if_match="*").fails(CONFLICT)
    assert v2.put("/target", b"1", if_none_match="*").status == OK
    assert v2.put("/target", b"2", if_none_match="*").fails(CONFLICT)
    first = v2.call(STAT, "/target").metadata.etag
    assert first is not None
    assert v2.put("/target", b"2", if_match="0" * 16).fails(CONFLICT)
    second = v2.put("/target", b"2", if_match=first)
    assert second.status == OK
    assert v2.put("/target", b"3", if_match=first).fails(CONFLICT)
    assert second.metadata.etag is not None
    assert v2.put("/target", b"3", if_none_match=second.metadata.etag).fails(CONFLICT)
    assert v2.put("/target", b"3", if_match="no etag").fails(INVALID_REQUEST)
    assert target.read_bytes() == b"2"
    assert v2.put("/target", b"3", if_match="*").status == OK
    assert target.read_bytes() == b"3"


def test_of_two_that_put_over_the_same_version_one_succeeds(address: str, target: Path) -> None:
    target.write_bytes(b"0")
    with RawClientV2(address) as one, RawClientV2(address) as other:
        for round_ in range(50):
            etag = one.call(STAT, "/target").metadata.etag
            one.send(one.encode(PUT, "/target", content_len=3, if_match=etag), b"one")
            other.send(other.encode(PUT, "/target", content_len=5, if_match=etag), b"other")
            statuses = [one.answer().status, other.answer().status]
            assert sorted(statuses) == [OK, CONFLICT], round_
            assert target.read_bytes() == (b"one" if statuses[0] == OK else b"other")


def test_delete(v2: RawClientV2, target: Path) -> None:
    assert v2.call(DELETE, "/target").fails(NOT_FOUND)
    etag = v2.put("/target", b"x").metadata.etag
    assert v2.call(DELETE, "/target", if_match="0" * 16).fails(CONFLICT)
    assert v2.call(DELETE, "/target", if_match=etag).status == OK
    assert not target.exists()
    assert v2.call(STAT, "/target").fails(NOT_FOUND)
    for uri, status in [
        ("/directory", FORBIDDEN),
        ("/link", FORBIDDEN),
        ("/none/x", NOT_FOUND),
        ("/..", INVALID_REQUEST),
    ]:
        assert v2.call(DELETE, uri).fails(status)


def test_a_server_without_writes_refuses_them(model: Concurrency, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"a")
    config = Config(root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model=model, admin=None)
    with Server(config) as server:
        for address in server.addresses.values():
            with RawClientV2(address) as v2:
                assert v2.call(DELETE, "/a").fails(FORBIDDEN)
                assert v2.call(PUT_DESCRIPTOR, "/target").fails(FORBIDDEN)
                v2.send(v2.encode(PUT, "/target", content_len=1 << 20))
                assert v2.answer().fails(FORBIDDEN)
                v2.send(bytes(1 << 20))
                assert v2.call(COPY, "/a").status == OK
        before = descriptors_of()
        with RawClientV2(server.addresses["unix"]) as v2, (root / "a").open("rb") as file:
            try:
                socket.send_fds(v2.socket, [v2.encode(PUT_DESCRIPTOR, "/target")], [file.fileno()])
                assert v2.answer().fails(FORBIDDEN)
            except PermissionError:  # Linux 6.16 and later refuse on the server's behalf
                pass
            assert eventually(lambda: descriptors_of() <= before + 3)
    assert not (root / "target").exists()
    assert not (root / ".objmapper").exists()


def test_clients_that_vanish_midway_leave_nothing(server: Server, transport: str, root: Path, target: Path) -> None:
    before = descriptors_of()
    for length in (0, 1, 4096, 300_000):
        for _ in range(5):
            v2 = RawClientV2(server.addresses[transport])
            v2.send(v2.encode(PUT, "/target", content_len=1_000_000), bytes(length))
            v2.close()
    assert eventually(lambda: descriptors_of() <= before)
    assert not target.exists()
    assert unfinished_writes(root) == []


def test_a_put_that_ends_early_stores_nothing(v2: RawClientV2, target: Path) -> None:
    v2.send(v2.encode(COPY, "/a"), v2.encode(PUT, "/target", content_len=10), b"123456789")
    v2.socket.shutdown(socket.SHUT_WR)
    assert v2.answer().status == OK
    v2.pending.clear()
    assert v2.is_closed()
    assert not target.exists()


def test_pages_of_a_list(v2: RawClientV2) -> None:
    names = [f"/many/{number:02}" for number in range(64)]
    found = []
    cursor = None
    pages = 0
    while True:
        answer = v2.call(LIST, "/many/", limit=10, cursor=cursor)
        entries = answer.entries()
        assert len(entries) <= 10
        assert all(entry.size == 2 for entry in entries)
        found += [entry.uri for entry in entries]
        pages += 1
        cursor = answer.metadata.cursor
        if cursor is None:
            break
    assert found == names
    assert pages == 7
    assert [entry.uri for entry in v2.call(LIST, "/many/1").entries()] == names[10:20]
    assert v2.call(LIST, "/many/none").entries() == []
    assert v2.call(LIST, "/many/", limit=0).entries()


def test_a_list_is_in_the_order_of_uris_and_of_objects_only(v2: RawClientV2) -> None:
    listed = [entry.uri for entry in v2.call(LIST, "/").entries()]
    assert listed == sorted(listed, key=str.encode)
    assert {"/a", "/empty", "/huge", "/many/00", "/directory/nested é"} <= set(listed)
    assert not {"/fifo", "/link"} & set(listed)
    assert not [uri for uri in listed if "objmapper" in uri]
    assert v2.call(LIST, "/.objmapper/").fails(NOT_FOUND)


def test_a_cursor_of_another_list_is_refused(v2: RawClientV2) -> None:
    cursor = v2.call(LIST, "/many/", limit=1).metadata.cursor
    assert cursor is not None
    assert v2.call(LIST, "/many/", limit=1, cursor=cursor).entries()[0].uri == "/many/01"
    for uri, wrong in [
        ("/", cursor),
        ("/many/1", cursor),
        ("/many/", cursor[:-1]),
        ("/many/", b""),
        ("/many/", b"x" * 40),
    ]:
        assert v2.call(LIST, uri, cursor=wrong).fails(INVALID_REQUEST)


def test_a_put_is_in_the_next_list(v2: RawClientV2, target: Path) -> None:
    for content in (b"1", b"22"):
        assert v2.put("/target", content).status == OK
        (entry,) = v2.call(LIST, "/target").entries()
        assert (entry.uri, entry.size) == ("/target", len(content))
    assert v2.call(DELETE, "/target").status == OK
    assert v2.call(LIST, "/target").entries() == []


def test_operations_are_counted_by_name(root: Path, model: Concurrency, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", concurrency_model=model, admin=None, writable=True)
    with (
        Server(config) as server,
        RawClientV2(server.addresses["unix"], EXTENDED) as v2,
        (root / "a").open("rb") as file,
    ):
        for operation in (FDPASS, COPY, SPLICE, STAT, LIST):
            for _ in range(3):
                v2.call(operation, "/small").read()
        v2.put("/target", bytes(10))
        v2.put_descriptor("/target", file.fileno())
        v2.put_descriptor("/a/below", file.fileno())
        v2.put("/a/below", bytes(10))
        v2.call(DELETE, "/target")
        v2.call(DELETE, "/target")
        v2.call(STAT, "/missing")
        v2.send(frame(99, b"l", b"/\xff"), frame(98, b"P", b""), frame(97, b"p", b"/x"), frame(96, b"?", b"/x"))
        for number in range(96, 100):
            v2.expect(number)
        v2.answers(4)
        with RawClient(server.addresses["unix"]) as v1:
            v1.ask(COPY_ONE, "/a")
        counts = {"fdpass": 3, "copy": 4, "splice": 3, "stat": 4, "list": 4, "put": 3, "put-descriptor": 3, "delete": 2}
        # A request of unknown kind counts as the most frequent kind.
        counts["fdpass"] += 1
        assert eventually(lambda: server.statistics().total.requests_total == sum(counts.values()))
        statistics = server.statistics()
        assert {name: figures.requests_total for name, figures in statistics.modes.items()} == counts
        errors = {
            name: dict(figures.errors_total) for name, figures in statistics.modes.items() if figures.errors_total
        }
        assert errors == {
            "fdpass": {"INVALID_MODE": 1},
            "stat": {"NOT_FOUND": 1},
            "list": {"INVALID_REQUEST": 1},
            "put": {"FORBIDDEN": 1, "INVALID_REQUEST": 1},
            "put-descriptor": {"FORBIDDEN": 1, "INVALID_REQUEST": 1},
            "delete": {"NOT_FOUND": 1},
        }
        assert eventually(lambda: server.statistics().descriptors_in_flight == 0)
        assert server.statistics().disk_io_pending == 0
        assert statistics.models[str(model)].requests_total == sum(counts.values())
