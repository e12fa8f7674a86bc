"""Put by content and by descriptor, delete, list: all clients see acknowledged writes, and no others."""

import os
import random
import socket
import struct
from collections.abc import Iterator
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

SIZES = {"none": 0, "one": 1, "page": 4096, "input": 16 << 10, "over": (16 << 10) + 1, "megabytes": 5 << 20}


def unfinished(root: Path) -> list[Path]:
    """What writes have left in the server's own directory."""
    return [path for path in (root / ".objmapper").rglob("*") if not path.is_dir()]


@pytest.fixture(autouse=True)
def nothing_is_left_behind(root: Path) -> Iterator[None]:
    yield
    assert eventually(lambda: unfinished(root) == []), unfinished(root)


@pytest.fixture
def target(root: Path) -> Iterator[Path]:
    """Where a test may put."""
    yield root / "target"
    (root / "target").unlink(missing_ok=True)


@pytest.fixture(params=SIZES, scope="module")
def content(request: pytest.FixtureRequest) -> bytes:
    return random.Random(3).randbytes(SIZES[request.param])


def test_every_operation_sees_a_put(two: RawClientV2, server: Server, target: Path, content: bytes) -> None:
    answer = two.put("/target", content)
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


def test_a_put_may_come_in_pieces(two: RawClientV2, target: Path) -> None:
    content = random.Random(4).randbytes(50_000)
    request = two.encode(PUT, "/target", content_len=len(content))
    for byte in request:
        two.send(bytes([byte]))
    for at in range(100):
        two.send(content[at : at + 1])
    for at in range(100, len(content), 7_000):
        two.send(content[at : at + 7_000])
    assert two.answer().status == OK
    assert target.read_bytes() == content


def test_puts_and_gets_in_one_packet(two: RawClientV2, root: Path) -> None:
    contents = {f"ahead-{number}": b"%d" % number * number for number in range(40)}
    pieces = []
    for name, content in contents.items():
        pieces += [two.encode(PUT, name, content_len=len(content)), content, two.encode(COPY, "/a")]
    two.send(*pieces)
    assert all(answer.status == OK for answer in two.answers(80).values())
    for name, content in contents.items():
        assert (root / name).read_bytes() == content
        (root / name).unlink()


def test_a_put_replaces_and_open_descriptors_keep_the_old_object(two: RawClientV2, unix: str, target: Path) -> None:
    target.write_bytes(b"old" * 1000)
    target.chmod(0o640)
    with RawClientV2(unix) as reader:
        held = reader.call(FDPASS, "/target")
        assert two.put("/target", b"new").status == OK
        assert held.read() == b"old" * 1000
        assert reader.call(FDPASS, "/target").read() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_long_answer_under_way_stays_that_of_the_old_object(
    two: RawClientV2, address: str, root: Path, target: Path
) -> None:
    old = (root / "huge").read_bytes()
    target.write_bytes(old)
    with RawClientV2(address) as reader:
        # Neither socket's buffers hold all of it: the server has to go on reading from the old one.
        reader.ask(SPLICE, "/target")
        assert reader.receive(1) == b"\2"
        reader.decoder.feed(b"\2")
        assert two.put("/target", b"new").status == OK
        assert two.call(DELETE, "/target").status == OK
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
def test_a_refused_put_is_answered_at_once_and_the_rest_skipped(two: RawClientV2, uri: str, status: int) -> None:
    """The answer is there before the content: a client that has much to send may stop preparing it."""
    content = random.Random(5).randbytes(100_000)
    two.send(two.encode(PUT, uri, content_len=len(content)))
    assert two.answer().fails(status)
    two.send(content, two.encode(COPY, "/a"))
    assert two.answer().status == OK


def test_a_frame_that_is_refused_has_its_content_skipped(two: RawClientV2) -> None:
    length = parameter(0x84, struct.pack(">Q", 100_000))
    for number, refused, status in [
        (1, frame(1, b"p", b"n" * 9000, parameters=length), URI_TOO_LONG),
        (2, frame(2, b"p", b"/\xff", parameters=length), INVALID_REQUEST),
        (3, frame(3, b"2", b"/a", parameters=length), INVALID_REQUEST),
        (4, frame(4, b"p", b"/a", parameters=length + parameter(0x81, b"")), INVALID_REQUEST),
    ]:
        two.expect(number)
        two.next_id = 5
        two.send(refused)
        assert two.answer().fails(status)
        two.send(b"\1" * 100_000, two.encode(COPY, "/a"))
        assert two.answer().status == OK


def test_directories_are_made_where_that_was_asked_for(two: RawClientV2, root: Path) -> None:
    assert two.put("/deep/er/object", b"x").fails(NOT_FOUND)
    assert two.put("/deep/er/object", b"x", make_parents=True).status == OK
    assert (root / "deep/er/object").read_bytes() == b"x"
    assert two.put("/deep/er/object", b"y", make_parents=True).status == OK
    assert two.call(DELETE, "/deep/er/object").status == OK
    (root / "deep/er").rmdir()
    (root / "deep").rmdir()


def test_a_deadline_that_has_passed_touches_nothing(two: RawClientV2, target: Path) -> None:
    two.send(two.encode(PUT, "/target", content_len=1 << 20, deadline_ms=0))
    # At once, not when the content has come.
    assert two.answer().fails(TIMEOUT)
    two.send(bytes(1 << 20), two.encode(COPY, "/a"))
    assert two.answer().status == OK
    assert not target.exists()


def test_conditions_of_a_put(two: RawClientV2, target: Path) -> None:
    assert two.put("/target", b"1", if_match="*").fails(CONFLICT)
    assert two.put("/target", b"1", if_none_match="*").status == OK
    assert two.put("/target", b"2", if_none_match="*").fails(CONFLICT)
    first = two.call(STAT, "/target").metadata.etag
    assert first is not None
    assert two.put("/target", b"2", if_match="0" * 16).fails(CONFLICT)
    second = two.put("/target", b"2", if_match=first)
    assert second.status == OK
    assert two.put("/target", b"3", if_match=first).fails(CONFLICT)
    assert second.metadata.etag is not None
    assert two.put("/target", b"3", if_none_match=second.metadata.etag).fails(CONFLICT)
    assert two.put("/target", b"3", if_match="no etag").fails(INVALID_REQUEST)
    assert target.read_bytes() == b"2"
    assert two.put("/target", b"3", if_match="*").status == OK
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


def test_delete(two: RawClientV2, target: Path) -> None:
    assert two.call(DELETE, "/target").fails(NOT_FOUND)
    etag = two.put("/target", b"x").metadata.etag
    assert two.call(DELETE, "/target", if_match="0" * 16).fails(CONFLICT)
    assert two.call(DELETE, "/target", if_match=etag).status == OK
    assert not target.exists()
    assert two.call(STAT, "/target").fails(NOT_FOUND)
    for uri, status in [
        ("/directory", FORBIDDEN),
        ("/link", FORBIDDEN),
        ("/none/x", NOT_FOUND),
        ("/..", INVALID_REQUEST),
    ]:
        assert two.call(DELETE, uri).fails(status)


def put_descriptor(two: RawClientV2, uri: str, descriptor: int) -> None:
    socket.send_fds(two.socket, [two.encode(PUT_DESCRIPTOR, uri)], [descriptor])


def test_a_put_by_descriptor_copies(unix: str, target: Path, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    with RawClientV2(unix) as two, source.open("r+b") as file:
        file.seek(7)
        answer = two.put_descriptor("/target", file.fileno())
        assert answer.status == OK
        assert answer.metadata.size == len(content)
        file.seek(0)
        file.write(b"changed after the answer")
        file.flush()
        assert target.read_bytes() == content
        assert target.stat().st_ino != source.stat().st_ino
        assert two.call(STAT, "/target").metadata == answer.metadata


def test_a_memory_file_can_be_put(unix: str, target: Path) -> None:
    with RawClientV2(unix) as two, os.fdopen(os.memfd_create("source"), "w+b") as file:
        file.write(b"from memory" * 10_000)
        file.flush()
        assert two.put_descriptor("/target", file.fileno()).status == OK
        assert target.read_bytes() == b"from memory" * 10_000


def test_several_puts_by_descriptor_in_one_message(unix: str, root: Path, tmp_path: Path) -> None:
    names = [f"passed-{number:02}" for number in range(60)]
    with RawClientV2(unix) as two:
        files = []
        for name in names:
            (tmp_path / name).write_bytes(name.encode())
            files.append((tmp_path / name).open("rb"))
        requests = [two.encode(PUT_DESCRIPTOR, name) + two.encode(COPY, "/a") for name in names]
        socket.send_fds(two.socket, [b"".join(requests)], [file.fileno() for file in files])
        assert all(answer.status == OK for answer in two.answers(120).values())
        for name, file in zip(names, files, strict=True):
            assert (root / name).read_bytes() == name.encode()
            file.close()
            assert two.call(DELETE, name).status == OK


def test_a_put_by_descriptor_that_is_refused_takes_its_descriptor_with_it(unix: str, target: Path, root: Path) -> None:
    refused = [
        (frame(900, b"P", b"/" + b"n" * 9000), URI_TOO_LONG),
        (frame(900, b"P", b"/\xff"), INVALID_REQUEST),
        (frame(900, b"P", b"/x", parameters=b"\x81"), INVALID_REQUEST),
        (frame(900, b"P", b"/../x"), INVALID_REQUEST),
        (frame(900, b"P", b"/x", parameters=parameter(0x88, b"no etag")), INVALID_REQUEST),
        (frame(900, b"P", b"/x", parameters=parameter(0x83, bytes(4))), TIMEOUT),
    ]
    with RawClientV2(unix) as two, (root / "large").open("rb") as wrong, (root / "small").open("rb") as right:
        # A connection that has waited for storage has all the descriptors that it needs.
        assert two.put("/target", b"").status == OK
        for request, status in refused:
            before = descriptors_of()
            two.expect(900, PUT_DESCRIPTOR)
            socket.send_fds(
                two.socket, [request + two.encode(PUT_DESCRIPTOR, "/target")], [wrong.fileno(), right.fileno()]
            )
            found = two.answers(2)
            assert found.pop(900).fails(status)
            assert found.popitem()[1].status == OK
            assert target.read_bytes() == (root / "small").read_bytes()
            assert eventually(lambda before=before: descriptors_of() <= before)  # type: ignore[misc]


def test_only_regular_readable_files_can_be_put(unix: str, root: Path, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    wrong = [
        read_end,
        write_end,
        os.open(root, os.O_RDONLY | os.O_DIRECTORY),
        os.open(root / "a", os.O_PATH),
        os.open(tmp_path / "sink", os.O_WRONLY | os.O_CREAT),
        os.open("/dev/null", os.O_RDONLY),
        os.eventfd(0),
        socket.socket().detach(),
    ]
    try:
        with RawClientV2(unix) as two:
            for descriptor in wrong:
                assert two.put_descriptor("/target", descriptor).fails(INVALID_REQUEST)
            two.ask(PUT_DESCRIPTOR, "/target")
            assert two.answer().fails(INVALID_REQUEST)
            assert two.call(COPY, "/a").status == OK
    finally:
        for descriptor in wrong:
            os.close(descriptor)
    assert not (root / "target").exists()


def test_a_put_by_descriptor_needs_a_unix_socket(server: Server, root: Path) -> None:
    with RawClientV2(server.addresses["tcp"]) as two:
        assert two.call(PUT_DESCRIPTOR, "/target").status in {INVALID_REQUEST, 0x03}
        assert two.call(COPY, "/a").status == OK


def test_descriptors_that_belong_to_nothing_are_closed(unix: str, root: Path) -> None:
    before = descriptors_of()
    with RawClientV2(unix) as two, (root / "a").open("rb") as file:
        socket.send_fds(two.socket, [two.encode(COPY, "/a")], [file.fileno()] * 3)
        assert two.answer().status == OK
        # This process holds both ends of the connection, and the file.
        assert eventually(lambda: descriptors_of() <= before + 3)


def test_conditions_and_parents_hold_for_descriptors_too(unix: str, root: Path, target: Path) -> None:
    with RawClientV2(unix) as two, (root / "small").open("rb") as file:
        assert two.put_descriptor("/target", file.fileno(), if_none_match="*").status == OK
        assert two.put_descriptor("/target", file.fileno(), if_none_match="*").fails(CONFLICT)
        assert two.put_descriptor("/new/target", file.fileno()).fails(NOT_FOUND)
        assert two.put_descriptor("/new/target", file.fileno(), make_parents=True).status == OK
        assert two.call(DELETE, "/new/target").status == OK
        (root / "new").rmdir()


def test_a_server_without_writes_refuses_them(model: Concurrency, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"a")
    config = Config(root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model=model, admin=None)
    with Server(config) as server:
        for address in server.addresses.values():
            with RawClientV2(address) as two:
                assert two.call(DELETE, "/a").fails(FORBIDDEN)
                assert two.call(PUT_DESCRIPTOR, "/target").fails(FORBIDDEN)
                two.send(two.encode(PUT, "/target", content_len=1 << 20))
                assert two.answer().fails(FORBIDDEN)
                two.send(bytes(1 << 20))
                assert two.call(COPY, "/a").status == OK
        before = descriptors_of()
        with RawClientV2(server.addresses["unix"]) as two, (root / "a").open("rb") as file:
            try:
                put_descriptor(two, "/target", file.fileno())
                assert two.answer().fails(FORBIDDEN)
            except PermissionError:  # Linux 6.16 and later refuse on the server's behalf
                pass
            assert eventually(lambda: descriptors_of() <= before + 3)
    assert not (root / "target").exists()
    assert not (root / ".objmapper").exists()


def test_clients_that_vanish_midway_leave_nothing(server: Server, transport: str, root: Path, target: Path) -> None:
    before = descriptors_of()
    for length in (0, 1, 4096, 300_000):
        for _ in range(5):
            two = RawClientV2(server.addresses[transport])
            two.send(two.encode(PUT, "/target", content_len=1_000_000), bytes(length))
            two.close()
    assert eventually(lambda: descriptors_of() <= before)
    assert not target.exists()
    assert unfinished(root) == []


def test_a_put_that_ends_early_stores_nothing(two: RawClientV2, target: Path) -> None:
    two.send(two.encode(COPY, "/a"), two.encode(PUT, "/target", content_len=10), b"123456789")
    two.socket.shutdown(socket.SHUT_WR)
    assert two.answer().status == OK
    two.asked.clear()
    assert two.is_closed()
    assert not target.exists()


def test_pages_of_a_list(two: RawClientV2) -> None:
    names = [f"/many/{number:02}" for number in range(64)]
    found = []
    cursor = None
    pages = 0
    while True:
        answer = two.call(LIST, "/many/", limit=10, cursor=cursor)
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
    assert [entry.uri for entry in two.call(LIST, "/many/1").entries()] == names[10:20]
    assert two.call(LIST, "/many/none").entries() == []
    assert two.call(LIST, "/many/", limit=0).entries()


def test_a_list_is_in_the_order_of_uris_and_of_objects_only(two: RawClientV2) -> None:
    listed = [entry.uri for entry in two.call(LIST, "/").entries()]
    assert listed == sorted(listed, key=str.encode)
    assert {"/a", "/empty", "/huge", "/many/00", "/directory/nested é"} <= set(listed)
    assert not {"/fifo", "/link"} & set(listed)
    assert not [uri for uri in listed if "objmapper" in uri]
    assert two.call(LIST, "/.objmapper/").fails(NOT_FOUND)


def test_a_cursor_of_another_list_is_refused(two: RawClientV2) -> None:
    cursor = two.call(LIST, "/many/", limit=1).metadata.cursor
    assert cursor is not None
    assert two.call(LIST, "/many/", limit=1, cursor=cursor).entries()[0].uri == "/many/01"
    for uri, wrong in [
        ("/", cursor),
        ("/many/1", cursor),
        ("/many/", cursor[:-1]),
        ("/many/", b""),
        ("/many/", b"x" * 40),
    ]:
        assert two.call(LIST, uri, cursor=wrong).fails(INVALID_REQUEST)


def test_a_put_is_in_the_next_list(two: RawClientV2, target: Path) -> None:
    for content in (b"1", b"22"):
        assert two.put("/target", content).status == OK
        (entry,) = two.call(LIST, "/target").entries()
        assert (entry.uri, entry.size) == ("/target", len(content))
    assert two.call(DELETE, "/target").status == OK
    assert two.call(LIST, "/target").entries() == []


def test_operations_are_counted_by_name(root: Path, model: Concurrency, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", concurrency_model=model, admin=None, writable=True)
    with (
        Server(config) as server,
        RawClientV2(server.addresses["unix"], EXTENDED) as two,
        (root / "a").open("rb") as file,
    ):
        for operation in (FDPASS, COPY, SPLICE, STAT, LIST):
            for _ in range(3):
                two.call(operation, "/small").read()
        two.put("/target", bytes(10))
        two.put_descriptor("/target", file.fileno())
        two.put_descriptor("/a/below", file.fileno())
        two.put("/a/below", bytes(10))
        two.call(DELETE, "/target")
        two.call(DELETE, "/target")
        two.call(STAT, "/missing")
        two.send(frame(99, b"l", b"/\xff"), frame(98, b"P", b""), frame(97, b"p", b"/x"), frame(96, b"?", b"/x"))
        for number in range(96, 100):
            two.expect(number)
        two.answers(4)
        with RawClient(server.addresses["unix"]) as wire:
            wire.ask(COPY_ONE, "/a")
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
