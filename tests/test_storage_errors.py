"""Writes on storage that fails: the answer says so, what was there is there, nothing is left, and the server goes on.

strace(1) has single system calls of the server fail, with the errors of a full disk, a used-up quota, a broken disk.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from objmapper_server import Concurrency
from tests.support.crash_harness import NEW, OLD, WRITES, CrashSetup, Write, read
from tests.support.eventually import eventually
from tests.support.fork_server import ForkServer
from tests.support.raw_client import OK, UNAVAILABLE, descriptors_of
from tests.support.raw_client_v2 import COPY, PUT_DESCRIPTOR, STORAGE_ERROR, RawClientV2
from tests.support.raw_client_v2 import PUT as WRITE_PUT
from tests.support.strace import Strace, threads_of, why_not
from tests.support.unfinished_writes import unfinished_writes

pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works")

PUT, PUT_NEW, BY_DESCRIPTOR, DELETE = WRITES
WORDS = {"ENOSPC": "no space left", "EDQUOT": "quota", "EIO": "input/output error", "EROFS": "read-only"}
BROKEN = ["ENOSPC", "EIO"]


def _put_memory(v2: RawClientV2, source: Path) -> None:
    """From another file system, where no two files can share blocks nor copy_file_range."""
    with os.fdopen(os.memfd_create("source"), "w+b") as file:
        file.write(source.read_bytes())
        file.flush()
        socket.send_fds(v2.socket, [v2.encode(PUT_DESCRIPTOR, "/object")], [file.fileno()])


FROM_MEMORY = replace(BY_DESCRIPTOR, name="put from memory", send=_put_memory)

#: More than waits for a writer at once, so it is written in several pieces.
LARGE = bytes(range(256)) * 12_000


def _put_large(v2: RawClientV2, _: Path) -> None:
    v2.send(v2.encode(WRITE_PUT, "/object", content_len=len(LARGE)), LARGE)


PUT_LARGE = replace(PUT, name="put of several pieces", new=LARGE, send=_put_large)

#: The write, the call that fails, and which one of that name it is.
STEPS = [
    (PUT, "openat", 1),
    (PUT, "fallocate", 1),
    (PUT, "pwrite64", 1),
    (PUT_LARGE, "pwrite64", 2),
    (PUT, "fsync", 1),
    (PUT, "linkat", 1),
    (PUT, "renameat2", 1),
    (PUT_NEW, "fsync", 1),
    (PUT_NEW, "renameat2", 1),
    (BY_DESCRIPTOR, "copy_file_range", 1),
    (BY_DESCRIPTOR, "fsync", 1),
    (FROM_MEMORY, "sendfile", 1),
    (DELETE, "unlinkat", 1),
]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashSetup]:
    with ForkServer() as fork_server:
        yield CrashSetup(
            fork_server,
            tmp_path_factory.mktemp("scene"),
            {"storage_pool_size": 1, "concurrency_model": Concurrency.EPOLL},
        )


def fails(setup: CrashSetup, write: Write, call: str, which: int, error: str, status: int, after: bytes | None) -> str:
    """Has this call fail in the midst of a write that is answered with this status. Returns the words."""
    with setup.prepared(write) as (pid, v2):
        before = descriptors_of(pid)
        threads = threads_of(pid)
        with Strace(threads, setup.folder / "calls", f"{call}:error={error}:when={which}") as strace:
            write.send(v2, setup.folder / "source")
            answer = v2.answer()
            assert answer.fails(status)
            # The connection is where it should be, and so is everything else.
            assert v2.call(COPY, "/bystander").read() == OLD
            assert read(setup.root / "object") == after
            assert eventually(lambda: unfinished_writes(setup.root) == [])
            assert eventually(lambda: descriptors_of(pid) <= before)
            write.send(v2, setup.folder / "source")
            assert v2.answer().status == OK
        assert read(setup.root / "object") == write.new
        assert strace.injected() == 1
    assert setup.fork_server.stop() == 0
    assert {path.name for path in setup.root.iterdir()} <= {"object", "bystander"}
    assert answer.metadata.message is not None
    return answer.metadata.message


@pytest.mark.parametrize("error", BROKEN)
@pytest.mark.parametrize(("write", "call", "which"), STEPS, ids=lambda value: getattr(value, "name", str(value)))
def test_a_failed_write_leaves_what_was_there(
    setup: CrashSetup, write: Write, call: str, which: int, error: str
) -> None:
    assert WORDS[error] in fails(setup, write, call, which, error, STORAGE_ERROR, write.old)


@pytest.mark.parametrize("call", ["openat", "fallocate", "pwrite64", "renameat2"])
def test_a_used_up_quota_is_distinguished_from_a_full_disk(setup: CrashSetup, call: str) -> None:
    assert WORDS["EDQUOT"] in fails(setup, PUT, call, 1, "EDQUOT", STORAGE_ERROR, PUT.old)


@pytest.mark.parametrize(("error", "status"), [("EMFILE", UNAVAILABLE), ("ENFILE", UNAVAILABLE), ("ENOMEM", 0x12)])
def test_a_server_at_its_limits_can_be_asked_again(setup: CrashSetup, error: str, status: int) -> None:
    fails(setup, PUT, "openat", 1, error, status, PUT.old)


@pytest.mark.parametrize("error", BROKEN)
@pytest.mark.parametrize("write", [PUT, BY_DESCRIPTOR], ids=lambda write: write.name)
def test_when_the_directory_cannot_be_made_to_last_the_new_object_stands_there(
    setup: CrashSetup, write: Write, error: str
) -> None:
    """The rename has happened, and a crash may undo it: no reply says that it lasts."""
    assert WORDS[error] in fails(setup, write, "fsync", 2, error, STORAGE_ERROR, write.new)


def test_a_deletion_that_cannot_be_made_to_last_is_not_acknowledged(setup: CrashSetup) -> None:
    with setup.prepared(DELETE) as (pid, v2):
        with Strace(threads_of(pid), setup.folder / "calls", "fsync:error=EIO:when=1"):
            DELETE.send(v2, setup.folder / "source")
            assert v2.answer().fails(STORAGE_ERROR)
        assert read(setup.root / "object") is None
    assert setup.fork_server.stop() == 0


def test_a_failed_fsync_is_not_tried_again(setup: CrashSetup) -> None:
    """After a failure Linux takes the lost pages for clean: the second fsync would succeed."""
    with setup.prepared(PUT) as (pid, v2):
        threads = threads_of(pid)
        with Strace(threads, setup.folder / "calls", "fsync:error=EIO:when=1") as strace:
            PUT.send(v2, setup.folder / "source")
            assert v2.answer().fails(STORAGE_ERROR)
        assert [call.name for call in strace.calls(threads)].count("fsync") == 1
    assert setup.fork_server.stop() == 0


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_that_cannot_reserve_room_is_written_to_all_the_same(setup: CrashSetup, error: str) -> None:
    with setup.prepared(PUT) as (pid, v2):
        with Strace(threads_of(pid), setup.folder / "calls", f"fallocate:error={error}") as strace:
            PUT.send(v2, setup.folder / "source")
            assert v2.answer().status == OK
        assert strace.injected() > 0
        assert read(setup.root / "object") == NEW
    assert setup.fork_server.stop() == 0


@pytest.mark.parametrize("promised", [4 << 20, 1 << 60], ids=["more than there is", "more than any disk has"])
def test_a_file_system_that_is_really_full(setup: CrashSetup, promised: int) -> None:
    """What has no room is refused before it comes, takes no room from others, and what was there stays."""
    shutil.rmtree(setup.root, ignore_errors=True)
    setup.root.mkdir()
    with contextlib.ExitStack() as stack:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "objmapper-test", str(setup.root)]
        if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            pytest.skip("no file system can be mounted here")
        stack.callback(subprocess.run, ["umount", "--lazy", str(setup.root)], check=True)
        setup.start()
        with RawClientV2(setup.address) as v2:
            assert v2.put("/object", OLD).status == OK
            v2.send(v2.encode(WRITE_PUT, "/object", content_len=promised))
            assert v2.answer().fails(STORAGE_ERROR)
            assert read(setup.root / "object") == OLD
        with RawClientV2(setup.address) as v2:
            assert v2.call(COPY, "/object").read() == OLD
            assert v2.put("/another", OLD).status == OK
        assert setup.fork_server.stop() == 0
