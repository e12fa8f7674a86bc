"""The command as a user runs it: a process of its own, against a real server in this one."""

import os
import re
import select
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from objmapper_server import Config, Server

HOME = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "objmapper_cli"]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"hello")
    (root / "empty").touch()
    (root / "big").write_bytes(os.urandom(20 << 20))
    (root / "link").symlink_to("a")
    return root


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(Config(root=root, unix=tmp_path / "socket", tcp="127.0.0.1:0", admin="127.0.0.1:0")) as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of the command; what it would use of the user's own lies below tmp_path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OBJMAPPER_")}
    path = os.pathsep.join([*filter(None, [kept.get("PYTHONPATH")]), str(HOME / "cli"), str(HOME)])
    socket = f"unix:{tmp_path}/socket"
    return kept | {"PYTHONPATH": path, "OBJMAPPER_SERVER": socket, "XDG_RUNTIME_DIR": str(tmp_path), "TERM": "xterm"}


def default_options(environment: dict[str, str], folder: Path) -> dict[str, Any]:
    return {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "cwd": folder}


@pytest.fixture
def objmapper(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs the command to its end."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        options = {**default_options(environment, tmp_path), **options}
        command = [*COMMAND, *map(str, arguments)]
        ended: subprocess.CompletedProcess[bytes] = subprocess.run(command, timeout=60, check=False, **options)
        return ended

    return run


@pytest.fixture
def started(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the command; whatever still runs at the end of the test is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        options = {**default_options(environment, tmp_path), **options}
        processes.append(subprocess.Popen([*COMMAND, *map(str, arguments)], **options))
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


class ServeProcess:
    """A server that ``objmapper serve`` runs, once it has said that it is ready."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self.process = process
        self.output_lines = []
        for line in iter(process.stderr.readline, b""):
            self.output_lines.append(line.decode())
            if line.startswith(b"objmapper: ready "):
                break
        else:
            pytest.fail(f"it ended: {self.output_lines}")
        self.ready = self.output_lines[-1]

    def address(self, transport: str) -> str:
        found = re.search(rf"(?<!admin )\b{transport}:\S+", self.ready)
        assert found, self.ready
        return found[0]

    @property
    def admin(self) -> str:
        return self.ready.split("admin ")[1].strip()


@pytest.fixture
def serve(started: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., ServeProcess]:
    return lambda *arguments, **options: ServeProcess(started("serve", *arguments, **options))


def one_line(stderr: bytes) -> str:
    """What the command said, which must be one line that begins with its name."""
    text = stderr.decode()
    assert text.startswith("objmapper: "), text
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    return text.removeprefix("objmapper: ").rstrip("\n")


@contextmanager
def closing(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def terminal_output_while_reading(
    command: list[str], environment: dict[str, str], *, until: bytes, chunk_size: int = 1 << 17
) -> bytes:
    """What a terminal sees as standard error of a command whose output is read slowly, until it has seen `until`."""
    terminal, tty = os.openpty()
    termios.tcsetwinsize(tty, (24, 80))
    seen = b""
    with closing(terminal):
        with closing(tty):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=tty, env=environment)
        with process:
            assert process.stdout is not None
            # A piece at a time, with a look at the terminal after each.
            while until not in seen and process.stdout.read(chunk_size):
                if select.select([terminal], [], [], 0.02)[0]:
                    seen += os.read(terminal, 4096)
            process.kill()
    assert until in seen
    return seen


def has_nameless_file(pid: int, folder: Path) -> bool:
    """Whether a process writes to a file below a folder that has no name yet."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return any(name.startswith(str(folder)) and name.endswith(" (deleted)") for name in found)


def is_asleep(pid: int) -> bool:
    """Whether a process waits in the kernel. A signal that comes on its way there is heard when the wait is over."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
