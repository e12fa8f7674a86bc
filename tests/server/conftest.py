"""A root with a few objects, and a server on it."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from objmapper_server import Config, Server

HOME = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests' own machine has no say: nothing named in the environment, the default socket below tmp_path."""
    for name in ("OBJMAPPER_SERVER", "OBJMAPPER_ADMIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"hello")
    return root


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Config:
    return Config(root=root, unix=tmp_path / "socket", tcp="127.0.0.1:0", admin="127.0.0.1:0")


@pytest.fixture
def server(config: Config) -> Iterator[Server]:
    with Server(config) as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OBJMAPPER_", "LISTEN_"))}
    return kept | {"PYTHONPATH": f"{HOME / 'cli'}{os.pathsep}{HOME}", "XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with ExitStack() as stack:

        def run(*command: object, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=environment,
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=pass_fds,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run
