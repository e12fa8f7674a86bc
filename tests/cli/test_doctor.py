"""``objmapper doctor``: on a machine that is well, and on one that is not in many ways at once."""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from objmapper_server import Config, Server
from tests.cli.conftest import COMMAND, Run
from tests.support import users

Findings = dict[str, dict[str, str]]


def findings(output: bytes) -> Findings:
    return {finding["check"]: finding for finding in json.loads(output)}


@pytest.fixture
def well(root: Path, tmp_path: Path) -> list[object]:
    """Arguments with which this machine should have no problem."""
    return [root, "--unix", tmp_path / "s", "--tcp", "127.0.0.1:0", "--admin", "none", "--max-connections", "10"]


def test_a_machine_that_is_well(objmapper: Run, well: list[object]) -> None:
    got = objmapper("doctor", *well)
    assert (got.returncode, got.stderr) == (0, b"")
    lines = got.stdout.decode().splitlines()
    assert all(line.startswith(("ok ", "note ")) for line in lines)
    assert any(line.startswith("ok      openat2: ") for line in lines)
    document = json.loads(objmapper("doctor", "--json", *well).stdout)
    assert len(document) == len(lines)
    assert {tuple(finding) for finding in document} == {("check", "level", "finding", "cure")}


def test_every_problem_has_a_cure(objmapper: Run, tmp_path: Path, server: Server) -> None:
    taken = server.addresses["tcp"].removeprefix("tcp://")
    (tmp_path / "file").touch()
    got = objmapper(
        "doctor", "--json", tmp_path / "none", "--unix", tmp_path / "file", "--tcp", taken, "--admin", taken
    )
    assert got.returncode == 1
    found = findings(got.stdout)
    for check in ("root", "socket", "tcp port", "admin port"):
        assert found[check]["level"] == "problem"
        assert found[check]["cure"]
    assert "ss -ltnp" in found["tcp port"]["cure"]


def test_lists_that_cannot_have_their_say(objmapper: Run, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text('allow_gid = [12345]\ntcp = "127.0.0.1:0"\n')
    form = ["doctor", "--json", root, "--unix", tmp_path / "s", "--admin", "none", "--config", file]
    found = findings(objmapper(*form).stdout)
    assert "0600" in found["lists and permissions"]["finding"]
    assert "unix_mode to 0666" in found["lists and permissions"]["cure"]
    assert "tcp admit every client" in found["lists and networks"]["finding"]
    file.write_text('allow_gid = [12345]\nunix_mode = "0666"\n')
    assert not {"lists and permissions", "lists and networks"} & findings(objmapper(*form).stdout).keys()


def test_what_udp_needs(objmapper: Run, root: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        got = objmapper("doctor", "--json", root, "--udp", address, "--admin", "none")
    found = findings(got.stdout)
    assert found["udp port"]["level"] == "problem"
    assert "ss -lunp" in found["udp port"]["cure"]
    assert "socket buffers" in found
    assert "udp address" not in found
    found = findings(objmapper("doctor", "--json", root, "--udp", "0.0.0.0:0", "--admin", "none").stdout)
    assert found["udp port"]["level"] == "ok"
    assert "not loopback" in found["udp address"]["finding"]


def test_trust_in_networks_with_forgeable_addresses_is_a_problem(
    objmapper: Run, root: Path, environment: dict[str, str]
) -> None:
    environment["OBJMAPPER_UDP_TRUSTED"] = "10.0.0.0/8"
    flags = (root, "--udp", "127.0.0.1:0", "--admin", "none")
    assert "udp_trusted" not in findings(objmapper("doctor", "--json", *flags).stdout)
    environment["OBJMAPPER_UDP_TRUSTED"] = "10.0.0.0/8,0.0.0.0/0"
    got = objmapper("doctor", "--json", *flags)
    assert got.returncode == 1
    assert "0.0.0.0/0 is trusted" in findings(got.stdout)["udp_trusted"]["finding"]


def test_a_slip_in_the_settings_is_a_problem(objmapper: Run, environment: dict[str, str]) -> None:
    environment["OBJMAPPER_IDLE_TIMEOUT"] = "soon"
    got = objmapper("doctor")
    assert got.returncode == 1
    assert got.stdout.startswith(
        b"problem settings: idle_timeout (from OBJMAPPER_IDLE_TIMEOUT): expected seconds, more than 0 (got 'soon')"
    )


def test_a_stale_socket_and_a_live_one(objmapper: Run, well: list[object], root: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    got = objmapper("doctor", "--json", *well)
    assert got.returncode == 1
    assert "stale" in findings(got.stdout)["socket"]["finding"]
    with Server(Config(root=root, unix=tmp_path / "s")):
        got = objmapper("doctor", "--json", *well)
    assert got.returncode == 0
    assert "a server listens" in findings(got.stdout)["socket"]["finding"]


def test_a_directory_that_others_may_write_to(objmapper: Run, root: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    got = objmapper("doctor", "--json", root, "--unix", shared / "s", "--admin", "none")
    assert "other users may write" in findings(got.stdout)["socket directory"]["finding"]
    shared.chmod(0o1777)
    got = objmapper("doctor", "--json", root, "--unix", shared / "s", "--admin", "none")
    assert findings(got.stdout)["socket directory"]["level"] == "ok"


def test_few_descriptors(objmapper: Run, well: list[object]) -> None:
    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    got = objmapper("doctor", "--json", *well, preexec_fn=restrict)
    assert findings(got.stdout)["RLIMIT_NOFILE"]["level"] == "ok"
    got = objmapper("doctor", "--json", *well, "--max-connections", "1000", preexec_fn=restrict)
    assert got.returncode == 1
    found = findings(got.stdout)["RLIMIT_NOFILE"]
    assert found["finding"] == "64 descriptors suffice for 16 of 1000 connections"
    assert found["cure"].startswith("raise it to 1376 ")


def test_the_advice_is_sufficient(root: Path, tmp_path: Path) -> None:
    """The cure's own number gives a server as many connections as were asked for, and no descriptor too many."""
    program = (
        "import resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))\n"
        "from objmapper_server import Config, Server\n"
        "with Server(Config(root=sys.argv[2], unix=sys.argv[3], max_connections=1000)) as server:\n"
        "    print(server.statistics().max_connections)"
    )

    def fitted(limit: int) -> int:
        command = [sys.executable, "-c", program, str(limit), str(root), str(tmp_path / "s")]
        return int(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)

    assert fitted(1376) == 1000
    assert fitted(1374) < 1000


@pytest.mark.skipif(users.why_no_command() != "", reason=users.why_no_command())
def test_a_crippled_environment(environment: dict[str, str]) -> None:
    """Another user, not root, with 64 descriptors, a foreign directory for the socket and a stale socket in it."""
    with tempfile.TemporaryDirectory() as folder:
        home, foreign, root = Path(folder), Path(folder, "foreign"), Path(folder, "root")
        home.chmod(0o755)
        for path in (foreign, root):
            path.mkdir()
        os.chown(foreign, 12345, 12345)
        root.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(foreign / "s"))
        (foreign / "s").chmod(0o666)

        def restrict() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

        def run(*form: str) -> subprocess.CompletedProcess[bytes]:
            command: list[Any] = [*users.COMMAND, *COMMAND, "doctor", *form, root, "--unix", foreign / "s"]
            return subprocess.run(
                [*command, "--admin", "none"],
                env=environment,
                cwd="/",
                capture_output=True,
                timeout=60,
                preexec_fn=restrict,
            )

        got, as_lines = run("--json"), run()
    assert (got.returncode, got.stderr) == (as_lines.returncode, as_lines.stderr) == (1, b"")
    found = findings(got.stdout)
    assert {check for check, finding in found.items() if finding["level"] == "problem"} == {
        "RLIMIT_NOFILE",
        "socket directory",
        "socket",
        "root",
    }
    assert "belongs to user 12345" in found["socket directory"]["finding"]
    assert "stale" in found["socket"]["finding"]
    assert "Permission denied" in found["root"]["finding"]
    assert len(as_lines.stdout.splitlines()) == len(found)
