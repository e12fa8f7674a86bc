"""A bucket on an S3 server, a proxy before it, and a server with that bucket as an origin."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import Client
from objmapper_server import Config, Server
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server

#: Bytes of the objects in the bucket: around the size of a part (8 MiB).
SIZES = {"small": 1000, "empty": 0, "part": 8 << 20, "parts": (24 << 20) + 17, "folder/nested é": 70_000}

Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bucket's directory: what is written there is an object."""
    bucket = tmp_path_factory.mktemp("s3") / "stores" / "bucket"
    generator = random.Random(15)
    for name, size in SIZES.items():
        path = bucket / "prod" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(size))
    return bucket


@pytest.fixture(scope="module")
def s3(bucket: Path) -> Iterator[S3Server]:
    with S3Server(bucket.parent) as s3:
        yield s3


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture
def serve(tmp_path: Path, s3: S3Server, proxy: FaultProxy) -> Iterator[Serve]:
    """Start servers with the bucket at /models; arguments are options of the origin, those of `settings` its own."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "local").write_bytes(b"local")
    with ExitStack() as stack:

        def started(settings: dict[str, Any] | None = None, **origin: Any) -> Server:
            mount = {"url": "s3://bucket/prod", **s3.options(proxy.url), **origin}
            values: dict[str, Any] = {
                "root": root,
                "unix": tmp_path / "o.sock",
                "admin": None,
                "origins": {"/models": mount},
                "disk_cache": tmp_path / "cache",
                "disk_cache_size": "256MiB",
            }
            return stack.enter_context(Server(Config(**{**values, **(settings or {})})))

        yield started


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.addresses["unix"]) as client:
        yield client
