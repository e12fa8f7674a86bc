"""A disk that does not answer holds up the client that asked for it, and no other; the server stops all the same."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from objmapper_server import Concurrency
from tests.support.eventually import eventually
from tests.support.models import MODELS
from tests.support.raw_client_v2 import COPY, LIST, STAT, RawClientV2
from tests.support.server_process import ServerProcess
from tests.support.stuck_files import stuck_file, why_not

pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "/dev/fuse works")

#: Seconds: the machine may stall.
TIMEOUT = 60.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "small").mkdir(parents=True)
    for number in range(20):
        (root / "small" / f"{number}").write_bytes(bytes([number]) * 4096)
    os.sync()
    return root


def ask_for_it(v2: RawClientV2) -> None:
    """Takes all the threads that a connection gets, for ever."""
    for _ in range(32):
        v2.ask(COPY, "/mounted/stuck")


def is_served(v2: RawClientV2, root: Path) -> bool:
    """Whether a list, which storage threads make, a read of what is not in memory and a stat are right."""
    for number in range(20):
        path = root / "small" / f"{number}"
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
        assert v2.call(COPY, f"/small/{number}").read() == bytes([number]) * 4096
        assert len(v2.call(LIST, "/small/").entries()) == 20
        assert v2.call(STAT, f"/small/{number}").metadata.size == 4096
    return True


def has_ended(pid: int) -> bool:
    """Whether all of a process has ended but for threads that the kernel keeps until their disk answers."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("model", MODELS)
def test_others_are_served_and_the_server_stops(root: Path, tmp_path: Path, model: Concurrency) -> None:
    flags = ["--concurrency-model", model, "--storage-pool-size", "2", "--cache-size", "0", "--shutdown-grace", "1"]
    with ExitStack() as ending:
        server = ending.enter_context(ServerProcess(root, tmp_path / "o.sock", *flags))
        # Ends first: until then the kernel keeps the threads that wait for it.
        stuck = ending.enter_context(stuck_file(root / "mounted"))
        address = server.addresses["unix"]
        with ExitStack() as clients:
            ask_for_it(clients.enter_context(RawClientV2(address, timeout=TIMEOUT)))
            assert stuck.is_read.wait(TIMEOUT)
            honest = clients.enter_context(RawClientV2(address, timeout=TIMEOUT))
            assert is_served(honest, root)
            # Another one of the same user takes the second thread: one more begins to work in the place of each.
            ask_for_it(clients.enter_context(RawClientV2(address, timeout=TIMEOUT)))
            server.threads("objmapper-stora", 4)
            assert is_served(honest, root)
            assert not stuck.is_released.is_set()
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: has_ended(server.pid), seconds=TIMEOUT / 2)
            with pytest.raises(OSError, match=r"refused|No such file"):
                RawClientV2(address, timeout=TIMEOUT)
        stuck.release()
        server.process.wait(TIMEOUT)
