"""Contents that are announced and drip: they end in time, and keep little of the disk meanwhile."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.raw_client import OK, TIMEOUT, UNAVAILABLE
from tests.support.raw_client_v2 import PUT, RawClientV2
from tests.support.server_process import ServerProcess

MODELS = ["thread-per-connection", "thread-pool", "work-stealing", "epoll"]


@contextmanager
def serving(tmp_path: Path, model: str, *flags: str) -> Iterator[ServerProcess]:
    (tmp_path / "root").mkdir(exist_ok=True)
    flags = ("--writable", "--concurrency-model", model, *flags)
    with ServerProcess(tmp_path / "root", tmp_path / "o.sock", *flags) as server:
        yield server


def send_slowly(v2: RawClientV2, length: int, pause: float) -> tuple[int, float]:
    """Announces this size, and sends a byte at a time until the reply comes. Returns the status and the time."""
    began = time.monotonic()
    v2.send(v2.encode(PUT, "/dripping", content_len=length))
    v2.socket.settimeout(pause)
    while time.monotonic() - began < 60:
        with suppress(BrokenPipeError, ConnectionResetError):
            # After the answer the server closes the connection; the answer can still be read.
            v2.send(b"x")
        try:
            return v2.answer().status, time.monotonic() - began
        except TimeoutError:
            continue
    raise AssertionError("it goes on for ever")


@pytest.mark.parametrize("model", MODELS)
def test_a_content_that_drips_ends_in_time(tmp_path: Path, model: str) -> None:
    flags = ["--request-timeout", "1", "--min-upload-rate", "1000"]
    with serving(tmp_path, model, *flags) as server, RawClientV2(server.addresses["unix"]) as v2:
        status, after = send_slowly(v2, 1 << 20, 0.1)
        assert status == TIMEOUT
        assert after > 1
    assert not (tmp_path / "root/dripping").exists()


@pytest.mark.parametrize("model", MODELS)
def test_a_content_that_has_stopped_costs_nothing_while_it_is_waited_for(tmp_path: Path, model: str) -> None:
    with serving(tmp_path, model) as server, RawClientV2(server.addresses["unix"]) as v2:
        v2.send(v2.encode(PUT, "/stopped", content_len=1 << 20), bytes(1 << 19))
        assert eventually(lambda: reserved(server) >= 1 << 19)
        time.sleep(0.5)
        before = used(server)
        time.sleep(2)
        assert used(server) - before < 0.5
        v2.send(bytes(1 << 19))
        assert v2.answer().status == OK


def used(server: ServerProcess) -> float:
    """Seconds that the server has had a processor."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_content_may_take_upload_timeout_and_no_longer(tmp_path: Path) -> None:
    flags = ["--min-upload-rate", "0", "--upload-timeout", "2"]
    with serving(tmp_path, "epoll", *flags) as server, RawClientV2(server.addresses["unix"]) as v2:
        status, after = send_slowly(v2, 1 << 20, 0.1)
        assert status == TIMEOUT
        assert after > 2


@pytest.mark.parametrize("model", MODELS)
def test_what_comes_fast_enough_may_take_longer_than_request_timeout(tmp_path: Path, model: str) -> None:
    flags = ["--request-timeout", "1", "--min-upload-rate", "1"]
    with serving(tmp_path, model, *flags) as server, RawClientV2(server.addresses["unix"], timeout=60) as v2:
        content = os.urandom(60_000)
        v2.send(v2.encode(PUT, "/slow", content_len=len(content)))
        for at in range(0, len(content), 2_000):
            v2.send(content[at : at + 2_000])
            time.sleep(0.1)
        assert v2.answer().status == OK
    assert (tmp_path / "root/slow").read_bytes() == content


def reserved(server: ServerProcess) -> int:
    """Bytes that the unfinished files of the server have of the disk."""
    total = 0
    for entry in Path(f"/proc/{server.pid}/fd").iterdir():
        try:
            if "(deleted)" in os.readlink(entry) and "/root/" in os.readlink(entry):
                total += entry.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def test_what_one_user_announces_keeps_no_more_of_the_disk_than_it_may(tmp_path: Path) -> None:
    flags = ["--max-reserved-per-uid", "2MiB", "--max-uploads-per-uid", "5"]
    with serving(tmp_path, "epoll", *flags) as server:
        address = server.addresses["unix"]
        held = [RawClientV2(address) for _ in range(5)]
        try:
            for number, v2 in enumerate(held):
                v2.send(v2.encode(PUT, f"/held-{number}", content_len=32 << 20), b"x")
            assert eventually(lambda: reserved(server) >= 2 << 20)
            assert reserved(server) <= (2 << 20) + 5 * (64 << 10)
            with RawClientV2(address) as other:
                other.send(other.encode(PUT, "/more", content_len=1 << 20))
                assert other.answer().fails(UNAVAILABLE)
            # What came is the disk's own, and what is still to come is reserved further on.
            held[0].send(bytes((32 << 20) - 1))
            assert held[0].answer().status == OK
            assert (tmp_path / "root/held-0").read_bytes() == b"x" + bytes((32 << 20) - 1)
            with RawClientV2(address) as other:
                assert other.put("/more", bytes(1 << 20)).status == OK
        finally:
            for v2 in held:
                v2.close()
        assert eventually(lambda: reserved(server) == 0)
