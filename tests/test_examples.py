"""The programs in examples/ do what they say; that they have the types they claim is checked by the lints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from objmapper_client import Client
from objmapper_server import Config, Server

HOME = Path(__file__).parent.parent
PROGRAM = HOME / "examples" / "user_program.py"


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OBJMAPPER_")}
    return kept | {"PYTHONPATH": str(HOME)}


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_the_user_program_uses_every_verb_and_leaves_nothing(tmp_path: Path, transport: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with Server(Config(root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", admin=None, writable=True)) as server:
        command = [sys.executable, "-W", "error", str(PROGRAM), server.addresses[transport]]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["/example/rows 9000", "9000 9000"]
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_the_user_program_runs_a_server_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    source = "import sys, pathlib, user_program as u; print(u.with_a_server_of_ones_own(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-W", "error", "-c", source, str(tmp_path / "root")]
    path = os.pathsep.join((str(HOME), str(PROGRAM.parent)))
    done = subprocess.run(
        command, env=environment() | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "['unix']"


@pytest.mark.parametrize("operation", [name for name in vars(Client) if not name.startswith("_") and name != "close"])
def test_every_verb_of_both_clients_is_in_the_user_program(operation: str) -> None:
    threads, tasks = PROGRAM.read_text().split("async def with_tasks")
    assert f"client.{operation}(" in threads
    assert f"client.{operation}(" in tasks
