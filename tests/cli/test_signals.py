"""A command that a signal ends, and one whose arguments are wrong: what is left, and what is said."""

import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import Client, ConnectionFailed
from objmapper_server import Config, Server

from .conftest import COMMAND, Run, closing, one_line

ENDINGS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
Start = Callable[..., subprocess.Popen[bytes]]


@ENDINGS
@pytest.mark.parametrize("bench", ["latency", "storage", "models"])
def test_a_bench_that_is_ended_leaves_no_server_and_no_files(
    started: Start,
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    bench: str,
    number: signal.Signals,
) -> None:
    # A short path: the socket of the bench's server is below it.
    scratch = tmp_path_factory.mktemp("s")
    environment["TMPDIR"] = str(scratch)
    flags = ["--requests", "1000000000"] if bench == "latency" else ["--duration", "120s"]
    process = started("bench", bench, *flags, start_new_session=True)
    # The server's socket: the bench is about to measure, or does.
    while not list(scratch.glob("*/o.sock")):
        assert process.poll() is None
        time.sleep(0.02)
    server = _children(process.pid)
    assert server
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 128 + number
    assert list(scratch.iterdir()) == []
    assert not any(Path(f"/proc/{each}").exists() for each in server)


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@ENDINGS
def test_the_cursor_is_shown_again(
    server: Server, environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    assert server.admin_address is not None
    seen = _on_terminal(
        [*COMMAND, "stats", "--admin", server.admin_address, "--watch", "0.2"], environment, b"\x1b[?25l", number
    )
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0


def _on_terminal(command: list[str], environment: dict[str, str], until: bytes, number: signal.Signals) -> bytes:
    """What a terminal sees of a command that gets a signal once it has written `until`."""
    terminal, tty = os.openpty()
    termios.tcsetwinsize(tty, (40, 200))
    before = termios.tcgetattr(tty)
    seen = b""
    with closing(terminal, tty):
        options: dict[str, Any] = {"stdin": tty, "stdout": tty, "stderr": tty, "env": environment}
        with subprocess.Popen(command, **options) as process:
            os.set_blocking(terminal, False)
            sent = False
            while process.poll() is None:
                try:
                    seen += os.read(terminal, 65536)
                except BlockingIOError:
                    time.sleep(0.02)
                if until in seen and not sent:
                    sent = True
                    process.send_signal(number)
            assert process.returncode == 128 + number
        try:
            while True:
                seen += os.read(terminal, 65536)
        except BlockingIOError:
            pass
        assert termios.tcgetattr(tty) == before
    return seen


def test_a_signal_that_the_caller_ignores_ends_no_command(
    started: Start, environment: dict[str, str], tmp_path: Path
) -> None:
    """As nohup starts it: the terminal's end is no end of the command."""
    program = (
        "import signal, sys\n"
        "from objmapper_cli.output_file import exiting_on_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with exiting_on_signals():\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    print('goes on', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
    )
    got = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False, timeout=60)
    assert (got.returncode, got.stdout, got.stderr) == (128 + signal.SIGTERM, b"goes on\n", b"")


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_server_that_starts_is_waited_for_over_a_network_too(root: Path, started: Start, transport: str) -> None:
    def config(address: str) -> Config:
        if transport == "udp":
            return Config(root=root, udp=address, admin=None)
        return Config(root=root, tcp=address, admin=None)

    with Server(config("127.0.0.1:0")) as server:
        address = server.addresses[transport]
    with pytest.raises(ConnectionFailed), Client(address) as client:
        client.read("/a")
    waiting = started("get", "/a", "--server", address, "--wait", "60s")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(3)
    with Server(config(address.partition("//")[2])):
        assert waiting.communicate(timeout=60) == (b"hello", b"")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonesuch"], "No such command 'nonesuch'"),
        (["--nonesuch"], "--nonesuch"),
        (["get"], "URI"),
        (["get", "/a", "--jobs"], "--jobs"),
        (["get", "/a", "--offset", "-1"], "--offset"),
        (["get", "/a", "--length", str(1 << 64), "--mode", "copy"], "--length"),
        (["get", "-r", "/", "-o", "root/a"], "root/a: not a directory"),
        (["open", "/a", "--", ""], "COMMAND"),
        (["open", "/a", "--json"], "COMMAND"),
        (["completion", "tcsh"], "'bash'"),
        (["completion", "bash", "--json", "x"], "x"),
        (["trace", "--count", "0"], "--count"),
        (["stats", "--watch", "soon"], "--watch"),
        (["stats", "--admin", "http://a\nb"], "invalid admin address"),
        (["put", "root/a", "/b", "--if-match", "x" * 10_000], "etag"),
        (["put", "root/a", "/b", "--if-match", "x" * 70_000], "etag"),
        (["bench", "nonesuch"], "nonesuch"),
        (["bench", "latency", "--rounds", "0"], "--rounds"),
        (["bench", "latency", "--plot", "picture.txt"], "--plot"),
        (["bench", "latency", "--uri", "/a"], "--server"),
        (["bench", "throughput", "--duration", "99999999h"], "--duration"),
        (["serve", "root", "--nonesuch"], "--nonesuch"),
        (["serve", "root", "--access-log", "", "--no-admin"], "access_log"),
        (["config", "--check", ""], "file"),
    ],
)
def test_wrong_arguments_are_one_line(server: Server, objmapper: Run, arguments: list[str], says: str) -> None:
    got = objmapper(*arguments)
    assert (got.returncode, got.stdout) == (2, b"")
    assert says in one_line(got.stderr)


@pytest.mark.parametrize("variables", [{}, {"COMP_WORDS": "objmapper ser", "COMP_CWORD": "x"}])
def test_a_completion_without_a_shell_is_said(
    environment: dict[str, str], objmapper: Run, variables: dict[str, str]
) -> None:
    environment |= {"_OBJMAPPER_COMPLETE": "complete_bash"} | variables
    got = objmapper()
    assert (got.returncode, got.stdout) == (2, b"")
    assert "_OBJMAPPER_COMPLETE" in one_line(got.stderr)


def test_a_server_that_cannot_say_where_it_is_ends(
    root: Path, tmp_path: Path, environment: dict[str, str], objmapper: Run
) -> None:
    serving = ["serve", root, "--unix", tmp_path / "one", "--no-admin", "--json"]
    with open("/dev/full", "wb") as full:
        got = objmapper(*serving, stdout=full)
    assert got.returncode == 1
    assert "standard output: No space left" in one_line(got.stderr)
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *map(str, serving)]
    got = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert got.returncode == 1
    assert "standard output: Bad file descriptor" in one_line(got.stderr)
    assert not (tmp_path / "one").exists()
