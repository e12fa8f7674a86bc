"""A writable root, a server on it, and the fsspec file system over both transports."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
import pytest

from objmapper_client.filesystem import ObjmapperFileSystem
from objmapper_server import Config, Server


@pytest.fixture(scope="module", autouse=True)
def _fsspec_has_its_loop() -> None:
    """It stays for the whole process, with its descriptors."""
    fsspec.asyn.get_loop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(Config(root=root, unix=tmp_path / "socket", tcp="127.0.0.1:0", admin=None, writable=True)) as server:
        yield server


@pytest.fixture(params=["unix", "tcp"])
def system(request: pytest.FixtureRequest, server: Server) -> Iterator[ObjmapperFileSystem]:
    system = ObjmapperFileSystem(server.addresses[request.param], skip_instance_cache=True)
    with system.client:
        yield system


def fsspec_kinds(kind: Any) -> Iterator[Any]:
    """All file systems that are loaded: caches and archives keep ours in instances of their own."""
    for each in kind.__subclasses__():
        yield each
        yield from fsspec_kinds(each)


@pytest.fixture(params=["unix", "tcp"])
def by_default(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OBJMAPPER_SERVER", server.addresses[request.param])
    ObjmapperFileSystem.clear_instance_cache()
    yield
    for kind in (ObjmapperFileSystem, *fsspec_kinds(fsspec.AbstractFileSystem)):
        kind.clear_instance_cache()
