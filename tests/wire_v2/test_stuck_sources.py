"""Puts by descriptor of files that never answer, or larger than there is room: they hold up no other client."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import Client
from tests.support import file_systems
from tests.support.raw_client import FORBIDDEN, OK
from tests.support.raw_client_v2 import COPY, LIST, PUT, PUT_DESCRIPTOR, STORAGE_ERROR, RawClientV2
from tests.support.server_process import ServerProcess
from tests.support.stuck_files import SIZE, StuckFile, stuck_file, why_not

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


def ask_for_stuck(v2: RawClientV2, stuck: StuckFile, count: int, **parameters: int) -> None:
    with stuck.path.open("rb") as source:
        for number in range(count):
            request = v2.encode(PUT_DESCRIPTOR, f"/stuck-{number}", **parameters)
            socket.send_fds(v2.socket, [request], [source.fileno()])


@needs_fuse
def test_files_that_never_answer_are_refused_unread(server: ServerProcess, stuck: StuckFile, tmp_path: Path) -> None:
    address = server.addresses["unix"]
    with RawClientV2(address) as hostile, RawClientV2(address) as honest:
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
        assert "send the content" in (refusal.metadata.message or "")
    assert not stuck.is_read.is_set()
    assert not list((tmp_path / "root").glob("stuck*"))


@needs_fuse
def test_a_stop_does_not_wait_for_a_file_that_never_answers(server: ServerProcess, stuck: StuckFile) -> None:
    with RawClientV2(server.addresses["unix"]) as v2:
        ask_for_stuck(v2, stuck, 20)
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


def test_a_memory_file_of_a_pebibyte_holds_up_nothing_and_takes_no_room(server: ServerProcess, tmp_path: Path) -> None:
    pebibyte = sparse(1 << 50)
    stored = tmp_path / "root/huge"
    try:
        with RawClientV2(server.addresses["unix"]) as v2:
            answer = v2.put_descriptor("/huge", pebibyte)
            # It is one hole: where the file system allows this size, the object has no block.
            assert answer.status == OK or answer.fails(STORAGE_ERROR)
            assert (stored.stat().st_blocks if stored.exists() else 0) == 0
            assert v2.call(COPY, "/7").read() == b"7"
            # What is announced has no holes.
            v2.send(v2.encode(PUT, "/huger", content_len=1 << 50))
            assert v2.answer().fails(STORAGE_ERROR)
    finally:
        os.close(pebibyte)
    assert not (tmp_path / "root/huger").exists()


@pytest.mark.skipif(file_systems.why_not() != "", reason=file_systems.why_not() or "file systems can be mounted")
def test_a_sparse_file_is_charged_what_it_has_of_its_disk(tmp_path: Path) -> None:
    """The file system has 64 MiB."""
    with (
        file_systems.tmpfs() as root,
        ServerProcess(root, tmp_path / "o.sock", "--writable", "--max-object-size", "1GiB") as server,
        RawClientV2(server.addresses["unix"]) as v2,
    ):
        fits = sparse(1 << 30, {512 << 20: bytes(range(256)) * 4096})
        over, full = sparse((1 << 30) + 1), sparse(1 << 30)
        for offset in range(0, 100 << 20, 1 << 20):
            os.pwrite(full, b"x" * (1 << 20), 2 * offset)
        try:
            assert v2.put_descriptor("/fits", fits).status == OK
            stored = (root / "fits").stat()
            assert (stored.st_size, stored.st_blocks * 512) == (1 << 30, 1 << 20)
            with (root / "fits").open("rb") as file:
                file.seek((512 << 20) - 1)
                assert file.read(257) == b"\0" + bytes(range(256))
            # The size of an object is its whole size.
            assert v2.put_descriptor("/over", over).fails(FORBIDDEN)
            refusal = v2.put_descriptor("/full", full)
            assert refusal.fails(STORAGE_ERROR)
            assert "no space left" in (refusal.metadata.message or "")
            assert v2.put("/small", b"s" * 300_000).status == OK
        finally:
            for descriptor in (fits, over, full):
                os.close(descriptor)
        assert sorted(path.name for path in root.iterdir()) == [".objmapper", "fits", "small"]
        assert [path for path in (root / ".objmapper").rglob("*") if not path.is_dir() and path.stat().st_size] == []


@pytest.mark.skipif(file_systems.why_not() != "", reason=file_systems.why_not() or "file systems can be mounted")
def test_data_that_comes_into_holes_meanwhile_is_stored_or_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """A writer fills unreported holes of the source during the copy; the disk has 64 MiB."""
    with file_systems.tmpfs() as root, ServerProcess(root, tmp_path / "o.sock", "--writable") as server:
        for _ in range(4):
            source = sparse(1 << 30, {number << 23: b"data" for number in range(100)})
            filling = threading.Thread(target=fill, args=[source, 100 << 20])
            with RawClientV2(server.addresses["unix"]) as v2:
                filling.start()
                answer = v2.put_descriptor("/filled", source)
                filling.join()
                assert answer.status == OK or answer.fails(STORAGE_ERROR)
                # The room is there again.
                (root / "filled").unlink(missing_ok=True)
                assert v2.put("/most", bytes(48 << 20)).status == OK
                (root / "most").unlink()
            os.close(source)


def fill(descriptor: int, length: int) -> None:
    for offset in range(0, length, 1 << 20):
        os.pwrite(descriptor, b"f" * (1 << 20), offset)


def test_holes_stay_holes(server: ServerProcess, tmp_path: Path) -> None:
    source = sparse(64 << 20, {1 << 20: b"one" * 1000, 40 << 20: b"two" * 1000})
    try:
        os.lseek(source, 4711, os.SEEK_SET)
        with RawClientV2(server.addresses["unix"]) as v2:
            assert v2.put_descriptor("/sparse", source).status == OK
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
        with RawClientV2(server.addresses["unix"]) as v2:
            assert v2.put("/content", bytes(100 << 10)).status == OK
            assert v2.put_descriptor("/descriptor", fits).status == OK
            # Said before the content comes, and of a content that came with its request.
            v2.send(v2.encode(PUT, "/over", content_len=(100 << 10) + 1))
            assert v2.answer().fails(FORBIDDEN)
            v2.send(bytes((100 << 10) + 1))
            assert v2.put_descriptor("/over", over).fails(FORBIDDEN)
        os.close(fits)
        os.close(over)
    flags = ["--writable", "--max-object-size", "9"]
    with (
        ServerProcess(tmp_path / "root", tmp_path / "o.sock", *flags) as server,
        RawClientV2(server.addresses["unix"]) as v2,
    ):
        assert v2.put("/nine", b"123456789").status == OK
        assert v2.put("/ten", b"1234567890").fails(FORBIDDEN)
    stored = sorted(path.name for path in (tmp_path / "root").iterdir() if path.is_file())
    assert stored == ["content", "descriptor", "nine"]
