"""A root with a few objects, and a server on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_server import Config, Server


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
