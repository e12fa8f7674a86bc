"""However a put ends, it has one answer, and gives back what it had: its place, the bytes reserved for it, its file."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.models import MODELS
from tests.support.raw_client import OK, UNAVAILABLE
from tests.support.raw_client_v2 import COPY, PUT, PUT_DESCRIPTOR, STAT, STORAGE_ERROR, RawClientV2
from tests.support.stuck_files import StuckFile, why_not


@pytest.fixture(params=MODELS, ids=str)
def short(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that waits for contents for two seconds."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/huge").write_bytes(bytes(64 << 20))
    config = Config(
        root=tmp_path / "root",
        unix=tmp_path / "o.sock",
        tcp="127.0.0.1:0",
        admin=None,
        writable=True,
        concurrency_model=Concurrency(request.param),
        request_timeout=1,
        upload_timeout=2,
    )
    with Server(config) as server:
        yield server


def is_idle(server: Server) -> bool:
    statistics = server.statistics()
    return (statistics.uploads_in_flight, statistics.reserved_bytes, statistics.disk_io_pending) == (0, 0, 0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_announced_bytes_are_in_the_statistics_until_the_client_leaves(short: Server, transport: str) -> None:
    address = short.addresses[transport]
    with RawClientV2(address) as v2:
        v2.call(STAT, "/huge")
        before = descriptors()
        v2.send(v2.encode(PUT, "/abandoned", content_len=8 << 20), bytes(1 << 20))
        assert eventually(
            lambda: (short.statistics().uploads_in_flight, short.statistics().reserved_bytes) == (1, 7 << 20)
        )
    assert eventually(lambda: is_idle(short))
    assert eventually(lambda: descriptors() < before)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_put_that_was_refused_and_stops_has_no_second_answer(short: Server, transport: str) -> None:
    with RawClientV2(short.addresses[transport]) as v2:
        # The disk has no room for it: the writer thread notices.
        v2.send(v2.encode(PUT, "/huger", content_len=1 << 60))
        assert v2.answer().fails(STORAGE_ERROR)
        v2.send(b"x")
        rest = b""
        with contextlib.suppress(ConnectionResetError):
            rest = v2.socket.recv(4096)
        assert rest == b""
    assert eventually(lambda: is_idle(short))


def test_a_content_has_upload_timeout_while_its_client_hardly_reads_its_answers(short: Server) -> None:
    with RawClientV2(short.addresses["unix"], timeout=1) as v2:
        v2.send(v2.encode(COPY, "/huge"), v2.encode(PUT, "/held", content_len=8 << 20), b"x")
        began = time.monotonic()
        seen = False
        # The client reads its answer, too slowly for the rest of it to come within an hour.
        while time.monotonic() - began < 60:
            try:
                if not v2.socket.recv(4096):
                    break
            except ConnectionResetError:
                break
            seen |= short.statistics().uploads_in_flight == 1
            if seen and is_idle(short):
                break
            time.sleep(0.2)
        assert seen
        assert is_idle(short)


def test_a_file_that_was_opened_for_whole_blocks_is_stored_to_its_last_byte(short: Server, tmp_path: Path) -> None:
    content = os.urandom(100_001)
    (tmp_path / "source").write_bytes(content)
    try:
        source = os.open(tmp_path / "source", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    try:
        with RawClientV2(short.addresses["unix"]) as v2:
            assert v2.put_descriptor("/direct", source).status == OK
            assert v2.call(COPY, "/direct").read() == content
    finally:
        os.close(source)


class DelayedFile(StuckFile):
    """A file system that does not let go of a file: close(2) waits for it."""

    def _answer(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        if opcode == 25 and not self.is_released.is_set():
            self._waiting.append((unique, 0, 0))
        else:
            super()._answer(opcode, unique, node, body)


@pytest.mark.skipif(why_not() != "", reason=why_not() or "file systems in user space work")
def test_files_that_the_server_cannot_close_take_few_of_its_descriptors(short: Server, tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    file = DelayedFile(tmp_path / "mounted")
    source = os.open(file.path, os.O_RDONLY)
    address = short.addresses["unix"]
    try:
        with RawClientV2(address) as attacker:
            before = descriptors()
            for _ in range(40):
                # No put takes them, so the server closes them all.
                socket.send_fds(attacker.socket, [attacker.encode(STAT, "/huge")], [source] * 250)
                assert attacker.answer().status == OK
            assert descriptors() - before < 2000
            socket.send_fds(attacker.socket, [attacker.encode(PUT_DESCRIPTOR, "/refused")], [source])
            refusal = attacker.answer()
            assert refusal.fails(UNAVAILABLE)
            assert "still being closed" in (refusal.metadata.message or "")
        with RawClientV2(address) as honest:
            assert honest.put("/content", bytes(300_000)).status == OK
    finally:
        file.release()
        os.close(source)
        closing = threading.Thread(target=file.close)
        closing.start()
        closing.join(30)
    assert eventually(lambda: is_idle(short))
