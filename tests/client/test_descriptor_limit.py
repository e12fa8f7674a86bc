"""`open_many` in a process that has room for few descriptors: what fits comes, and the rest says why it does not."""

import asyncio
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import AsyncClient, Client, DescriptorLimit
from objmapper_server import Config, Server
from tests.support.server_process import ServerProcess

HOME = Path(__file__).parent.parent.parent
COUNT, ROOM = 40, 12
#: Run by a process of its own, whose limit it lowers.
PROGRAM = """
import asyncio, json, os, resource, sys
from objmapper_client import AsyncClient, Client, Object

address, kind, count, room = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
uris = [f"/{number}" for number in range(count)]
few = uris[:3]

def lower():
    used = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def outcomes(results):
    said = [
        type(found).__name__ if isinstance(found, Exception) else found.read().decode() for found in results
    ]
    for found in results:
        if isinstance(found, Object):
            found.close()
    return said

def in_thread():
    with Client(address, timeout=60) as client:
        outcomes(client.open_many(few))
        lower()
        return outcomes(client.open_many(uris)), outcomes(client.open_many(few))

async def in_task():
    async with AsyncClient(address, timeout=60) as client:
        outcomes(await client.open_many(few))
        lower()
        return outcomes(await client.open_many(uris)), outcomes(await client.open_many(few))

print(json.dumps(in_thread() if kind == "thread" else asyncio.run(in_task())))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root, unix = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run") / "o.sock"
    for number in range(COUNT):
        (root / str(number)).write_text(f"/{number}")
    with Server(Config(root=root, unix=unix, tcp="127.0.0.1:0")) as server:
        yield server


@pytest.mark.parametrize("kind", ["thread", "task"])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_what_fits_comes_and_the_rest_is_the_limit(server: Server, transport: str, kind: str) -> None:
    command = [sys.executable, "-c", PROGRAM, server.addresses[transport], kind, str(COUNT), str(ROOM)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    results, afterwards = json.loads(done.stdout)
    right = [number for number, found in enumerate(results) if found == f"/{number}"]
    assert len(right) + results.count("DescriptorLimit") == COUNT, results
    # The last message that the kernel cuts off may take some that would have fitted with it.
    assert 1 <= len(right) <= ROOM
    assert afterwards == ["/0", "/1", "/2"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server in a process of its own, which the limits of this one do not concern."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with ServerProcess(folder, folder.with_suffix(".sock"), "--writable") as server:
        yield server.addresses["unix"]


def test_a_pipe_is_stored_without_a_further_descriptor(elsewhere: str) -> None:
    async def store() -> bytes:
        async with AsyncClient(elsewhere, timeout=60) as client:
            await client.put("/piped", b"before")
            reading, writing = os.pipe()
            os.write(writing, b"from a pipe")
            os.close(writing)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            try:
                with io.FileIO(reading) as pipe:
                    await client.put("/piped", pipe)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return await client.read("/piped")

    assert asyncio.run(store()) == b"from a pipe"


def test_a_first_put_without_a_descriptor_for_its_module_is_the_limit(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(elsewhere) as client:
        client.put("/first", b"x")
        monkeypatch.delitem(sys.modules, "objmapper_client._operations.upload")
        monkeypatch.delattr("objmapper_client._operations.upload")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(DescriptorLimit, match="ulimit -n"):
                client.put("/first", b"y")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
