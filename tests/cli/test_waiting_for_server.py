"""Servers that are still to start, and where a server listens by itself."""

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from objmapper_client import Client, ConnectionFailed
from objmapper_server import Config, Server
from tests.cli.conftest import Run, ServeProcess, one_line


def test_a_client_waits_for_a_server_that_starts(
    root: Path, tmp_path: Path, objmapper: Run, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    got = objmapper("get", "/a", "--wait", "100ms")
    assert got.returncode == 4
    assert objmapper("get", "/a", "--wait", "soon").returncode == 2
    waiting = started("get", "/a", "--wait", "60s")
    read: list[bytes] = []

    def ask() -> None:
        with Client(f"unix:{tmp_path}/socket", wait=60, timeout=5) as client:
            read.append(client.read("/a"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    with pytest.raises(ConnectionFailed), Client(f"unix:{tmp_path}/socket", wait=0.2) as client:
        client.read("/a")
    with Server(Config(root=root, unix=tmp_path / "socket", admin=None)):
        for thread in threads:
            thread.join(60)
        assert waiting.communicate(timeout=60)[0] == b"hello"
    assert read == [b"hello", b"hello"]
    with pytest.raises(ValueError, match="wait"):
        Client("unix:/nowhere", wait=float("nan"))


def test_what_asks_the_admin_endpoint_waits_for_it(
    root: Path, tmp_path: Path, objmapper: Run, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    admin = f"unix:{tmp_path}/admin"
    for command in ("stats", "trace", "config"):
        got = objmapper(command, "--admin", admin, "--wait", "100ms")
        assert got.returncode == 4
        assert "no admin endpoint" in one_line(got.stderr)
        assert objmapper(command, "--wait", "soon").returncode == 2
    # Where a server is waited for, its settings are meant, and not those that one would have.
    got = objmapper("config", "--wait", "100ms")
    assert (got.returncode, got.stdout) == (4, b"")
    waiting = [
        started(*command, "--admin", admin, "--json", "--wait", "60s")
        for command in (["stats"], ["config"], ["trace", "--slower-than", "0us", "--count", "1"])
    ]
    # They wait, and a server that starts later is found.
    for process in waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    with Server(Config(root=root, unix=tmp_path / "socket", admin=admin)):
        stats, config, trace = waiting
        assert "requests_total" in json.loads(stats.communicate(timeout=60)[0])
        assert json.loads(config.communicate(timeout=60)[0])["admin"]["value"] == admin
        with Client(f"unix:{tmp_path}/socket") as client:
            while trace.poll() is None:
                client.read("/a")
        assert json.loads(trace.communicate(timeout=60)[0])["uri"] == "/a"


def test_serve_takes_no_address_from_the_clients_variable(
    serve: Callable[..., ServeProcess], environment: dict[str, str], root: Path, tmp_path: Path
) -> None:
    for named in ("tcp://127.0.0.1:1", "unix:/tmp/elsewhere.sock"):
        environment["OBJMAPPER_SERVER"] = named
        served = serve(root, "--no-admin")
        assert served.address("unix") == f"unix:{tmp_path}/objmapper/objmapper.sock"
        served.process.terminate()
        assert served.process.wait(60) == 0


def test_doctor_gives_no_advice_that_weakens_and_knows_its_own_server(
    serve: Callable[..., ServeProcess], objmapper: Run, environment: dict[str, str], root: Path, tmp_path: Path
) -> None:
    environment["OBJMAPPER_SERVER"] = "unix:/tmp/o.sock"
    served = serve(root, "--unix", tmp_path / "o", "--admin", "127.0.0.1:0", "--tcp", "127.0.0.1:0")
    admin, tcp = served.admin.removeprefix("http://"), served.address("tcp").removeprefix("tcp://")
    said = objmapper("doctor", root, "--admin", admin, "--tcp", tcp).stdout.decode()
    assert f"admin port: a running objmapper server has {admin}" in said
    assert f"tcp port: a running objmapper server has {tcp}" in said
    assert "chmod" not in said
    got = objmapper("serve", root, "--unix", served.address("unix").removeprefix("unix:"), "--no-admin")
    assert got.returncode == 1
    assert "port 0" not in one_line(got.stderr)


@pytest.mark.parametrize("package", ["objmapper_cli", "objmapper_client", "objmapper_server"])
def test_each_package_is_the_command(environment: dict[str, str], package: str) -> None:
    import sys

    got = subprocess.run([sys.executable, "-m", package, "-V"], env=environment, capture_output=True, timeout=60)
    assert got.returncode == 0
    assert got.stdout.startswith(b"objmapper 0.")
