"""kill -9 at every system call of a write, and at random: nothing torn, nothing lost once answered, nothing left over.

`benchmarks/soak/crashes.py` does the same in every model, and a thousand times at random.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_server import Concurrency
from tests.support.crash_harness import (
    BY_CHANCE,
    NEW,
    OLD,
    TORN,
    WRITES,
    CrashRun,
    CrashScene,
    Write,
    content_of,
    leftover_files,
    version_of,
)
from tests.support.fork_server import ForkServer
from tests.support.strace import Call, why_not

needs_strace = pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works")


@pytest.fixture(scope="module")
def nursery() -> Iterator[ForkServer]:
    with ForkServer() as nursery:
        yield nursery


@pytest.fixture
def scene(nursery: ForkServer, tmp_path: Path) -> CrashScene:
    # One thread for storage: then the n-th call of its name is the same one each time.
    return CrashScene(nursery, tmp_path, {"storage_pool_size": 1, "concurrency_model": Concurrency.EPOLL})


@needs_strace
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_killed_at_any_system_call_a_write_is_done_or_not_begun(scene: CrashScene, write: Write) -> None:
    calls = scene.calls(write)
    verdicts = [scene.kill_at(write, call) for call in calls]
    assert [str(verdict) for verdict in verdicts if verdict.wrong] == []
    missed = [verdict.call for verdict in verdicts if not verdict.has_fired and verdict.call.name not in BY_CHANCE]
    assert missed == []
    # Both sides of the answer are among them.
    assert {verdict.is_answered for verdict in verdicts} == {True, False}


def is_a_writer(thread: str) -> bool:
    return thread.startswith(("objmapper-write", "objmapper-copie"))


def order(calls: list[Call], *names: str) -> list[str]:
    """Those of the calls that matter here, in their order, one of a kind in a row."""
    found = [call.name for call in calls if call.name in names]
    return [name for at, name in enumerate(found) if at == 0 or name != found[at - 1]]


@needs_strace
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_what_was_written_is_on_the_disk_before_its_name_and_that_before_the_answer(
    scene: CrashScene, write: Write
) -> None:
    calls = scene.calls(write)
    sends = [at for at, call in enumerate(calls) if call.name.startswith("send") and not is_a_writer(call.thread)]
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
def test_only_write_threads_touch_written_files(scene: CrashScene, write: Write) -> None:
    changing = {"mkdirat", "fallocate", "pwrite64", "ftruncate", "linkat", "renameat2", "unlinkat", "fsync", "fchmod"}
    changing |= {"copy_file_range", "ioctl", "sendfile", "statfs", "fstatfs"}
    found = [call for call in scene.calls(write) if call.name in changing]
    assert found, "nothing was written"
    assert [call for call in found if not is_a_writer(call.thread)] == []


def test_killed_at_random_with_writers_at_work(scene: CrashScene) -> None:
    rampage = CrashRun.begin(scene)
    for _ in range(25):
        rampage.kill()
    rampage.end()
    assert rampage.torn_or_lost == []
    assert rampage.leftover_files == []
    assert rampage.writes > 0


def test_an_error_is_noticed(scene: CrashScene) -> None:
    """The checks themselves, on objects that the test has damaged."""
    rampage = CrashRun.begin(scene, writers=1)
    writer = rampage.writers[0]
    uri, other = writer.uris[:2]
    writer.acknowledged |= {uri: 2, other: 2}
    (scene.root / uri[1:]).write_bytes(content_of(uri, 1))
    (scene.root / other[1:]).write_bytes(content_of(other, 2)[:-1])
    assert writer.check(scene.root) == [f"lost {uri}", f"torn {other}"]
    assert [version_of(uri, content) for content in (None, b"", OLD, NEW, content_of(uri, 7))] == [None, *[TORN] * 3, 7]
    (scene.root / ".objmapper" / "1-0123456789abcdef").mkdir(parents=True)
    (scene.root / ".objmapper" / "1-0123456789abcdef" / "0").write_bytes(b"")
    (scene.root / ".objmapper" / "2-0123456789abcdef").mkdir()
    assert len(leftover_files(scene.root)) == 2
