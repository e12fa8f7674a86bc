"""Puts by descriptor of a local file whose disk stops answering: answered in time, counted; no stop waits for them."""

import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.models import MODELS
from tests.support.raw_client import OK, TIMEOUT
from tests.support.raw_client_v2 import COPY, LIST, PUT_DESCRIPTOR, STORAGE_ERROR, RawClientV2
from tests.support.server_process import ServerProcess
from tests.support.stuck_files import ON_DISK, StuckDisk, stuck_disk, why_no_disk

pytestmark = pytest.mark.skipif(why_no_disk() != "", reason=why_no_disk() or "a disk can be stuck")

GRACE = 1.0
#: What a busy machine takes besides.
SLACK = 8.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[StuckDisk]:
    (tmp_path / "stuck").mkdir()
    with stuck_disk(tmp_path / "stuck") as found:
        yield found


@contextmanager
def serving(tmp_path: Path, model: Concurrency, request_timeout: float = 60.0) -> Iterator[Server]:
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root" / "a").write_bytes(b"a")
    config = Config(
        root=tmp_path / "root",
        unix=tmp_path / "o.sock",
        admin=None,
        writable=True,
        concurrency_model=model,
        request_timeout=request_timeout,
        shutdown_grace=GRACE,
    )
    with Server(config) as server:
        yield server


def pass_on(v2: RawClientV2, disk: StuckDisk, uri: str = "/stuck") -> None:
    socket.send_fds(v2.socket, [v2.encode(PUT_DESCRIPTOR, uri)], [disk.source])


def leftovers(tmp_path: Path) -> list[Path]:
    found = (path for path in (tmp_path / "root").rglob("*") if not path.is_dir())
    return [path for path in found if path.name != "a" and path.parent.name != ".objmapper"]


def test_the_client_is_answered_in_time_and_others_notice_nothing(
    tmp_path: Path, disk: StuckDisk, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.ERROR),
        serving(tmp_path, Concurrency.EPOLL, request_timeout=1) as server,
        RawClientV2(server.addresses["unix"]) as v2,
        RawClientV2(server.addresses["unix"]) as honest,
    ):
        for number in range(10):
            pass_on(v2, disk, f"/stuck-{number}")
        assert disk.is_read.wait(20)
        for _ in range(20):
            assert honest.call(COPY, "/a").read() == b"a"
            assert honest.put("/b", b"b" * 300_000).status == OK
            assert honest.call(LIST, "/").status == OK
        answers = v2.answers(10).values()
        assert {answer.status for answer in answers} <= {TIMEOUT, 0x14}
        refusal = next(answer for answer in answers if answer.status == TIMEOUT)
        assert "does not respond" in (refusal.metadata.message or "")
        # A disk that is stuck is seen as one that fails, with what it was for.
        assert eventually(lambda: server.statistics().storage_errors_total.get("ETIMEDOUT", 0) >= 1)
        assert eventually(lambda: "ETIMEDOUT" in caplog.text and "/stuck-" in caplog.text)
        stuck = server.statistics().storage_errors_total["ETIMEDOUT"]
        assert stuck == sum(answer.status == TIMEOUT for answer in answers)
        # What comes of the copy after its client has been answered is counted as well.
        disk.release()
        assert eventually(lambda: server.statistics().storage_errors_total.get("EIO", 0) >= 1)
        assert v2.call(COPY, "/a").read() == b"a"


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_source_that_fails_is_refused_counted_and_logged(
    tmp_path: Path, disk: StuckDisk, model: Concurrency, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.ERROR),
        serving(tmp_path, model) as server,
        RawClientV2(server.addresses["unix"]) as v2,
    ):
        pass_on(v2, disk)
        assert disk.is_read.wait(20)
        disk.release()
        assert v2.answer().fails(STORAGE_ERROR)
        assert eventually(lambda: server.statistics().storage_errors_total == {"EIO": 1})
        assert eventually(lambda: "'/stuck': Input/output error (EIO)" in caplog.text)
        assert leftovers(tmp_path) == []


def test_a_failure_is_counted_though_its_client_has_gone(
    tmp_path: Path, disk: StuckDisk, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), serving(tmp_path, Concurrency.EPOLL) as server:
        with RawClientV2(server.addresses["unix"]) as v2:
            pass_on(v2, disk)
            assert disk.is_read.wait(20)
        # The server looks at each connection about once a second, and ends this one's session.
        time.sleep(3)
        assert server.statistics().storage_errors_total == {}
        disk.release()
        assert eventually(lambda: server.statistics().storage_errors_total == {"EIO": 1})
        assert eventually(lambda: "'/stuck': Input/output error (EIO)" in caplog.text)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_stop_does_not_wait_for_it(tmp_path: Path, disk: StuckDisk, model: Concurrency) -> None:
    with serving(tmp_path, model) as server, RawClientV2(server.addresses["unix"]) as v2:
        pass_on(v2, disk)
        assert disk.is_read.wait(20)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < GRACE + SLACK
        assert not disk.is_released.is_set()
    # The thread ends once its read does; it leaves nothing.
    disk.release()
    assert eventually(lambda: leftovers(tmp_path) == [])


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_sigterm_ends_the_process_within_its_grace(tmp_path: Path, disk: StuckDisk, model: Concurrency) -> None:
    root = tmp_path / "root"
    root.mkdir()
    flags = ["--writable", "--concurrency-model", model, "--shutdown-grace", f"{GRACE}"]
    with ServerProcess(root, tmp_path / "o.sock", *flags) as server, RawClientV2(server.addresses["unix"]) as v2:
        pass_on(v2, disk)
        assert disk.is_read.wait(20)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        # Not all that was under way came to its end.
        assert server.process.wait(60) == 1
        assert time.monotonic() - began < GRACE + SLACK
        assert not disk.is_released.is_set()
    assert leftovers(tmp_path) == []


def test_once_its_disk_answers_the_file_is_stored(tmp_path: Path, disk: StuckDisk) -> None:
    with serving(tmp_path, Concurrency.EPOLL) as server, RawClientV2(server.addresses["unix"]) as v2:
        pass_on(v2, disk)
        assert disk.is_read.wait(20)
        disk.resume()
        assert v2.answer().status == OK
        assert v2.call(COPY, "/stuck").read() == ON_DISK
