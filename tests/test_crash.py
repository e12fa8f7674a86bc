"""kill -9 at every system call of a write, and at random: nothing torn, nothing lost once answered, nothing left over.

`benchmarks/soak/crashes.py` does the same in every model, and a thousand times at random.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_server import Concurrency
from tests.support.crash_harness import (
    NEW,
    OLD,
    TORN,
    VARYING_CALLS,
    WRITES,
    CrashRun,
    CrashSetup,
    Write,
    content_of,
    leftover_files,
    version_of,
)
from tests.support.fork_server import ForkServer
from tests.support.strace import Call, why_not

needs_strace = pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works")


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture
def setup(fork_server: ForkServer, tmp_path: Path) -> CrashSetup:
    # One thread for storage: then the n-th call of its name is the same one each time.
    return CrashSetup(fork_server, tmp_path, {"storage_pool_size": 1, "concurrency_model": Concurrency.EPOLL})


@needs_strace
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_killed_at_any_system_call_a_write_is_done_or_not_begun(setup: CrashSetup, write: Write) -> None:
    calls = setup.calls(write)
    reports = [setup.kill_at(write, call) for call in calls]
    assert [str(report) for report in reports if report.wrong] == []
    missed = [report.call for report in reports if not report.has_fired and report.call.name not in VARYING_CALLS]
    assert missed == []
    # Both sides of the answer are among them.
    assert {report.is_answered for report in reports} == {True, False}


def is_writer_process(thread: str) -> bool:
    return thread.startswith(("objmapper-write", "objmapper-copie"))


def order(calls: list[Call], *names: str) -> list[str]:
    """Those of the calls that matter here, in their order, one of a kind in a row."""
    found = [call.name for call in calls if call.name in names]
    return [name for at, name in enumerate(found) if at == 0 or name != found[at - 1]]


@needs_strace
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_what_was_written_is_on_the_disk_before_its_name_and_that_before_the_answer(
    setup: CrashSetup, write: Write
) -> None:
    calls = setup.calls(write)
    sends = [at for at, call in enumerate(calls) if call.name.startswith("send") and not is_writer_process(call.thread)]
    answer = sends[0]
    steps = order(calls[: answer + 1], "pwrite64", "linkat", "fsync", "renameat2", "unlinkat", "sendto", "sendmsg")
    if write.new is None:
        assert steps[:2] == ["unlinkat", "fsync"]
    else:
        # fsync(2) of a file without a name is nothing on some file systems.
        assert [step for step in steps if step != "pwrite64"][:4] == ["linkat", "fsync", "renameat2", "fsync"]
        assert "pwrite64" not in steps[1:]
    assert steps[-1].startswith("send")


@needs_strace
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_only_write_threads_touch_written_files(setup: CrashSetup, write: Write) -> None:
    changing = {"mkdirat", "fallocate", "pwrite64", "ftruncate", "linkat", "renameat2", "unlinkat", "fsync", "fchmod"}
    changing |= {"copy_file_range", "ioctl", "sendfile", "statfs", "fstatfs"}
    found = [call for call in setup.calls(write) if call.name in changing]
    assert found, "nothing was written"
    assert [call for call in found if not is_writer_process(call.thread)] == []


def test_killed_at_random_with_writers_at_work(setup: CrashSetup) -> None:
    crash_run = CrashRun.begin(setup)
    for _ in range(25):
        crash_run.kill()
    crash_run.end()
    assert crash_run.torn_or_lost == []
    assert crash_run.leftover_files == []
    assert crash_run.writes > 0


def test_an_error_is_noticed(setup: CrashSetup) -> None:
    """The checks themselves, on objects that the test has damaged."""
    crash_run = CrashRun.begin(setup, writers=1)
    writer = crash_run.writers[0]
    uri, other = writer.uris[:2]
    writer.acknowledged |= {uri: 2, other: 2}
    (setup.root / uri[1:]).write_bytes(content_of(uri, 1))
    (setup.root / other[1:]).write_bytes(content_of(other, 2)[:-1])
    assert writer.check(setup.root) == [f"lost {uri}", f"torn {other}"]
    assert [version_of(uri, content) for content in (None, b"", OLD, NEW, content_of(uri, 7))] == [None, *[TORN] * 3, 7]
    (setup.root / ".objmapper" / "1-0123456789abcdef").mkdir(parents=True)
    (setup.root / ".objmapper" / "1-0123456789abcdef" / "0").write_bytes(b"")
    (setup.root / ".objmapper" / "2-0123456789abcdef").mkdir()
    assert len(leftover_files(setup.root)) == 2
