"""Whatever a server says, cuts off or keeps to itself: no call outlives its time limit, no wrong bytes are a success,
and no descriptor is left open."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objmapper_client import AsyncClient, Client, Object, ObjmapperError
from tests.support.eventually import eventually
from tests.support.random_server import CONTENTS, HELLO_KINDS, REPLY_KINDS, RandomServer, Reply, Script

TIMEOUT = 0.3
#: A machine that stalls is no finding; a call that waits for an answer that never comes is.
LIMIT = 15.0
Call = tuple[Any, ...]
CALLS: list[Call] = [
    ("read", "/small", {"mode": "copy"}),
    ("read", "/large", {"mode": "copy"}),
    ("read", "/small", {}),
    ("open", "/small", {}),
    ("open", "/large", {"mode": "splice"}),
    ("open_many", ["/small", "/large", "/small"], {}),
    ("open_many", ["/small", "/large"], {"mode": "copy"}),
    ("readinto", "/large", {"mode": "copy"}),
    ("stream", "/large", {"mode": "copy"}),
    ("stream", "/small", {}),
    ("stat", "/small", {}),
    ("list", "/", {}),
    ("put", "/small", b"x" * 1000, {}),
    ("put", "/large", bytes(300_000), {}),
    ("delete", "/small", {}),
]

scripts = st.lists(
    st.builds(
        Script,
        st.sampled_from(HELLO_KINDS),
        st.lists(
            st.builds(
                Reply,
                st.sampled_from(REPLY_KINDS),
                st.one_of(st.integers(0, 60), st.integers(0, 400_000)),
                st.sampled_from([0.0, 0.0, 0.0, 0.02]),
            ),
            max_size=4,
        ),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> RandomServer:
    return RandomServer(tmp_path_factory.mktemp("hostile"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def check(uri: str, found: Any) -> None:
    """An object, bytes, or an error in place of an object."""
    if isinstance(found, ObjmapperError):
        return
    content = found
    if isinstance(found, Object):
        content = found.read()
        found.close()
    assert bytes(content) == CONTENTS[uri]


def check_all(call: Call, found: Any, buffer: bytearray) -> None:
    name, uri = call[:2]
    if name == "open_many":
        assert len(found) == len(uri)
        for each, result in zip(uri, found, strict=True):
            check(each, result)
    elif name == "readinto":
        check(uri, buffer[:found])
    elif name == "stream":
        check(uri, b"".join(found))
    elif name in ("read", "open"):
        check(uri, found)


def arguments(call: Call) -> tuple[list[Any], dict[str, Any], bytearray]:
    _, *given, named = call
    buffer = bytearray(len(CONTENTS["/large"]))
    if call[0] == "readinto":
        given.append(buffer)
    return given, named, buffer


def call_in_thread(address: str, calls: list[Call]) -> None:
    with Client(address, timeout=TIMEOUT, connect_timeout=TIMEOUT, attempts=2) as client:
        for call in calls:
            given, named, buffer = arguments(call)
            began = time.monotonic()
            try:
                found = getattr(client, call[0])(*given, **named)
                check_all(call, list(found) if isinstance(found, Iterator) else found, buffer)
            except ObjmapperError:
                pass
            assert time.monotonic() - began < LIMIT, call


async def call_in_task(address: str, calls: list[Call]) -> None:
    async with AsyncClient(address, timeout=TIMEOUT, connect_timeout=TIMEOUT, attempts=2) as client:

        async def one(call: Call) -> None:
            given, named, buffer = arguments(call)
            try:
                found = getattr(client, call[0])(*given, **named)
                if isinstance(found, AsyncIterator):
                    found = [piece async for piece in found]
                else:
                    found = await found
                check_all(call, found, buffer)
            except ObjmapperError:
                pass

        # At the same time: they share a connection, and what one of them meets.
        await asyncio.wait_for(asyncio.gather(*map(one, calls)), LIMIT)


@pytest.mark.parametrize("kind", ["thread", "task"])
@settings(max_examples=60, derandomize=True, database=None)
@given(scripts=scripts, calls=st.lists(st.sampled_from(CALLS), min_size=1, max_size=3))
def test_a_hostile_server_costs_no_more_than_an_error(
    server: RandomServer, kind: str, scripts: list[Script], calls: list[Call]
) -> None:
    before = descriptors()
    with server.playing(scripts) as address:
        if kind == "thread":
            call_in_thread(address, calls)
        else:
            asyncio.run(call_in_task(address, calls))
    assert eventually(lambda: descriptors() <= before or (gc.collect() >= 0 and descriptors() <= before))
