"""A start that fails midway: what it says, and that nothing is left of it."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import Client
from objmapper_server import Config, Server
from tests.support.eventually import eventually


def refuse_thread(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have the interpreter refuse the thread of that name, as it does where the kernel gives none."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)


def refuse_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(coroutine: Any) -> None:
        coroutine.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "run", refused)


@pytest.mark.parametrize("part", ["admin", "objmapper-access-log", "objmapper-refusals", "event loop"])
@pytest.mark.parametrize("admin", ["127.0.0.1:0", "unix"])
def test_a_start_without_room_for_a_thread_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, admin: str
) -> None:
    config = Config(
        root=root,
        unix=tmp_path / "s",
        admin=f"unix:{tmp_path}/admin" if admin == "unix" else admin,
        access_log=tmp_path / "log",
    )
    descriptors, threads = os.listdir("/proc/self/fd"), len(os.listdir("/proc/self/task"))
    server = Server(config)
    with monkeypatch.context() as patched:
        if part == "event loop":
            refuse_event_loop(patched)
        else:
            refuse_thread(patched, part)
        with pytest.raises(
            OSError, match="thread" if part != "event loop" else "admin endpoint cannot start"
        ) as caught:
            server.start()
    assert caught.value.errno == (errno.EMFILE if part == "event loop" else errno.EAGAIN)
    assert not server.addresses
    assert os.listdir("/proc/self/fd") == descriptors
    # The kernel lists a thread for a moment after it has been joined, those of the test before too.
    assert eventually(lambda: len(os.listdir("/proc/self/task")) <= threads)
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "admin").exists()
    # The same value can be started once there is room.
    with server, Client(server.addresses["unix"]) as client:
        assert client.read("/a") == b"hello"


#: Starts a writable server as a user with room for ever more threads, until it starts.
FEW_THREADS = """
import errno, os, resource, sys
from pathlib import Path
from objmapper_server import Config, Server
from tests.support.eventually import eventually
import objmapper_server.access_log, objmapper_server.statistics, encodings.idna
folder = Path(sys.argv[1])
config = Config(root=folder, unix=folder.parent / "s", admin=None, writable=True, tcp="127.0.0.1:0")
os.setgroups([])
os.setresgid(64323, 64323, 64323)
os.setresuid(64323, 64323, 64323)
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
failed, most = 0, resource.getrlimit(resource.RLIMIT_NPROC)[1]
while True:
    resource.setrlimit(resource.RLIMIT_NPROC, (before + failed, most))
    try:
        with Server(config):
            pass
    except OSError as error:
        assert error.errno == errno.EAGAIN, error
        assert eventually(lambda: threads() <= before), f"{threads() - before} threads left, room for {failed}"
        failed += 1
    else:
        break
print(failed)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes a user that has no other threads")
def test_a_start_with_room_for_some_threads_leaves_none(tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "root"
    folder.mkdir(parents=True)
    for place in (folder.parent, folder):
        os.chown(place, 64323, 64323)
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o011:
            parent.chmod(parent.stat().st_mode | 0o011)
    command = [sys.executable, "-c", FEW_THREADS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    # Two pools of storage have four threads each, and each transport has one at least.
    assert int(done.stdout) > 10
