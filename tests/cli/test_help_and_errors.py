"""The command as a whole: its help, its start, and the words for what goes wrong."""

import errno
import re
import subprocess
import sys

import pytest

from objmapper_cli.app import COMMANDS
from objmapper_cli.errors import CommandError, ExitCode, explain
from objmapper_client import errors
from objmapper_client.protocol import Status
from objmapper_server import ConfigError
from tests.cli.conftest import Run

#: What a small transfer must not pay for.
HEAVY = ("rich", "httpx", "tqdm", "asyncio", "fastapi", "uvicorn", "pydantic_settings", "objmapper_server", "ssl")


def test_help_names_every_command(objmapper: Run) -> None:
    got = objmapper("--help")
    assert got.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} ".encode() in got.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(objmapper: Run, name: str) -> None:
    got = objmapper(name, "--help")
    assert got.returncode == 0
    assert f"Usage: objmapper {name}".encode() in got.stdout


def test_a_slip_is_answered_with_a_suggestion(objmapper: Run) -> None:
    got = objmapper("gett", "/a")
    assert got.returncode == 2
    assert b"Did you mean 'get'?" in got.stderr


def test_version(objmapper: Run) -> None:
    got = objmapper("--version")
    assert got.returncode == 0
    assert got.stdout.startswith(b"objmapper 0.")


def test_completion_knows_the_commands(objmapper: Run, environment: dict[str, str]) -> None:
    environment |= {"_OBJMAPPER_COMPLETE": "complete_bash", "COMP_WORDS": "objmapper s", "COMP_CWORD": "1"}
    assert set(objmapper().stdout.split()) == {name.encode() for name in COMMANDS if name.startswith("s")}


def test_a_transfer_loads_nothing_heavy(environment: dict[str, str]) -> None:
    program = "import sys, objmapper_cli.main as it\ntry: it.main()\nfinally: print(*sys.modules)"
    got = subprocess.run(
        [sys.executable, "-c", program, "get", "/a", "--server", "unix:/nowhere"],
        env=environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert got.returncode == 4
    loaded = set(got.stdout.decode().split())
    assert "objmapper_client.client" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("no", ExitCode.TIMEOUT), 5),
        (ConfigError("pool_size", "no"), 2),
        (errors.error_for(Status.NOT_FOUND, "no", "/a"), 3),
        (errors.ConnectionFailed("no"), 4),
        (errors.RequestTimeout("no"), 5),
        (errors.error_for(Status.UNAVAILABLE, "no", "/a"), 6),
        (errors.error_for(Status.FORBIDDEN, "no", "/a"), 6),
        (errors.AddressError("no"), 2),
        (errors.LocalProtocolError("no"), 2),
        (errors.error_for(Status.INVALID_MODE, "no", "/a"), 2),
        (errors.error_for(Status.INVALID_REQUEST, "no", "/a"), 2),
        (errors.error_for(Status.CONFLICT, "no", "/a"), 7),
        (errors.RemoteProtocolError("no"), 1),
        (errors.ObjmapperError("no"), 1),
        (OSError(errno.EIO, "no disk"), 1),
        (ValueError("none of ours"), 1),
    ],
)
def test_every_error_has_its_code_and_its_words(error: Exception, code: int) -> None:
    found, line = explain(error)
    assert found == code
    assert "no" in line


def test_a_systems_error_says_what_where_why_and_what_to_try() -> None:
    error = OSError(errno.EADDRINUSE, "cannot bind", "tcp://127.0.0.1:1")
    assert explain(error)[1].startswith("tcp://127.0.0.1:1: cannot bind (Address already in use); choose another")
    assert explain(PermissionError(errno.EACCES, "Permission denied", "out"))[1] == "out: Permission denied"


def test_an_error_of_our_own_can_be_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "OBJMAPPER_DEBUG" in explain(KeyError("x"))[1]
    monkeypatch.setenv("OBJMAPPER_DEBUG", "1")
    with pytest.raises(KeyError):
        explain(KeyError("x"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(objmapper: Run, name: str) -> None:
    shown = objmapper(name, "--help").stdout.decode()
    if "COMMAND [ARGS]" in shown:
        inner = re.findall(r"^  ([a-z]+) ", shown.split("Commands:")[1], re.MULTILINE)
        assert inner
        shown = "".join(objmapper(name, each, "--help").stdout.decode() for each in inner)
        assert shown.count("--json") >= len(inner)
    assert "--json" in shown
