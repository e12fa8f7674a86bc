"""The life of a server: what it binds, what it leaves behind, and what it says when it cannot start."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from objmapper_server.server import make_private_directory
from tests.support.raw_client import COPY, OK, RawClient


def test_it_serves_between_start_and_stop(config: Config, tmp_path: Path) -> None:
    server = Server(config)
    assert server.addresses == {}
    with server:
        assert list(server.addresses) == ["unix", "tcp"]
        assert server.addresses["unix"] == f"unix:{tmp_path}/socket"
        assert not server.addresses["tcp"].endswith(":0")
        for address in server.addresses.values():
            with RawClient(address) as v1:
                assert v1.ask(COPY, "/a").content == b"hello"
        assert server.addresses["tcp"] in repr(server)
    assert server.addresses == {}
    assert not (tmp_path / "socket").exists()
    assert "not started" in repr(server)


def test_it_can_be_started_again_but_not_twice(config: Config) -> None:
    server = Server(config)
    for _ in range(2):
        with server:
            with pytest.raises(RuntimeError, match="started already"):
                server.start()
            with RawClient(server.addresses["unix"]) as v1:
                assert v1.ask(COPY, "/a").status == OK
    server.stop()


def test_what_needs_a_running_server_says_so(config: Config) -> None:
    with pytest.raises(RuntimeError, match="not running"):
        Server(config).statistics()


def test_the_socket_is_its_owners_alone(server: Server, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


def test_a_host_name_is_resolved(root: Path) -> None:
    with Server(Config(root=root, tcp="localhost:0")) as server:
        assert server.addresses["tcp"].startswith("tcp://127.0.0.1:")


def test_an_unknown_host_is_named(root: Path) -> None:
    with pytest.raises(OSError, match=r"unknown host 'no\.such\.host\.invalid'"):
        Server(Config(root=root, tcp="no.such.host.invalid:0")).start()


def test_a_taken_port_is_named_and_nothing_stays(root: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=address) as caught:
            Server(Config(root=root, unix=tmp_path / "s", tcp=address)).start()
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match=address):
            Server(Config(root=root, unix=tmp_path / "s", admin=address)).start()
    assert not (tmp_path / "s").exists()


def test_a_root_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Server(Config(root=tmp_path / "nowhere", unix=tmp_path / "s")).start()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Server(Config(root=tmp_path / "file", unix=tmp_path / "s")).start()


def test_two_servers_do_not_share_a_socket(server: Server, config: Config, root: Path) -> None:
    with pytest.raises(OSError, match="another server"):
        Server(Config(root=root, unix=config.unix)).start()
    with RawClient(server.addresses["unix"]) as v1:
        assert v1.ask(COPY, "/a").status == OK


def test_the_default_sockets_directory_is_made_private(root: Path, tmp_path: Path) -> None:
    with Server(Config(root=root)) as server:
        assert server.addresses == {"unix": f"unix:{tmp_path}/objmapper/objmapper.sock"}
        assert stat.S_IMODE((tmp_path / "objmapper").stat().st_mode) == 0o700


def test_a_directory_that_other_users_can_use_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PermissionError, match="other users may write"):
        make_private_directory(shared)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        make_private_directory(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        make_private_directory(theirs)


def test_limits_that_the_machine_cannot_give_are_fitted_and_noted(root: Path, tmp_path: Path) -> None:
    with Server(Config(root=root, unix=tmp_path / "s", max_connections=1_000_000)) as server:
        assert any("max_connections lowered" in notice for notice in server.notices)
        assert server.statistics().max_connections < 1_000_000


def test_a_drain_finishes_and_then_refuses_connections(server: Server) -> None:
    with RawClient(server.addresses["unix"]) as v1:
        assert v1.ask(COPY, "/a").status == OK
        assert not server.statistics().draining
        assert server.drain(timeout=10)
        assert v1.at_end()
    assert server.statistics().draining


def test_a_drain_gives_up_in_time(server: Server, root: Path) -> None:
    (root / "big").write_bytes(bytes(64 << 20))
    with RawClient(server.addresses["unix"]) as v1:
        v1.send(b"2\0\4/big")
        assert v1.take(1) == b"\0"
        assert not server.drain(timeout=0.1)


def test_the_configured_models_serve(root: Path, tmp_path: Path) -> None:
    config = Config(
        root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model={"tcp": "epoll", "unix": "thread-pool"}
    )
    with Server(config) as server:
        assert server.statistics().concurrency_model == {"unix": "thread-pool", "tcp": "epoll"}


def test_models_change_while_connections_live(server: Server) -> None:
    with RawClient(server.addresses["unix"]) as unix, RawClient(server.addresses["tcp"]) as tcp:
        for model in (Concurrency.EPOLL, Concurrency.WORK_STEALING, Concurrency.BY_TRANSPORT):
            server.set_concurrency(unix=model, tcp=model)
            assert unix.ask(COPY, "/a").content == tcp.ask(COPY, "/a").content == b"hello"
        assert server.statistics().concurrency_model == {"unix": "thread-per-connection", "tcp": "thread-pool"}


def test_a_wrong_change_changes_nothing(root: Path, tmp_path: Path) -> None:
    with Server(Config(root=root, unix=tmp_path / "s")) as server:
        before = server.statistics().concurrency_model
        with pytest.raises(ValueError, match=r"expected a transport that is served: unix \(got 'tcp'\)"):
            server.set_concurrency(unix=Concurrency.EPOLL, tcp=Concurrency.EPOLL)
        with pytest.raises(ValueError, match="treads"):
            server.set_concurrency(unix="treads")  # type: ignore[arg-type]
        assert server.statistics().concurrency_model == before


def test_it_ends_with_the_block_that_failed(config: Config, tmp_path: Path) -> None:
    server = Server(config)
    with pytest.raises(KeyError), server:
        raise KeyError
    assert not (tmp_path / "socket").exists()


def test_access_to_the_socket_is_a_setting(root: Path, tmp_path: Path) -> None:
    for mode in (0o600, 0o666):
        with Server(Config(root=root, unix=tmp_path / "socket", unix_mode=mode)):
            assert (tmp_path / "socket").stat().st_mode & 0o777 == mode
