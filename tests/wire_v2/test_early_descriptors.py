"""Each put by descriptor stores the file that was passed with it, or is refused: never another's."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.raw_client import INVALID_REQUEST, OK, RawClient
from tests.support.raw_client_v2 import PUT, PUT_DESCRIPTOR, STAT, RawClientV2, hello
from tests.support.server_process import ServerProcess


class EarlyDescriptorClient(RawClientV2):
    """A connection on which the greeting is the test's to send."""

    def __init__(self, address: str) -> None:
        RawClient.__init__(self, address, 20.0)
        self.pending = {}
        self.next_id = 1

    def send_with_descriptors(self, data: bytes, *files: int) -> None:
        socket.send_fds(self.socket, [data], list(files))

    def begin(self) -> None:
        """Takes the answer to the greeting in; what was asked before is still expected."""
        asked, following = self.pending, self.next_id
        self.read_hello_ack()
        self.pending, self.next_id = asked, following


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    found = []
    for name in "ABC":
        (tmp_path / name).write_bytes(b"content of " + name.encode())
        found.append(os.open(tmp_path / name, os.O_RDONLY))
    yield found
    for descriptor in found:
        os.close(descriptor)


@pytest.fixture
def places(root: Path) -> Iterator[list[Path]]:
    found = [root / f"early-{name}" for name in "ABC"]
    yield found
    for path in found:
        path.unlink(missing_ok=True)


def mixed(places: list[Path]) -> list[Path]:
    return [path for path in places if path.exists() and path.read_bytes() != b"content of " + path.name[-1:].encode()]


@pytest.mark.parametrize("split", [0, 1, 4], ids=["greeting and put in one", "greeting in pieces", "greeting first"])
def test_a_descriptor_passed_before_the_hello_ack_is_stored(
    unix: str, files: list[int], places: list[Path], split: int
) -> None:
    with EarlyDescriptorClient(unix) as v2:
        first, second = (v2.encode(PUT_DESCRIPTOR, f"/{path.name}") for path in places[:2])
        hello_frame = hello()
        if split == 0:
            v2.send_with_descriptors(hello_frame + first, files[0])
        else:
            v2.send(hello_frame[:split])
            v2.send(hello_frame[split:])
            v2.send_with_descriptors(first, files[0])
        v2.send_with_descriptors(second, files[1])
        v2.begin()
        assert [answer.status for answer in v2.answers(2).values()] == [OK, OK]
    assert [path.exists() for path in places] == [True, True, False]
    assert mixed(places) == []


def test_a_descriptor_beside_content_belongs_to_the_next_put(unix: str, files: list[int], places: list[Path]) -> None:
    with RawClientV2(unix) as v2:
        put = v2.encode(PUT, "/early-C", content_len=len(b"content of C") * 3)
        one, other = (v2.encode(PUT_DESCRIPTOR, f"/{path.name}") for path in places[:2])
        v2.send(put, b"content of C")
        socket.send_fds(v2.socket, [b"content of C" * 2 + one], [files[0]])
        socket.send_fds(v2.socket, [other], [files[1]])
        assert [answer.status for answer in v2.answers(3).values()] == [OK] * 3
    places[2].write_bytes(places[2].read_bytes()[:12])
    assert [path.exists() for path in places] == [True, True, True]
    assert mixed(places) == []


@pytest.mark.parametrize("cut", [None, 7, 20], ids=["whole", "head of the second", "part of the second"])
def test_a_put_without_its_descriptor_does_not_get_that_of_the_next(tmp_path: Path, files: list[int], cut: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with ServerProcess(root, tmp_path / "o.sock", "--writable") as server, RawClientV2(server.addresses["unix"]) as v2:
        lost, other, after = (v2.encode(PUT_DESCRIPTOR, f"/early-{name}") for name in "ABC")
        with server.stopped():
            # The server reads both at once.
            v2.send(lost)
            socket.send_fds(v2.socket, [other[:cut]], [files[1]])
        if cut is not None:
            v2.send(other[cut:])
        assert {answer.status for answer in v2.answers(2).values()} == {INVALID_REQUEST}
        # The connection is as good as before.
        socket.send_fds(v2.socket, [after], [files[2]])
        assert v2.answer().status == OK
        assert v2.call(STAT, "/early-C").status == OK
    assert [path.name for path in root.iterdir() if path.is_file()] == ["early-C"]
    assert (root / "early-C").read_bytes() == b"content of C"
