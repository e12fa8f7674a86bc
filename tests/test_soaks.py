"""The long runs of `make soak`, each for a moment: they must be able to tell, and find nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak.linearizability import DELETED, NOTHING, PUT, READ, TORN, CompletedOperation, History
from benchmarks.soak.process_resources import ProcessResources
from tests.support.strace import why_not

HOME = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("slow_writers", ["--clients", "60", "--header-timeout", "1", "--model", "work-stealing"]),
        (
            "unread_answers",
            ["--clients", "40", "--seconds", "1", "--model", "epoll", "--transport", "unix"],
        ),
        # On a machine that has other work to do; the goal is for `make soak`.
        ("fairness", ["--names", "5000", "--seconds", "2", "--connections", "3", "--most", "2000", "--model", "epoll"]),
        ("flooder", ["--rounds", "1", "--seconds", "0.5", "--most", "1000", "--model", "epoll"]),
        ("stuck_uploads", ["--seconds", "4", "--clients", "24", "--model", "thread-pool"]),
        ("path_traversal", ["--seconds", "2", "--model", "thread-pool"]),
        ("linearizability", ["--operations", "8000"]),
        ("lifecycle", ["--seconds", "8", "--seed", "5"]),
        ("origin_crashes", ["--kills", "4", "--size", "2000000"]),
        ("malformed_frames", ["--frames", "4000", "--settle", "0.5"]),
        pytest.param(
            "faults",
            ["--replies", "5000", "--faults", "200", "--model", "epoll"],
            marks=pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works"),
        ),
        pytest.param(
            "failing_disk",
            ["--seconds", "0.3", "--model", "epoll"],
            marks=pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works"),
        ),
    ],
)
def test_it_finds_nothing(name: str, flags: list[str]) -> None:
    command = [sys.executable, "-m", f"benchmarks.soak.{name}", *flags]
    run = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout


def write(version: int, began: int, ended: int, kind: int = PUT) -> CompletedOperation:
    return CompletedOperation(0, kind, version, began, ended)


def read(version: int, began: int, ended: int) -> CompletedOperation:
    return CompletedOperation(0, READ, version, began, ended)


WRITES = [write(1, 10, 20), write(2, 30, 40), write(3, 50, 60, DELETED), write(4, 70, 80)]


@pytest.mark.parametrize(
    "reads",
    [
        [read(NOTHING, 1, 9), read(1, 21, 29), read(2, 41, 49), read(NOTHING, 61, 69), read(4, 81, 90)],
        # While a write is under way either may be read, by those who overlap in any order.
        [read(1, 31, 39), read(2, 32, 38), read(1, 33, 41)],
        [read(NOTHING, 11, 19), read(1, 12, 18)],
    ],
)
def test_what_can_be_is_no_violation(reads: list[CompletedOperation]) -> None:
    assert list(History(list(WRITES), reads).violations()) == []


@pytest.mark.parametrize(
    "reads",
    [
        pytest.param([read(2, 21, 29)], id="from the future"),
        pytest.param([read(1, 41, 49)], id="replaced before"),
        pytest.param([read(NOTHING, 21, 29)], id="nothing before it was deleted"),
        pytest.param([read(2, 61, 69)], id="after it was deleted"),
        pytest.param([read(2, 31, 33), read(1, 34, 36)], id="the new before the old"),
        pytest.param([read(TORN, 21, 29)], id="no version"),
        pytest.param([read(3, 51, 59)], id="what a delete left"),
    ],
)
def test_what_cannot_be_is_one(reads: list[CompletedOperation]) -> None:
    assert len(list(History(list(WRITES), reads).violations())) == 1


def test_process_resources_count_what_a_child_would_inherit(tmp_path: Path) -> None:
    before = ProcessResources.of()
    with (tmp_path / "file").open("wb") as file:
        assert ProcessResources.of().descriptors == before.descriptors + 1
        assert ProcessResources.of().inheritable == before.inheritable
        with subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()]) as child:
            assert ProcessResources.of(child.pid).inheritable == 1
            child.kill()
    assert ProcessResources.of().descriptors == before.descriptors
