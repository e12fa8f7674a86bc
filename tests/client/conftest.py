"""What the tests of the client share."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from objmapper_client import Client
from objmapper_server import Config, Server
from tests.support.both_clients import Caller, call_in_task, call_in_thread, call_in_uvloop_task


@pytest.fixture(scope="session", autouse=True)
def _uvloop_has_its_pipe() -> None:
    """Its first loop opens descriptors that stay for the whole process: they are no test's leak."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture(params=[call_in_thread, call_in_task, call_in_uvloop_task], ids=["thread", "task", "uvloop"])
def call(request: pytest.FixtureRequest) -> Caller:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(Config(root=root, unix=tmp_path / "o.sock", tcp="127.0.0.1:0", writable=True)) as server:
        for address in server.addresses.values():
            with Client(address) as client:
                list(client.list())
        yield server


@pytest.fixture(params=["unix", "tcp"])
def address(server: Server, request: pytest.FixtureRequest) -> str:
    return server.addresses[request.param]
