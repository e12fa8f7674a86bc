"""A disk that fails is seen: a status where nothing was promised yet, else a closed connection; a count and a log line.

strace(1) has single system calls of the server's threads fail as a disk does: EIO.
"""

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import Client, ObjmapperError, ServerFailed
from objmapper_server import Concurrency, Config, Server
from objmapper_server.admin.metrics import Exposition
from tests.support.eventually import eventually
from tests.support.strace import Strace, threads_of, why_not

pytestmark = pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works")

LARGE = 1 << 20
#: How many threads read, and how many write.
POOL = 4
MODELS = [model for model in Concurrency if model is not Concurrency.AUTO]


@pytest.fixture(params=MODELS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "root"
    root.mkdir()
    (root / "large").write_bytes(bytes(LARGE))
    (root / "small").write_bytes(b"small")
    config = Config(
        root=root,
        unix=tmp_path / "o.sock",
        tcp="127.0.0.1:0",
        writable=True,
        concurrency_model=request.param,
        storage_pool_size=POOL,
    )
    with Server(config) as made:
        # Threads name themselves, and are found by their names.
        for name in ("objmapper-stora", "objmapper-write"):
            assert eventually(functools.partial(has_threads, name))
        yield made


def has_threads(name: str) -> bool:
    return list(threads_of(os.getpid()).values()).count(name) == POOL


def failing(folder: Path, inject: str) -> Strace:
    return Strace(threads_of(os.getpid()), folder / "calls", inject)


def counted(server: Server, name: str) -> bool:
    count = server.statistics().storage_errors_total.get(name, 0)
    text, _ = Exposition(server).render("text/plain")
    return count >= 1 and f'objmapper_storage_errors_total{{errno="{name}"}} {count}.0'.encode() in text


def test_what_fails_in_mid_transfer_is_counted_and_logged(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(server.addresses["tcp"], timeout=5) as client, caplog.at_level(logging.ERROR):
        assert client.read("/large") == bytes(LARGE)
        with failing(tmp_path, "sendfile:error=EIO:when=1+"), pytest.raises(ObjmapperError):
            client.read("/large")
        assert eventually(lambda: counted(server, "EIO"))
        assert eventually(lambda: "'/large': Input/output error (EIO)" in caplog.text)
        assert client.read("/large") == bytes(LARGE)


def test_a_file_that_ends_early_is_counted(server: Server, tmp_path: Path) -> None:
    """sendfile(2) says 0 at the end of a file; here it says so of one that was larger when its length was promised."""
    with Client(server.addresses["tcp"], timeout=5) as client:
        assert client.read("/large") == bytes(LARGE)
        with failing(tmp_path, "sendfile:retval=0:when=1+"), pytest.raises(ObjmapperError):
            client.read("/large")
        assert eventually(lambda: counted(server, "EOF"))


def test_a_list_a_put_and_an_open_say_so(server: Server, tmp_path: Path) -> None:
    with Client(server.addresses["unix"], timeout=5) as client:
        assert client.read("/small") == b"small"
        with failing(tmp_path, "getdents64:error=EIO:when=1+"), pytest.raises(ServerFailed, match="input/output error"):
            list(client.list())
        with failing(tmp_path, "fsync:error=EIO:when=1+"), pytest.raises(ServerFailed, match="input/output error"):
            client.put("/new", b"content")
        with failing(tmp_path, "openat2:error=EIO:when=1+"), pytest.raises(ServerFailed, match="input/output error"):
            client.open("/small").close()
        assert counted(server, "EIO")


def test_a_stat_says_so(server: Server, tmp_path: Path) -> None:
    with Client(server.addresses["unix"], timeout=5) as client:
        assert client.stat("/small").size == 5
        with failing(tmp_path, "openat2:error=EIO:when=1+"), pytest.raises(ServerFailed, match="input/output error"):
            client.stat("/small")
        assert counted(server, "EIO")
        assert client.stat("/small").size == 5


def test_a_read_from_memory_is_reported_as_such(server: Server, tmp_path: Path) -> None:
    """preadv2(2) with RWF_NOWAIT, and pread(2) where a thread may wait."""
    with Client(server.addresses["tcp"], timeout=5) as client:
        with failing(tmp_path, "preadv2,pread64:error=EIO:when=1+"), pytest.raises(ServerFailed, match="input/output"):
            client.read("/small")
        assert counted(server, "EIO")
        assert client.read("/small") == b"small"
