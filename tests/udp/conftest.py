"""A server over UDP with objects of every size, and the two ways to read one of them."""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import AsyncClient, Client
from objmapper_server import Config, Server

SIZES = {"empty": 0, "a": 1, "small": 1000, "medium": 200_000, "large": 1 << 20, "huge": 16 << 20}


Read = Callable[..., bytes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    generator = random.Random(1)
    for name, size in SIZES.items():
        (root / name).write_bytes(generator.randbytes(size))
    (root / "directory").mkdir()
    with (root / "too-large").open("wb") as file:
        file.truncate((64 << 20) + 1)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with Server(Config(root=root, udp="127.0.0.1:0")) as server:
        with Client(server.addresses["udp"]) as client:
            client.read("/a")
        yield server


@pytest.fixture(scope="module")
def address(server: Server) -> str:
    return server.addresses["udp"]


def read_sync(address: str, uri: str, **options: Any) -> bytes:
    with Client(address, **options) as client:
        return client.read(uri)


def read_async(address: str, uri: str, **options: Any) -> bytes:
    async def read() -> bytes:
        async with AsyncClient(address, **options) as client:
            return await client.read(uri)

    return asyncio.run(read())


@pytest.fixture(params=[read_sync, read_async], ids=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param  # type: ignore[no-any-return]
