"""Puts by descriptor of files that never answer, or that are larger than there is room: they hold up nobody else."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import Client
from tests.server_process import ServerProcess
from tests.stuck_files import SIZE, StuckFile, stuck_file, why_not
from tests.version_two.client import COPY, LIST, PUT, PUT_DESCRIPTOR, STORAGE_ERROR, Two
from tests.wire import FORBIDDEN, OK

needs_fuse = pytest.mark.skipif(why_not() != "", reason=why_not() or "file systems in user space work")
UNSUPPORTED_OP, UNAVAILABLE = 0x05, 0x14
MODELS = ["thread-per-connection", "thread-pool", "work-stealing", "epoll"]


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[StuckFile]:
    with stuck_file(tmp_path / "mounted") as found:
        yield found


@pytest.fixture(params=MODELS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(50):
        (root / f"{number}").write_bytes(b"%d" % number)
    flags = ["--writable", "--concurrency-model", str(request.param), "--cache-size", "0", "--request-timeout", "2"]
    flags += ["--shutdown-grace", "1"]
    with ServerProcess(root, tmp_path / "o.sock", *flags) as server:
        yield server


def ask_for_stuck(two: Two, stuck: StuckFile, count: int, **parameters: int) -> None:
    with stuck.path.open("rb") as source:
        for number in range(count):
            request = two.encode(PUT_DESCRIPTOR, f"/stuck-{number}", **parameters)
            socket.send_fds(two.socket, [request], [source.fileno()])


@needs_fuse
def test_files_that_never_answer_are_refused_unread(server: ServerProcess, stuck: StuckFile, tmp_path: Path) -> None:
    address = server.addresses["unix"]
    with Two(address) as hostile, Two(address) as honest:
        # As many as one connection may have under way.
        ask_for_stuck(hostile, stuck, 60)
        for number in range(50):
            assert honest.call(COPY, f"/{number}").read() == b"%d" % number
        assert honest.call(LIST, "/").status == OK
        assert honest.put("/content", b"c" * 300_000).status == OK
        assert {answer.status for answer in hostile.answers(60).values()} <= {UNSUPPORTED_OP, UNAVAILABLE}
        ask_for_stuck(honest, stuck, 1)
        refusal = honest.answer()
        assert refusal.fails(UNSUPPORTED_OP)
        assert "send the content" in refusal.metadata.message
    assert not stuck.is_read.is_set()
    assert not list((tmp_path / "root").glob("stuck*"))


@needs_fuse
def test_a_stop_does_not_wait_for_a_file_that_never_answers(server: ServerProcess, stuck: StuckFile) -> None:
    with Two(server.addresses["unix"]) as two:
        ask_for_stuck(two, stuck, 20)
        server.process.send_signal(signal.SIGTERM)
        # The process itself is gone, though the file system still answers no read.
        assert server.process.wait(60) == 0
    assert not stuck.is_released.is_set()


@needs_fuse
def test_the_client_sends_the_content_of_a_file_that_the_server_does_not_read(
    server: ServerProcess, stuck: StuckFile
) -> None:
    stuck.content = bytes(range(256)) * (SIZE // 256)
    with Client(server.addresses["unix"]) as client:
        assert client.put("/from-user-space", stuck.path).size == SIZE
        with client.open("/from-user-space") as stored:
            assert stored.read() == stuck.content


def sparse(length: int, data: dict[int, bytes] | None = None) -> int:
    descriptor = os.memfd_create("sparse")
    os.ftruncate(descriptor, length)
    for offset, piece in (data or {}).items():
        os.pwrite(descriptor, piece, offset)
    return descriptor


def test_a_memory_file_of_a_pebibyte_is_refused_at_once(server: ServerProcess, tmp_path: Path) -> None:
    pebibyte = sparse(1 << 50)
    try:
        with Two(server.addresses["unix"]) as two:
            assert two.put_descriptor("/huge", pebibyte).fails(STORAGE_ERROR)
            assert two.call(COPY, "/7").read() == b"7"
            # The same of what is announced.
            two.send(two.encode(PUT, "/huge", content_len=1 << 50))
            assert two.answer().fails(STORAGE_ERROR)
    finally:
        os.close(pebibyte)
    assert not (tmp_path / "root/huge").exists()


def test_holes_stay_holes(server: ServerProcess, tmp_path: Path) -> None:
    source = sparse(64 << 20, {1 << 20: b"one" * 1000, 40 << 20: b"two" * 1000})
    try:
        os.lseek(source, 4711, os.SEEK_SET)
        with Two(server.addresses["unix"]) as two:
            assert two.put_descriptor("/sparse", source).status == OK
        assert os.lseek(source, 0, os.SEEK_CUR) == 4711
        stored = tmp_path / "root/sparse"
        assert stored.stat().st_blocks * 512 < 1 << 20
        assert stored.read_bytes() == os.pread(source, 64 << 20, 0)
    finally:
        os.close(source)


def test_no_object_is_larger_than_max_object_size(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    flags = ["--writable", "--max-object-size", "100KiB"]
    with ServerProcess(tmp_path / "root", tmp_path / "o.sock", *flags) as server:
        fits, over = sparse(100 << 10), sparse((100 << 10) + 1)
        with Two(server.addresses["unix"]) as two:
            assert two.put("/content", bytes(100 << 10)).status == OK
            assert two.put_descriptor("/descriptor", fits).status == OK
            # Said before the content comes, and of a content that came with its request.
            two.send(two.encode(PUT, "/over", content_len=(100 << 10) + 1))
            assert two.answer().fails(FORBIDDEN)
            two.send(bytes((100 << 10) + 1))
            assert two.put_descriptor("/over", over).fails(FORBIDDEN)
        os.close(fits)
        os.close(over)
    flags = ["--writable", "--max-object-size", "9"]
    with (
        ServerProcess(tmp_path / "root", tmp_path / "o.sock", *flags) as server,
        Two(server.addresses["unix"]) as two,
    ):
        assert two.put("/nine", b"123456789").status == OK
        assert two.put("/ten", b"1234567890").fails(FORBIDDEN)
    stored = sorted(path.name for path in (tmp_path / "root").iterdir() if path.is_file())
    assert stored == ["content", "descriptor", "nine"]
