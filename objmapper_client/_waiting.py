"""The two ways to wait: for a thread, and under asyncio. The only module that knows either."""

import select
import socket
import struct
import threading
import time
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import TYPE_CHECKING, Any

from objmapper_client._transport import Connection, Steps, T, Wait
from objmapper_client.errors import RequestTimeout

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterator

_NO_PLACE = "all of the client's connections are in use: wait longer, or allow more (max_connections)"


def run(steps: Steps[T], timeout: float) -> T:
    """Runs the steps in this thread; after `timeout` seconds they are told that the time is up."""
    deadline = time.monotonic() + timeout
    try:
        wait = next(steps)
        while True:
            wait = steps.send(_wait(wait, deadline))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def _wait(wait: Wait, deadline: float) -> Any:
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    if wait.host is not None:
        return _look_up(wait.host, wait.port)
    if wait.seconds is not None:
        if wait.seconds:
            time.sleep(min(left, wait.seconds))
        return True
    limit = left if wait.limit is None else min(left, wait.limit)
    # Rounded up: waking too early would be one more round.
    return bool(_poll(wait).poll(limit * 1000 + 1)) or (None if limit < left else False)


def _look_up(host: str, port: int) -> Any:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error


def sleep_in_socket(connection: Connection, timeout: float) -> None:
    """Makes a thread sleep in the call that reads, `timeout` seconds at most, rather than in a poll before it.

    One system call and one wake-up less a request: 20 µs of 50.
    """
    connection.socket.setblocking(True)
    seconds = max(timeout, 1e-3)
    limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.is_blocking = True


def is_readable(wait: Wait) -> bool:
    """Whether there is something to read at this moment."""
    return bool(_poll(wait).poll(0))


def _poll(wait: Wait) -> Any:
    if wait.poll is None:
        wait.poll = select.poll()
        wait.poll.register(wait.descriptor, select.POLLOUT if wait.writable else select.POLLIN)
    return wait.poll


class Places:
    """So many exchanges at once, for threads; others wait."""

    def __init__(self, count: int) -> None:
        self._semaphore = threading.BoundedSemaphore(count)

    def place(self, timeout: float) -> AbstractContextManager[None]:
        """A place, once there is one. Raises RequestTimeout after `timeout` seconds."""
        return self._place(timeout)

    @contextmanager
    def _place(self, timeout: float) -> "Iterator[None]":
        if not self._semaphore.acquire(timeout=timeout):
            raise RequestTimeout(_NO_PLACE)
        try:
            yield
        finally:
            self._semaphore.release()


async def run_async(steps: Steps[T], timeout: float) -> T:
    """Runs the steps as part of this task. A cancellation closes them, and with them their connection."""
    import asyncio

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    try:
        wait = next(steps)
        while True:
            wait = steps.send(await _wait_async(loop, wait, deadline))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


async def _wait_async(loop: "asyncio.AbstractEventLoop", wait: Wait, deadline: float) -> Any:
    import asyncio

    left = deadline - loop.time()
    if left <= 0:
        return False
    if wait.seconds is not None:
        await asyncio.sleep(min(left, wait.seconds))
        return True
    if wait.host is not None:
        try:
            return await asyncio.wait_for(loop.getaddrinfo(wait.host, wait.port, type=socket.SOCK_STREAM), left)
        except TimeoutError:
            return False
        except OSError as error:
            return error
    ready: asyncio.Future[bool | None] = loop.create_future()
    limit = left if wait.limit is None else min(left, wait.limit)
    timer = loop.call_later(limit, _resolve, ready, None if limit < left else False)
    add, remove = (loop.add_writer, loop.remove_writer) if wait.writable else (loop.add_reader, loop.remove_reader)
    add(wait.descriptor, _resolve, ready, True)
    try:
        return await ready
    finally:
        timer.cancel()
        remove(wait.descriptor)


def _resolve(future: "asyncio.Future[bool | None]", value: bool | None) -> None:
    if not future.done():
        future.set_result(value)


class AsyncPlaces:
    """So many exchanges at once, for tasks; others wait."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._semaphore: Any = None
        self._loop: Any = None

    def place(self, timeout: float) -> AbstractAsyncContextManager[None]:
        """A place, once there is one. Raises RequestTimeout after `timeout` seconds."""
        return self._place(timeout)

    @asynccontextmanager
    async def _place(self, timeout: float) -> "AsyncIterator[None]":
        import asyncio

        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._semaphore = loop, asyncio.BoundedSemaphore(self._count)
        semaphore = self._semaphore
        try:
            async with asyncio.timeout(timeout):
                await semaphore.acquire()
        except TimeoutError:
            raise RequestTimeout(_NO_PLACE) from None
        try:
            yield
        finally:
            semaphore.release()
