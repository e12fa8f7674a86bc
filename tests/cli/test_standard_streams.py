"""Standard input, output and error that are closed, full or interrupted: a line, an exit code, never a traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from objmapper_server import Server

from .conftest import COMMAND, HOME, Run, one_line

#: As a shell starts a command with streams closed.
CLOSED = {"input": "<&-", "output": ">&-", "error": "2>&-", "all": "<&- >&- 2>&-"}
SAYS_SOMETHING = [
    ["--help"],
    ["--version"],
    ["get", "/a"],
    ["get", "/a", "--mode", "copy"],
    ["ls"],
    ["stat", "/a"],
    ["stat", "/a", "--json"],
    ["config", "--check", os.devnull],
    ["completion", "bash"],
]
named = pytest.mark.parametrize("arguments", SAYS_SOMETHING, ids=" ".join)


def closing(streams: str, *arguments: str) -> list[str]:
    return ["sh", "-c", f'exec "$@" {CLOSED[streams]}', "sh", *COMMAND, *arguments]


@named
def test_a_closed_output_is_said(server: Server, environment: dict[str, str], arguments: list[str]) -> None:
    got = subprocess.run(closing("output", *arguments), env=environment, capture_output=True, check=False, timeout=60)
    assert got.returncode == 1
    assert "Bad file descriptor" in one_line(got.stderr.splitlines(keepends=True)[0])
    assert b"Traceback" not in got.stderr


@named
def test_a_full_output_is_said(server: Server, objmapper: Run, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        got = objmapper(*arguments, stdout=full)
    assert got.returncode == 1
    assert "No space left on device" in one_line(got.stderr.splitlines(keepends=True)[0])
    assert b"Traceback" not in got.stderr


@pytest.mark.parametrize("arguments", [["get", "/missing"], ["stat", "/missing"], ["rm", "/missing"]], ids=" ".join)
def test_the_exit_code_stays_when_stderr_is_closed(
    server: Server, objmapper: Run, environment: dict[str, str], arguments: list[str]
) -> None:
    expected = objmapper(*arguments).returncode
    with open("/dev/full", "wb") as full:
        assert objmapper(*arguments, stderr=full).returncode == expected
    for streams in ("error", "all"):
        got = subprocess.run(closing(streams, *arguments), env=environment, check=False, timeout=60)
        assert got.returncode == expected


def test_a_closed_input_is_said(server: Server, environment: dict[str, str]) -> None:
    command = closing("input", "put", "-", "/o")
    got = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert got.returncode == 1
    assert "Bad file descriptor" in one_line(got.stderr)


def test_a_server_needs_no_streams(root: Path, tmp_path: Path, environment: dict[str, str], objmapper: Run) -> None:
    command = closing("all", "serve", str(root), "--unix", str(tmp_path / "socket"), "--no-admin")
    with subprocess.Popen(command, env=environment) as process:
        try:
            while objmapper("get", "/a").stdout != b"hello":
                assert process.poll() is None
            # What it was not given it holds, so that no client's connection becomes its standard error.
            for number in range(3):
                assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_an_interruption_while_the_command_is_loaded_is_quiet(environment: dict[str, str], tmp_path: Path) -> None:
    """The first module that the command loads waits until the signal has come."""
    mark = tmp_path / "loading"
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "typer.py").write_text(f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(60)\n")
    environment["PYTHONPATH"] = os.pathsep.join([str(slow), str(HOME / "cli"), str(HOME)])
    # Not as a background job of a shell, which would ignore the signal.
    process = subprocess.Popen(
        [sys.executable, "-c", "from objmapper_cli.main import main; main()", "ls"],
        env=environment,
        stderr=subprocess.PIPE,
    )
    with process:
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (-signal.SIGINT, b"")
