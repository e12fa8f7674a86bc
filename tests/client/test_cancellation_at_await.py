"""A cancellation at every await of every verb: nothing is leaked, nothing goes on, and the client is usable."""

import asyncio
import gc
import os
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest
import uvloop

from objmapper_client import AsyncClient, Object
from objmapper_server import Config, Server
from tests.support.eventually import eventually

SMALL, LARGE = b"small" * 20, os.urandom(700_000)
Run = Callable[[Any], Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root, unix = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run") / "o.sock"
    (root / "small").write_bytes(SMALL)
    (root / "large").write_bytes(LARGE)
    with (root / "zeros").open("wb") as file:
        file.truncate(64 << 20)
    with Server(Config(root=root, unix=unix, tcp="127.0.0.1:0", writable=True)) as server:
        yield server


async def opens(client: AsyncClient, **named: Any) -> None:
    (await client.open("/small", **named)).close()


async def opens_many(client: AsyncClient, **named: Any) -> None:
    for found in await client.open_many(["/small", "/large", "/none"], **named):
        if isinstance(found, Object):
            found.close()


async def streams(client: AsyncClient, **named: Any) -> None:
    pieces = client.stream("/large", chunk_size=200_000, **named)
    try:
        async for _ in pieces:
            pass
    finally:
        await pieces.aclose()


async def lists(client: AsyncClient) -> None:
    pages = client.list("/", page_size=1)
    try:
        async for _ in pages:
            pass
    finally:
        await pages.aclose()


async def puts_and_deletes(client: AsyncClient) -> None:
    await client.put("/new", b"x" * 100)
    await client.delete("/new")


OPERATIONS: dict[str, Callable[[AsyncClient], Coroutine[Any, Any, object]]] = {
    "open": opens,
    "open, copied": lambda client: opens(client, mode="copy"),
    "open_many": opens_many,
    "open_many, copied": lambda client: opens_many(client, mode="copy"),
    "read": lambda client: client.read("/large"),
    "read, copied": lambda client: client.read("/large", mode="copy"),
    "readinto": lambda client: client.readinto("/large", bytearray(len(LARGE))),
    "readinto, copied": lambda client: client.readinto("/large", bytearray(len(LARGE)), mode="copy"),
    "stream": streams,
    "stream, copied": lambda client: streams(client, mode="copy"),
    "stat": lambda client: client.stat("/small"),
    "list": lists,
    "put and delete": puts_and_deletes,
    "put, large": lambda client: client.put("/new", LARGE),
    "put, a file": lambda client: client.put("/new", __file__),
    "put, pieces": lambda client: client.put("/new", iter([LARGE[:99], LARGE[99:]]), length=len(LARGE)),
}


class Steps:
    """Runs a coroutine, counts its awaits and cancels the task at one of them.

    Where `is_late`, it does so after what is awaited has come, and before the coroutine gets it.
    """

    def __init__(self, at: int, *, is_late: bool = False) -> None:
        self._at = at
        self._is_late = is_late
        self.seen = 0

    @types.coroutine
    def run(self, steps: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
        errors: list[BaseException] = []
        while True:
            try:
                # Kept nowhere else: an error that a local refers to, and whose traceback refers to the frame, is
                # garbage for the collector alone.
                future = steps.throw(errors.pop()) if errors else steps.send(None)
            except StopIteration:
                return
            self.seen += 1
            if self.seen == self._at:
                task = asyncio.current_task()
                assert task is not None
                if self._is_late and future is not None:
                    future.add_done_callback(lambda _, task=task: task.cancel())
                else:
                    task.cancel()
            try:
                yield future
            except BaseException as error:
                errors.append(error)
            del future


async def is_cancelled(steps: Steps, call: Coroutine[Any, Any, object]) -> bool:
    async def as_task() -> None:
        awaitable: Awaitable[None] = steps.run(call)
        await awaitable

    try:
        await asyncio.create_task(as_task())
    except asyncio.CancelledError:
        return True
    return False


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("state", ["warm", "cold"])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_cancellation_at_any_await_leaves_nothing(
    server: Server, transport: str, state: str, name: str, run: Run
) -> None:
    mode = "copy" if transport == "tcp" else "fdpass"
    operation = OPERATIONS[name]

    async def one(client: AsyncClient, steps: Steps) -> bool:
        if state == "warm":
            assert await client.read("/small", mode=mode) == SMALL
        was_cancelled = await is_cancelled(steps, operation(client))
        place = (name, steps._at, steps._is_late)
        assert await client.read("/small", mode=mode) == SMALL, place
        pool = client._pool
        assert pool is not None
        assert not pool._in_use, place
        assert pool._connecting is None, place
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()], place
        return was_cancelled

    async def use() -> None:
        async def fresh(steps: Steps) -> bool:
            async with AsyncClient(server.addresses[transport], timeout=60, max_connections=3) as client:
                return await one(client, steps)

        counter = Steps(0)
        assert not await fresh(counter)
        assert counter.seen
        cancelled = 0
        for is_late in (False, True):
            for at in range(1, counter.seen + 1):
                cancelled += await fresh(Steps(at, is_late=is_late))
        # Where the server was faster this time, there were fewer awaits.
        assert cancelled

    # The first threads and modules that it takes are not its leaks.
    run(use())
    before = descriptors()
    run(use())
    assert eventually(lambda: gc.collect() >= 0 and descriptors() <= before)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("mode", ["fdpass", "copy"])
def test_a_readinto_that_was_cancelled_leaves_the_buffer_alone(server: Server, mode: str, run: Run) -> None:
    async def use() -> None:
        async with AsyncClient(server.addresses["unix"], timeout=60) as client:
            cancelled = 0
            for _ in range(3):
                buffer = bytearray(b"\x55") * (64 << 20)
                task = asyncio.create_task(client.readinto("/zeros", buffer, mode=mode))
                while buffer[0] and not task.done():  # noqa: ASYNC110 - a thread writes it
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    cancelled += 1
                    buffer[:] = b"\xaa" * len(buffer)
                    await asyncio.sleep(0.2)
                    assert buffer.count(b"\xaa") == len(buffer)
            assert cancelled
            assert await client.read("/small", mode=mode) == SMALL

    run(use())
