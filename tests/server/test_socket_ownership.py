"""A server that stops leaves what another has put in its place: sockets and lock files of data and admin endpoint."""

import errno
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from objmapper_client import Client
from objmapper_server import Config, Server


def server(folder: Path) -> Server:
    root = folder / "root"
    root.mkdir(exist_ok=True)
    (root / "object").write_bytes(b"content")
    return Server(Config(root=root, unix=folder / "data.sock", admin=f"unix:{folder}/admin.sock"))


def sockets(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".sock" in path.name)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_all_four_files_go_with_the_server(tmp_path: Path) -> None:
    with server(tmp_path):
        assert [path.name for path in sockets(tmp_path)] == [
            "admin.sock",
            "admin.sock.lock",
            "data.sock",
            "data.sock.lock",
        ]
    assert sockets(tmp_path) == []


def test_a_server_that_took_the_place_of_another_keeps_it(tmp_path: Path) -> None:
    """Something has cleared the directory of the first: sockets, locks and all."""
    with server(tmp_path) as first:
        for path in sockets(tmp_path):
            path.unlink()
        with server(tmp_path) as second:
            theirs = {path: path.lstat().st_ino for path in sockets(tmp_path)}
            assert len(theirs) == 4
            first.stop()
            assert {path: path.lstat().st_ino for path in sockets(tmp_path)} == theirs
            assert listens(tmp_path / "data.sock")
            assert listens(tmp_path / "admin.sock")
            with Client(second.addresses["unix"]) as client:
                assert client.read("/object") == b"content"
    assert sockets(tmp_path) == []


@pytest.mark.parametrize("endpoint", ["data", "admin"])
def test_a_lock_that_is_held_keeps_the_place(tmp_path: Path, endpoint: str) -> None:
    """Only the socket was removed: the lock says that a server is there."""
    with server(tmp_path):
        (tmp_path / f"{endpoint}.sock").unlink()
        (tmp_path / "other").mkdir()
        config = Config(root=tmp_path / "other", unix=tmp_path / "data.sock", admin="none")
        if endpoint == "admin":
            config = Config(root=tmp_path / "other", unix=tmp_path / "o.sock", admin=f"unix:{tmp_path}/admin.sock")
        with pytest.raises(OSError, match="another server"):
            Server(config).start()
        assert (tmp_path / f"{endpoint}.sock.lock").exists()


def test_a_stale_admin_socket_is_taken_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "admin.sock"))
    assert os.path.exists(tmp_path / "admin.sock")
    with server(tmp_path):
        assert listens(tmp_path / "admin.sock")


def test_a_program_whose_backlog_is_full_keeps_its_socket_and_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        code = 0
        while code == 0:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            code = client.connect_ex(path)
        assert code == errno.EAGAIN
        with pytest.raises(OSError, match="cannot listen"):
            server(tmp_path).start()
        assert Path(path).is_socket()
