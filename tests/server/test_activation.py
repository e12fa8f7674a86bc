"""Sockets that a service manager hands over, and the words that it gets: without one, and with systemd's own tools."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from objmapper_server import Concurrency, Config, Server
from objmapper_server.process.activation import NO_SOCKETS, handed_over, kind_of
from objmapper_server.process.notify import Notifier
from tests.wire import COPY, OK, Wire

HOME = Path(__file__).parent.parent.parent
MODELS = [model for model in Concurrency if model not in (Concurrency.AUTO, Concurrency.BY_TRANSPORT)]


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "given"))
        listener.listen()
        yield listener


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize("model", MODELS)
def test_a_server_serves_on_sockets_that_it_was_given(
    root: Path, tmp_path: Path, unix: socket.socket, tcp: socket.socket, model: Concurrency
) -> None:
    config = Config(root=root, concurrency_model=model)
    with Server(config, {"unix": unix, "tcp": tcp}) as server:
        assert server.addresses == {
            "unix": f"unix:{tmp_path}/given",
            "tcp": f"tcp://127.0.0.1:{tcp.getsockname()[1]}",
        }
        assert server.config.origins["unix"] == server.config.origins["tcp"] == "the service manager"
        assert set(server.statistics().concurrency_model.values()) == {model}
        for address in server.addresses.values():
            with Wire(address) as wire:
                assert wire.ask(COPY, "/a").content == b"hello"


@pytest.mark.parametrize("model", MODELS)
def test_who_comes_between_two_servers_is_served_by_the_second(
    root: Path, tmp_path: Path, unix: socket.socket, tcp: socket.socket, model: Concurrency
) -> None:
    config, given = Config(root=root, concurrency_model=model), {"unix": unix, "tcp": tcp}
    with Server(config, given) as first:
        addresses = dict(first.addresses)
        assert first.drain(timeout=10)
        with ExitStack() as stack:
            early = [stack.enter_context(Wire(address)) for address in addresses.values()]
            first.stop()
            between = [stack.enter_context(Wire(address)) for address in addresses.values()]
            stack.enter_context(Server(config, given))
            for wire in (*early, *between):
                assert wire.ask(COPY, "/a").status == OK
    assert (tmp_path / "given").is_socket()


def test_the_default_socket_is_not_made_where_another_was_given(root: Path, tmp_path: Path, tcp: socket.socket) -> None:
    with Server(Config(root=root), {"tcp": tcp}) as server:
        assert list(server.addresses) == ["tcp"]
    assert not (tmp_path / "objmapper").exists()
    with Server(Config(root=root, unix=tmp_path / "s"), {"tcp": tcp}) as server:
        assert list(server.addresses) == ["unix", "tcp"]


def test_the_admin_endpoint_can_be_given_too(
    root: Path, tmp_path: Path, unix: socket.socket, tcp: socket.socket
) -> None:
    with Server(Config(root=root, unix=tmp_path / "s"), {"admin": tcp}) as server:
        assert server.admin_address == f"http://127.0.0.1:{tcp.getsockname()[1]}"
        assert list(server.addresses) == ["unix"]
        assert httpx.get(f"{server.admin_address}/healthz", trust_env=False).status_code == 200
    for _ in range(2):
        with Server(Config(root=root, unix=tmp_path / "s"), {"admin": unix}) as server:
            assert server.admin_address == f"unix:{tmp_path}/given"
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "given"))) as client:
                assert client.post("http://localhost/concurrency", json={"unix": "epoll"}).status_code == 200
    assert (tmp_path / "given").is_socket()


def test_a_reload_leaves_them_alone(root: Path, tmp_path: Path, tcp: socket.socket) -> None:
    file = tmp_path / "o.toml"
    file.write_text("idle_timeout = 60\n")
    with Server(Config.load(file=file, root=root, admin="none"), {"tcp": tcp}) as server:
        file.write_text("idle_timeout = 50\n")
        assert str(server.reload()) == "changed: idle_timeout"


def test_only_what_is_meant_for_this_process_is_taken() -> None:
    for theirs in ({}, {"LISTEN_PID": "1", "LISTEN_FDS": "5"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}):
        environment = {"PATH": "/", **theirs}
        assert handed_over(environment) is NO_SOCKETS
        assert environment == {"PATH": "/"}


def test_what_does_not_listen_is_no_transport(unix: socket.socket, tcp: socket.socket) -> None:
    assert (kind_of(unix), kind_of(tcp)) == ("unix", "tcp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.socket() as silent:
        for wrong in (datagrams, silent):
            with pytest.raises(OSError, match="does not listen for connections"):
                kind_of(wrong)


def test_an_abstract_socket_is_refused_by_the_engine(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(b"\0objmapper-test-%d" % os.getpid())
        abstract.listen()
        with pytest.raises(OSError, match="abstract Unix sockets have no permissions"):
            Server(Config(root=root), {"unix": abstract}).start()


class Manager:
    """The side of a service manager that is notified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(30)
        self.socket.bind(str(path))

    def word(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def next_but(self, boring: str) -> dict[str, str]:
        while boring in (word := self.word()):
            pass
        return word


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.socket:
        yield manager


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OBJMAPPER_", "LISTEN_"))}
    return kept | {"PYTHONPATH": f"{HOME / 'cli'}{os.pathsep}{HOME}", "XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with ExitStack() as stack:

        def run(*command: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [str(word) for word in command], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


def serve(root: Path, *flags: object) -> list[object]:
    return [sys.executable, "-m", "objmapper_cli", "serve", root, *flags]


def test_the_manager_is_told_what_the_server_does(
    root: Path,
    tmp_path: Path,
    manager: Manager,
    environment: dict[str, str],
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    environment |= {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000"}
    process = start(*serve(root, "--unix", "s", "--no-admin"))
    assert manager.word() == {"READY": "1", "STATUS": f"serving unix:{tmp_path}/s"}
    with Wire(f"unix:{tmp_path}/s") as wire:
        assert wire.ask(COPY, "/a").status == OK
    for _ in range(3):
        assert manager.word() == {"WATCHDOG": "1"}
    process.send_signal(signal.SIGHUP)
    reloading = manager.next_but("WATCHDOG")
    assert reloading["RELOADING"] == "1"
    assert 0 <= time.monotonic_ns() // 1000 - int(reloading["MONOTONIC_USEC"]) < 60_000_000
    assert manager.word()["READY"] == "1"
    process.send_signal(signal.SIGTERM)
    assert manager.next_but("WATCHDOG") == {"STOPPING": "1", "STATUS": "draining"}
    assert process.wait(30) == 0


def test_a_manager_that_is_gone_stops_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("serving")
    assert caplog.messages == ["the service manager was not told READY=1: No such file or directory"]
    Notifier({}).ready("nobody asked")
    assert len(caplog.messages) == 1


def test_an_abstract_manager_is_told_and_a_watchdog_for_others_is_not_ours() -> None:
    name = f"objmapper-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
        assert notifier.watchdog_interval is None
        notifier.stopping()
        assert listener.recv(100).startswith(b"STOPPING=1\n")


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd's tools are not installed")
def test_systemd_activates_it_by_socket(
    root: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]], environment: dict[str, str]
) -> None:
    passed = [
        f"--setenv={name}={value}" for name, value in environment.items() if name in ("PYTHONPATH", "PATH", "HOME")
    ]
    listen = ["-l", tmp_path / "s", "-l", tmp_path / "admin-socket", "--fdname=objects:admin"]
    process = start("systemd-socket-activate", *passed, *listen, *serve(root))
    deadline = time.monotonic() + 30
    while not (tmp_path / "admin-socket").is_socket():
        assert time.monotonic() < deadline
    # The first client is there before there is a server.
    with Wire(f"unix:{tmp_path}/s", timeout=60) as wire:
        assert wire.ask(COPY, "/a").content == b"hello"
    assert process.stderr is not None
    ready = next(line for line in process.stderr if "ready" in line)
    assert ready == f"objmapper: ready unix:{tmp_path}/s admin unix:{tmp_path}/admin-socket\n"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "admin-socket"))) as client:
        assert client.get("http://localhost/config").json()["unix"]["origin"] == "the service manager"
    # It has become the server itself.
    process.terminate()
    assert process.wait(30) == 0
    assert (tmp_path / "s").is_socket()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's tools are not installed")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    units = HOME / "packaging" / "systemd"
    copies = []
    for unit in sorted(units.iterdir()):
        # The one thing that this machine may not have is the command itself.
        text = re.sub(r"^(ExecStart=)/usr/bin/objmapper", rf"\1{sys.executable}", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
        copies.append(tmp_path / unit.name)
    assert {copy.suffix for copy in copies} == {".service", ".socket"}
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in checked.stderr.splitlines() if "objmapper" in line]
    assert (checked.returncode, said) == (0, [])
