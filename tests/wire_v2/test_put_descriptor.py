"""Put by descriptor: the server copies what the client passed, and closes what it passed."""

import os
import socket
from pathlib import Path

from objmapper_server import Server
from tests.support.eventually import eventually
from tests.support.raw_client import (
    INVALID_REQUEST,
    NOT_FOUND,
    OK,
    TIMEOUT,
    URI_TOO_LONG,
    descriptors_of,
)
from tests.support.raw_client_v2 import (
    CONFLICT,
    COPY,
    DELETE,
    PUT_DESCRIPTOR,
    STAT,
    RawClientV2,
    frame,
    parameter,
)


def test_a_put_by_descriptor_copies(unix: str, target: Path, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    with RawClientV2(unix) as v2, source.open("r+b") as file:
        file.seek(7)
        answer = v2.put_descriptor("/target", file.fileno())
        assert answer.status == OK
        assert answer.metadata.size == len(content)
        file.seek(0)
        file.write(b"changed after the answer")
        file.flush()
        assert target.read_bytes() == content
        assert target.stat().st_ino != source.stat().st_ino
        assert v2.call(STAT, "/target").metadata == answer.metadata


def test_a_memory_file_can_be_put(unix: str, target: Path) -> None:
    with RawClientV2(unix) as v2, os.fdopen(os.memfd_create("source"), "w+b") as file:
        file.write(b"from memory" * 10_000)
        file.flush()
        assert v2.put_descriptor("/target", file.fileno()).status == OK
        assert target.read_bytes() == b"from memory" * 10_000


def test_several_puts_by_descriptor_in_one_message(unix: str, root: Path, tmp_path: Path) -> None:
    names = [f"passed-{number:02}" for number in range(60)]
    with RawClientV2(unix) as v2:
        files = []
        for name in names:
            (tmp_path / name).write_bytes(name.encode())
            files.append((tmp_path / name).open("rb"))
        requests = [v2.encode(PUT_DESCRIPTOR, name) + v2.encode(COPY, "/a") for name in names]
        socket.send_fds(v2.socket, [b"".join(requests)], [file.fileno() for file in files])
        assert all(answer.status == OK for answer in v2.answers(120).values())
        for name, file in zip(names, files, strict=True):
            assert (root / name).read_bytes() == name.encode()
            file.close()
            assert v2.call(DELETE, name).status == OK


def test_a_put_by_descriptor_that_is_refused_takes_its_descriptor_with_it(unix: str, target: Path, root: Path) -> None:
    refused = [
        (frame(900, b"P", b"/" + b"n" * 9000), URI_TOO_LONG),
        (frame(900, b"P", b"/\xff"), INVALID_REQUEST),
        (frame(900, b"P", b"/x", parameters=b"\x81"), INVALID_REQUEST),
        (frame(900, b"P", b"/../x"), INVALID_REQUEST),
        (frame(900, b"P", b"/x", parameters=parameter(0x88, b"no etag")), INVALID_REQUEST),
        (frame(900, b"P", b"/x", parameters=parameter(0x83, bytes(4))), TIMEOUT),
    ]
    with RawClientV2(unix) as v2, (root / "large").open("rb") as wrong, (root / "small").open("rb") as right:
        # A connection that has waited for storage has all the descriptors that it needs.
        assert v2.put("/target", b"").status == OK
        for request, status in refused:
            before = descriptors_of()
            v2.expect(900, PUT_DESCRIPTOR)
            socket.send_fds(
                v2.socket, [request + v2.encode(PUT_DESCRIPTOR, "/target")], [wrong.fileno(), right.fileno()]
            )
            found = v2.answers(2)
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
        with RawClientV2(unix) as v2:
            for descriptor in wrong:
                assert v2.put_descriptor("/target", descriptor).fails(INVALID_REQUEST)
            v2.ask(PUT_DESCRIPTOR, "/target")
            assert v2.answer().fails(INVALID_REQUEST)
            assert v2.call(COPY, "/a").status == OK
    finally:
        for descriptor in wrong:
            os.close(descriptor)
    assert not (root / "target").exists()


def test_a_put_by_descriptor_needs_a_unix_socket(server: Server, root: Path) -> None:
    with RawClientV2(server.addresses["tcp"]) as v2:
        assert v2.call(PUT_DESCRIPTOR, "/target").status in {INVALID_REQUEST, 0x03}
        assert v2.call(COPY, "/a").status == OK


def test_descriptors_that_belong_to_nothing_are_closed(unix: str, root: Path) -> None:
    before = descriptors_of()
    with RawClientV2(unix) as v2, (root / "a").open("rb") as file:
        socket.send_fds(v2.socket, [v2.encode(COPY, "/a")], [file.fileno()] * 3)
        assert v2.answer().status == OK
        # This process holds both ends of the connection, and the file.
        assert eventually(lambda: descriptors_of() <= before + 3)


def test_conditions_and_parents_hold_for_descriptors_too(unix: str, root: Path, target: Path) -> None:
    with RawClientV2(unix) as v2, (root / "small").open("rb") as file:
        assert v2.put_descriptor("/target", file.fileno(), if_none_match="*").status == OK
        assert v2.put_descriptor("/target", file.fileno(), if_none_match="*").fails(CONFLICT)
        assert v2.put_descriptor("/new/target", file.fileno()).fails(NOT_FOUND)
        assert v2.put_descriptor("/new/target", file.fileno(), make_parents=True).status == OK
        assert v2.call(DELETE, "/new/target").status == OK
        (root / "new").rmdir()
