"""A root, and a server that takes writes on it, in every model."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.models import MODELS
from tests.support.raw_client import COPY, OK, RawClient
from tests.support.raw_client_v2 import RawClientV2
from tests.support.unfinished_writes import unfinished_writes

#: Bytes of the objects that are there from the start.
SIZES = {"a": 1, "empty": 0, "small": 4096, "large": 300_000, "huge": 9_000_000}
#: Bytes of what is put: around a page and the server's input buffer.
CONTENT_SIZES = {"none": 0, "one": 1, "page": 4096, "input": 16 << 10, "over": (16 << 10) + 1, "megabytes": 5 << 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    generator = random.Random(2)
    for name, size in SIZES.items():
        (root / name).write_bytes(generator.randbytes(size))
    (root / "many").mkdir()
    for number in range(64):
        (root / "many" / f"{number:02}").write_bytes(b"%02d" % number)
    (root / "directory").mkdir()
    (root / "directory" / "nested é").write_bytes(b"nested")
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("a")
    return root


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> Concurrency:
    return Concurrency(request.param)


@pytest.fixture(scope="module")
def server(root: Path, model: Concurrency, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server a model, which takes writes and keeps nothing of them where it should not."""
    socket_path = tmp_path_factory.mktemp("run") / "o.sock"
    config = Config(root=root, unix=socket_path, tcp="127.0.0.1:0", concurrency_model=model, admin=None, writable=True)
    with Server(config) as server:
        for address in server.addresses.values():
            # Once it has answered, it has opened all that it needs: what is open after a test was opened by it.
            with RawClient(address) as v1:
                assert v1.ask(COPY, "/a").status == OK
        yield server
    assert not (root / ".objmapper").exists()


@pytest.fixture(params=["unix", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(server: Server, transport: str) -> str:
    return server.addresses[transport]


@pytest.fixture
def v2(address: str) -> Iterator[RawClientV2]:
    """A connection with all that there is."""
    with RawClientV2(address) as v2:
        yield v2


@pytest.fixture
def unix(server: Server) -> str:
    return server.addresses["unix"]


@pytest.fixture
def nothing_is_left_behind(root: Path) -> Iterator[None]:
    yield
    assert eventually(lambda: unfinished_writes(root) == []), unfinished_writes(root)


@pytest.fixture
def target(root: Path) -> Iterator[Path]:
    """Where a test may put."""
    yield root / "target"
    (root / "target").unlink(missing_ok=True)


@pytest.fixture(params=CONTENT_SIZES, scope="module")
def content(request: pytest.FixtureRequest) -> bytes:
    return random.Random(3).randbytes(CONTENT_SIZES[request.param])
