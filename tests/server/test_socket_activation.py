"""Sockets that a service manager passes to the server: without a manager, and with systemd's own tools."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from objmapper_client import Client
from objmapper_server import Concurrency, Config, Server
from objmapper_server.process.socket_activation import NO_SOCKETS, inherited_sockets, transport_of
from tests.support.raw_client import COPY, OK, RawClient, request

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


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


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
        assert server.config.sources["unix"] == server.config.sources["tcp"] == "the service manager"
        assert set(server.statistics().concurrency_model.values()) == {model}
        for address in server.addresses.values():
            with RawClient(address) as v1:
                assert v1.ask(COPY, "/a").content == b"hello"


@pytest.mark.parametrize("model", MODELS)
def test_clients_during_a_restart_are_served_by_the_new_server(
    root: Path, tmp_path: Path, unix: socket.socket, tcp: socket.socket, model: Concurrency
) -> None:
    config, given = Config(root=root, concurrency_model=model), {"unix": unix, "tcp": tcp}
    with Server(config, given) as first:
        addresses = dict(first.addresses)
        assert first.drain(timeout=10)
        with ExitStack() as stack:
            early = [stack.enter_context(RawClient(address)) for address in addresses.values()]
            first.stop()
            between = [stack.enter_context(RawClient(address)) for address in addresses.values()]
            stack.enter_context(Server(config, given))
            for v1 in (*early, *between):
                assert v1.ask(COPY, "/a").status == OK
    assert (tmp_path / "given").is_socket()


@pytest.mark.parametrize("model", [model for model in MODELS if model is not Concurrency.THREAD_PER_CONNECTION])
def test_datagrams_are_answered_on_a_socket_that_was_given(
    root: Path, unix: socket.socket, udp: socket.socket, model: Concurrency
) -> None:
    (root / "large").write_bytes(bytes(range(256)) * 4096)
    config = Config(root=root, udp="127.0.0.1:1", concurrency_model=model)
    with Server(config, {"unix": unix, "udp": udp}) as server:
        assert server.addresses["udp"] == f"udp://127.0.0.1:{udp.getsockname()[1]}"
        assert server.config.sources["udp"] == "the service manager"
        assert server.statistics().concurrency_model == {"unix": model, "udp": model}
        with Client(server.addresses["udp"]) as client:
            assert client.read("/a") == b"hello"
            assert client.read("/large") == (root / "large").read_bytes()
    assert udp.getsockname()[1], "it stays the service manager's"


def test_a_datagram_that_comes_between_two_servers_is_answered_by_the_second(root: Path, udp: socket.socket) -> None:
    config = Config(root=root, udp="127.0.0.1:9998")
    with Server(config, {"udp": udp}) as first:
        assert first.drain(timeout=10)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(30)
        client.connect(udp.getsockname())
        client.send(request(COPY, "/a"))
        with Server(config, {"udp": udp}) as second:
            assert client.recv(100).endswith(b"hello")
            datagrams = second.statistics().datagrams
    assert datagrams is not None
    assert datagrams.plain_received_total == 1


def test_what_the_kernel_dropped_before_is_not_counted(root: Path, udp: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(udp.getsockname())
        # 208 KiB is what Linux keeps for a socket that says nothing about it.
        for _ in range(10_000):
            client.send(bytes(1000))
    with Server(Config(root=root, udp="127.0.0.1:9998"), {"udp": udp}) as server:
        datagrams = server.statistics().datagrams
        assert datagrams is not None
        assert datagrams.overflow_dropped_total == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="a buffer above net.core.rmem_max takes CAP_NET_ADMIN")
def test_a_buffer_that_was_made_larger_stays(root: Path, udp: socket.socket) -> None:
    so_rcvbufforce = 33  # asm-generic/socket.h; what ReceiveBuffer= comes to
    udp.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, 16 << 20)
    before = udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with Server(Config(root=root, udp="127.0.0.1:9998"), {"udp": udp}):
        assert udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before


def test_a_socket_for_both_families_answers_both(root: Path) -> None:
    (root / "large").write_bytes(bytes(range(256)) * 4096)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both:
        # As systemd makes it for ListenDatagram=9998.
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        port = both.getsockname()[1]
        with Server(Config(root=root, udp="9998"), {"udp": both}) as server:
            assert any("is not loopback" in notice for notice in server.notices)
            for address in (f"udp://127.0.0.1:{port}", f"udp://[::1]:{port}"):
                with Client(address) as client:
                    assert client.read("/a") == b"hello"
                    assert client.read("/large") == (root / "large").read_bytes()
        ip_mtu_discover, always_df = 10, 2  # linux/in.h
        assert both.getsockopt(socket.IPPROTO_IP, ip_mtu_discover) == always_df


def test_udp_stays_off_unless_a_setting_asks_for_it(root: Path, udp: socket.socket) -> None:
    port = udp.getsockname()[1]
    with pytest.raises(
        OSError, match=rf"got a datagram socket \(127.0.0.1:{port}\), but udp is off; set udp = \"127.0.0.1:{port}\""
    ):
        Server(Config(root=root), {"udp": udp})


def test_a_datagram_socket_that_hears_one_address_or_none_is_refused_by_the_engine(
    root: Path, udp: socket.socket
) -> None:
    config = Config(root=root, udp="127.0.0.1:9998")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound,
        pytest.raises(OSError, match="not bound"),
    ):
        Server(config, {"udp": unbound}).start()
    udp.connect(("127.0.0.1", 9))
    with pytest.raises(OSError, match="is connected"):
        Server(config, {"udp": udp}).start()


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


def test_only_sockets_for_this_process_are_taken() -> None:
    for theirs in ({}, {"LISTEN_PID": "1", "LISTEN_FDS": "5"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}):
        environment = {"PATH": "/", **theirs}
        assert inherited_sockets(environment) is NO_SOCKETS
        assert environment == {"PATH": "/"}


@pytest.mark.parametrize("place", ["closed", "file"])
def test_a_descriptor_that_is_no_socket_is_named(root: Path, tmp_path: Path, place: str) -> None:
    redirection = "3>&-" if place == "closed" else "3</dev/null"
    command = f"exec {redirection}; LISTEN_FDS=1 LISTEN_PID=$$ exec {sys.executable} -m objmapper_cli serve {root}"
    environment = os.environ | {"PYTHONPATH": f"{HOME}/cli:{HOME}", "XDG_RUNTIME_DIR": str(tmp_path)}
    ended = subprocess.run(
        ["sh", "-c", f"{command} --no-admin"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    reason = "Bad file descriptor" if place == "closed" else "Socket operation on non-socket"
    assert ended.stderr == (
        f"objmapper: socket activation: descriptor 3 of LISTEN_FDS=1 is not a socket ({reason}); "
        "start the server by its socket unit, or without LISTEN_FDS\n"
    )


def test_a_socket_is_recognized_by_its_kind(unix: socket.socket, tcp: socket.socket, udp: socket.socket) -> None:
    assert (transport_of(unix), transport_of(tcp), transport_of(udp)) == ("unix", "tcp", "udp")


@pytest.mark.parametrize(
    ("family", "kind", "says"),
    [
        (
            socket.AF_INET,
            socket.SOCK_STREAM,
            r"0\.0\.0\.0:0 does not listen for connections; use ListenStream=",
        ),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "does not listen for connections"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "is a datagram socket, but not UDP; ListenDatagram= needs an address"),
        (socket.AF_NETLINK, socket.SOCK_DGRAM, "is a datagram socket, but not UDP"),
        (socket.AF_NETLINK, socket.SOCK_RAW, "does not listen for connections"),
    ],
)
def test_an_unknown_transport_is_named(family: socket.AddressFamily, kind: socket.SocketKind, says: str) -> None:
    with socket.socket(family, kind) as wrong, pytest.raises(OSError, match=says):
        transport_of(wrong)


def test_an_abstract_socket_is_refused_by_the_engine(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(b"\0objmapper-test-%d" % os.getpid())
        abstract.listen()
        with pytest.raises(OSError, match="the Unix socket has no path"):
            Server(Config(root=root), {"unix": abstract}).start()


def serve(root: Path, *flags: object) -> list[object]:
    return [sys.executable, "-m", "objmapper_cli", "serve", root, *flags]


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
    with RawClient(f"unix:{tmp_path}/s", timeout=60) as v1:
        assert v1.ask(COPY, "/a").content == b"hello"
    assert process.stderr is not None
    ready = next(line for line in process.stderr if "ready" in line)
    assert ready == f"objmapper: ready unix:{tmp_path}/s admin unix:{tmp_path}/admin-socket\n"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "admin-socket"))) as client:
        assert client.get("http://localhost/config").json()["unix"]["origin"] == "the service manager"
    # It has become the server itself.
    process.terminate()
    assert process.wait(30) == 0
    assert (tmp_path / "s").is_socket()


def started_with(sockets: Sequence[socket.socket], names: str, command: Sequence[object]) -> list[object]:
    """Return a command that hands sockets over as systemd does: from 3 on, to its own process."""
    program = (
        "import fcntl, os, sys\n"
        "given = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 50) for number in sys.argv[1].split(',')]\n"
        "for place, number in enumerate(given, 3): os.dup2(number, place)\n"
        "os.closerange(3 + len(given), 100)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=sys.argv[2])\n"
        "os.execvp(sys.argv[3], sys.argv[3:])\n"
    )
    return [sys.executable, "-c", program, ",".join(str(each.fileno()) for each in sockets), names, *command]


def test_all_kinds_can_be_handed_over_at_once(
    root: Path,
    tmp_path: Path,
    unix: socket.socket,
    tcp: socket.socket,
    udp: socket.socket,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as admin:
        sockets = (udp, unix, admin, tcp)
        command = started_with(sockets, "objects:objects:admin:objects", serve(root, "--udp", "127.0.0.1:9998"))
        process = start(*command, pass_fds=[each.fileno() for each in sockets])
        ports = {name: each.getsockname()[1] for name, each in (("tcp", tcp), ("udp", udp), ("admin", admin))}
    assert process.stderr is not None
    assert process.stderr.readline() == (
        f"objmapper: ready unix:{tmp_path}/given tcp://127.0.0.1:{ports['tcp']} udp://127.0.0.1:{ports['udp']} "
        f"admin http://127.0.0.1:{ports['admin']}\n"
    )
    for address in (f"unix:{tmp_path}/given", f"tcp://127.0.0.1:{ports['tcp']}", f"udp://127.0.0.1:{ports['udp']}"):
        with Client(address) as client:
            assert client.read("/a") == b"hello"
    process.terminate()
    assert process.wait(30) == 0


def test_what_does_not_fit_ends_the_start_in_one_line(
    root: Path, udp: socket.socket, start: Callable[..., subprocess.Popen[str]]
) -> None:
    port = udp.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        second.bind(("127.0.0.1", 0))
        for names, sockets, flags, says in (
            ("objects", [udp], (), f"socket activation: got a datagram socket (127.0.0.1:{port}), but udp is off; "),
            ("admin", [udp], ("--udp", "9998"), "socket activation: the admin endpoint got a datagram socket "),
            ("a:b", [udp, second], ("--udp", "9998"), f"socket activation: udp got two sockets (127.0.0.1:{port}, "),
        ):
            command = started_with(sockets, names, serve(root, *flags))
            process = start(*command, pass_fds=[each.fileno() for each in sockets])
            assert process.stderr is not None
            (line,) = process.stderr
            assert line.startswith(f"objmapper: {says}")
            assert process.wait(30) == 1


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd's tools are not installed")
def test_systemd_activates_it_by_datagram(
    root: Path,
    tmp_path: Path,
    udp: socket.socket,
    start: Callable[..., subprocess.Popen[str]],
    environment: dict[str, str],
) -> None:
    passed = [
        f"--setenv={name}={value}" for name, value in environment.items() if name in ("PYTHONPATH", "PATH", "HOME")
    ]
    host, port = udp.getsockname()
    udp.close()
    flags = ("--udp", f"{host}:{port}", "--no-admin")
    process = start("systemd-socket-activate", "--datagram", *passed, "-l", f"{host}:{port}", *serve(root, *flags))
    assert process.stderr is not None
    assert "Listening on" in process.stderr.readline()
    # The first question is there before there is a server.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        client.connect((host, port))
        client.send(request(COPY, "/a"))
        assert client.recv(100).endswith(b"hello")
    assert next(line for line in process.stderr if "ready" in line) == f"objmapper: ready udp://{host}:{port}\n"
    with Client(f"udp://{host}:{port}") as over_udp:
        assert over_udp.read("/a") == b"hello"
    process.terminate()
    assert process.wait(30) == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's tools are not installed")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    units = HOME / "packaging" / "systemd"
    copies = []
    for unit in sorted(units.iterdir()):
        # The one thing that this machine may not have is the command itself.
        text = re.sub(r"^(ExecStart=)/usr/bin/objmapper", rf"\1{sys.executable}", unit.read_text(), flags=re.MULTILINE)
        # What is commented out must be right, too.
        text, lines = re.subn(r"^#(Listen\w+=)", r"\1", text, flags=re.MULTILINE)
        assert (lines == 2) == (unit.suffix == ".socket")
        (tmp_path / unit.name).write_text(text)
        copies.append(tmp_path / unit.name)
    assert {copy.suffix for copy in copies} == {".service", ".socket"}
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in checked.stderr.splitlines() if "objmapper" in line]
    assert (checked.returncode, said) == (0, [])
