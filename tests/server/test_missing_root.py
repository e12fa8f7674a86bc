"""A root that is removed, renamed, replaced or mounted over: not ready, errors to clients, served once it is back."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from objmapper_client import Client, ObjectNotFound, ServerFailed
from objmapper_server import Config, Server
from tests.support.eventually import eventually

MAY_MOUNT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Server, Client, Path]]:
    root = folder / "root"
    make(root, b"first")
    config = Config(root=root, unix=folder / "o.sock", udp="127.0.0.1:0", writable=True)
    with Server(config) as server, Client(server.addresses["unix"]) as client:
        assert client.read("/object") == b"first"
        yield server, client, root


def make(root: Path, content: bytes) -> None:
    root.mkdir()
    (root / "object").write_bytes(content)


def fails(server: Server, client: Client) -> None:
    """Every verb says that the storage fails."""
    for call in (
        lambda: client.read("/object"),
        lambda: client.open("/object"),
        lambda: client.stat("/object"),
        lambda: list(client.list()),
        lambda: client.put("/new", b"content"),
        lambda: client.delete("/object"),
    ):
        with pytest.raises(ServerFailed, match="root directory was removed"):
            call()
    with Client(server.addresses["udp"]) as far, pytest.raises(ServerFailed, match="root directory was removed"):
        far.read("/object")


def test_a_root_that_is_removed_fails_at_once_and_its_successor_is_served(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, client, root):
        shutil.rmtree(root)
        fails(server, client)
        assert eventually(lambda: "removed" in (server.root_problem or ""))
        fails(server, client)
        assert server.statistics().root_problem == server.root_problem
        make(root, b"second")
        assert eventually(lambda: server.root_problem is None)
        assert client.read("/object") == b"second"
        client.put("/new", b"content")
        assert (root / "new").read_bytes() == b"content"
        with pytest.raises(ObjectNotFound):
            client.read("/missing")


def test_a_root_that_is_renamed_is_back_with_its_name(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, client, root):
        root.rename(tmp_path / "elsewhere")
        assert eventually(lambda: server.root_problem is not None)
        fails(server, client)
        (tmp_path / "elsewhere").rename(root)
        assert eventually(lambda: server.root_problem is None)
        assert client.read("/object") == b"first"
        client.put("/new", b"content")


def test_a_root_that_is_exchanged_is_followed(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, client, root):
        make(tmp_path / "next", b"second")
        root.rename(tmp_path / "before")
        (tmp_path / "next").rename(root)
        assert eventually(lambda: server.root_problem is None and client.read("/object") == b"second")
        client.put("/new", b"content")
        assert (root / "new").exists()


@MAY_MOUNT
def test_a_root_that_is_mounted_over_fails_until_it_is_uncovered(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, client, root):
        subprocess.run(["mount", "-t", "tmpfs", "none", str(root)], check=True)
        try:
            assert eventually(lambda: "another file system" in (server.root_problem or ""))
            fails(server, client)
        finally:
            subprocess.run(["umount", str(root)], check=True)
        assert eventually(lambda: server.root_problem is None)
        assert client.read("/object") == b"first"


@MAY_MOUNT
def test_a_root_that_is_unmounted_fails_until_it_is_mounted_again(tmp_path: Path) -> None:
    place = tmp_path / "root"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "none", str(place)]
    subprocess.run(mount, check=True)
    try:
        (place / "object").write_bytes(b"first")
        with Server(Config(root=place, unix=tmp_path / "o.sock")) as server, Client(server.addresses["unix"]) as client:
            assert client.read("/object") == b"first"
            subprocess.run(["umount", "-l", str(place)], check=True)
            assert eventually(lambda: server.root_problem is not None)
            with pytest.raises(ServerFailed):
                client.read("/object")
            subprocess.run(mount, check=True)
            (place / "object").write_bytes(b"second")
            assert eventually(lambda: server.root_problem is None)
            assert client.read("/object") == b"second"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


WITHOUT_DESCRIPTORS = """
import resource, sys, time
from pathlib import Path
from objmapper_server import Config, Server

folder = Path(sys.argv[1])
with Server(Config(root=folder / "root", unix=folder / "o.sock", admin=None)) as server:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    # The server looks at its root once a second.
    end, problem = server.statistics().uptime + 3, None
    while problem is None and server.statistics().uptime < end:
        time.sleep(0.01)
        problem = server.root_problem
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(problem)
"""


def test_a_server_without_a_descriptor_left_does_not_take_its_root_for_gone(tmp_path: Path) -> None:
    make(tmp_path / "root", b"first")
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "None\n"
