"""The runtime for asyncio: performs effects with futures that the event loop's callbacks resolve."""

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.multiplexer import PipelineFull
from objmapper_client._connection.pending_request import PendingRequest, Runnable, SimpleRequest
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.request_runner import send_request, to_outcome_error
from objmapper_client._connection.resolver import look_up
from objmapper_client._runtime.asyncio_multiplexer import AsyncioMultiplexer, resolve_future
from objmapper_client._runtime.effects import (
    Effects,
    NextChunk,
    Notify,
    ResetDeadline,
    RunBlocking,
    T,
    TimeLeft,
    Wait,
    collect_result,
)
from objmapper_client.errors import ConnectionFailed, LocalProtocolError, ObjmapperError, RequestTimeout

running_loop = asyncio.get_running_loop


class AsyncioWaiter:
    """One task waits on it until another task calls `wake`."""

    __slots__ = ("__weakref__", "_future", "_is_woken", "_loop")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[bool] | None = None
        self._is_woken = False

    def wake(self) -> None:
        """Wakes the waiting task. May be called twice."""
        self._is_woken = True
        if self._future is not None:
            resolve_future(self._future, True)

    async def wait(self, loop: asyncio.AbstractEventLoop, seconds: float) -> bool:
        """Waits for `wake`. Returns False after `seconds`."""
        if self._is_woken:
            return True
        self._future = loop.create_future()
        timer = loop.call_later(seconds, resolve_future, self._future, False)
        try:
            return await self._future
        finally:
            timer.cancel()


async def run(pool: Pool, operation: Runnable[T]) -> T:
    """Runs an operation in this task. Raises RequestTimeout after the pool's timeout.

    A cancellation is thrown into the operation's generator, which then frees its connection and descriptors.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + pool.timeout
    try:
        if not isinstance(operation, SimpleRequest):
            return await _run(loop, pool, operation, deadline)
        if await _await_response(loop, pool, operation, deadline, is_fresh=True):
            return operation.result()
        return await _run(loop, pool, operation.fallback_v1(pool), deadline)
    except BaseException:
        if isinstance(operation, SimpleRequest):
            operation.discard()
        pool.recover()
        raise


async def _run(loop: asyncio.AbstractEventLoop, pool: Pool, effects: Effects[T], deadline: float) -> T:
    results: list[T] = []
    effects = collect_result(effects, results)
    try:
        effect = next(effects)
        while effect is not None:
            try:
                if isinstance(effect, PendingRequest):
                    result: Any = await _await_response(loop, pool, effect, deadline)
                elif isinstance(effect, ResetDeadline):
                    deadline = loop.time() + pool.timeout + effect.seconds
                    result = True
                elif isinstance(effect, TimeLeft):
                    result = deadline - loop.time()
                elif isinstance(effect, NextChunk | RunBlocking | Notify):
                    started = loop.time()
                    result = await _perform(loop, effect, deadline)
                    deadline += loop.time() - started
                else:
                    result = await _perform(loop, effect, deadline)
            except BaseException as error:
                if isinstance(effect, PendingRequest):
                    effect.discard()
                effect = effects.throw(error)
            else:
                effect = effects.send(result)
        return results[0]
    finally:
        effects.close()


async def _await_response(
    loop: asyncio.AbstractEventLoop, pool: Pool, pending: PendingRequest, deadline: float, *, is_fresh: bool = False
) -> bool:
    """Sends a request and waits for its response; without the retry machinery if the shared connection takes it.

    `is_fresh`: the whole time limit is left.
    """
    shared = pool.shared
    first_error: Exception | None = None
    if isinstance(shared, AsyncioMultiplexer) and not pool.has_waiters:
        try:
            shared.start(pending, pool.timeout if is_fresh else deadline - loop.time(), deadline)
            await shared.wait(pending)
            if pending.status == 0:
                pool.requests += 1
                return True
        except (PipelineFull, ConnectionFailed) as error:
            first_error = error
        except RequestTimeout as error:
            raise to_outcome_error(pending, error) from error
        finally:
            if pool.has_waiters:
                pool.on_request_done()
    return await _run(loop, pool, send_request(pool, pending, first_error), deadline)


async def _perform(loop: asyncio.AbstractEventLoop, effect: object, deadline: float) -> Any:
    match effect:
        case Wait():
            return await _wait(loop, effect, deadline)
        case AsyncioWaiter():
            return await effect.wait(loop, deadline - loop.time())
        case list():
            return await _exchange_all(effect, deadline)
        case RunBlocking():
            return await _in_thread(loop, effect.function)
        case Notify():
            return effect.function()
        case NextChunk(source=AsyncIterator() as pieces):
            return await anext(pieces, None)
        case NextChunk(source=Iterator()):
            return await _next_chunk(loop, effect)
    raise AssertionError(effect)


async def _next_chunk(loop: asyncio.AbstractEventLoop, chunk: NextChunk) -> Any:
    """The next chunk of an iterator. Reads a file that may block once it is readable, or in a thread."""
    assert isinstance(chunk.source, Iterator)
    if chunk.may_wait and not (chunk.descriptor >= 0 and await _wait_readable(loop, chunk.descriptor)):
        source = chunk.source
        return await _in_thread(loop, lambda: next(source, None))
    return next(chunk.source, None)


async def _wait_readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> bool:
    """Waits until a descriptor is readable. Returns False if the event loop cannot wait for it."""
    ready: asyncio.Future[bool] = loop.create_future()
    # A duplicate: the program may have registered a callback for the original descriptor.
    try:
        own = os.dup(descriptor)
    except OSError:
        # The process is at its descriptor limit.
        return False
    try:
        loop.add_reader(own, resolve_future, ready, True)
        try:
            return await ready
        finally:
            loop.remove_reader(own)
    except OSError:
        return False
    finally:
        os.close(own)


class _ThreadCall:
    """A function call in another thread that can be cancelled until it starts."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._is_started = self._is_cancelled = False

    def __call__(self) -> object:
        with self._lock:
            if self._is_cancelled:
                return None
            self._is_started = True
        return self._function()

    def cancel(self) -> bool:
        """Keeps the function from starting. Returns False if it has started."""
        with self._lock:
            self._is_cancelled = True
            return not self._is_started


async def _in_thread(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> object:
    """Calls a function in a thread. Waits for the thread even when cancelled, because it uses the caller's objects."""
    job = _ThreadCall(function)
    future = loop.run_in_executor(None, job)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not job.cancel():
            while not future.done():
                # Cancelled again, or by the end of the loop, while the thread still runs.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            result: Any = None if future.cancelled() or future.exception() is not None else future.result()
            if hasattr(result, "close"):
                result.close()
        raise


async def _exchange_all(pendings: list[PendingRequest], deadline: float) -> None:
    """Pipelines requests on one connection and waits for all. Stores each error in its request's `failure`."""
    multiplexer: AsyncioMultiplexer = pendings[0].multiplexer
    left = deadline - asyncio.get_running_loop().time()
    for pending in pendings:
        try:
            multiplexer.start(pending, left, deadline)
        except (PipelineFull, LocalProtocolError) as error:
            pending.failure, pending.is_done = error, True
    for pending in pendings:
        try:
            if pending.failure is None:
                await multiplexer.wait(pending)
        except ObjmapperError as error:
            pending.failure = error


async def _wait(loop: asyncio.AbstractEventLoop, wait: Wait, deadline: float) -> Any:
    left = deadline - loop.time()
    if wait.timeout is not None:
        left = min(left, wait.timeout)
    if left <= 0:
        return False
    if wait.seconds is not None:
        await asyncio.sleep(min(left, wait.seconds))
        return True
    if wait.host is not None:
        return await _look_up(loop, wait.host, wait.port, left)
    ready: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(left, resolve_future, ready, False)
    add, remove = (loop.add_writer, loop.remove_writer) if wait.writable else (loop.add_reader, loop.remove_reader)
    add(wait.descriptor, resolve_future, ready, True)
    try:
        return await ready
    finally:
        timer.cancel()
        remove(wait.descriptor)


async def _look_up(loop: asyncio.AbstractEventLoop, host: str, port: int, seconds: float) -> Any:
    lookup = look_up(host, port)
    resolved: asyncio.Future[bool] = loop.create_future()

    def notify() -> None:
        # The loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(resolve_future, resolved, True)

    timer = loop.call_later(seconds, resolve_future, resolved, False)
    lookup.when_done(notify)
    try:
        return lookup.result(0) if await resolved else False
    finally:
        timer.cancel()


class AsyncioRuntime:
    """Implements `pool.Runtime` for the tasks of one event loop."""

    def __init__(self) -> None:
        #: The pool belongs to this loop; its connections cannot be used in another.
        self.loop: object = running_loop()

    def new_waiter(self) -> AsyncioWaiter:
        """Returns a waiter for the calling task."""
        return AsyncioWaiter()

    def share(
        self,
        connection: Connection,
        timeout: float,
        notify_capacity: Callable[[], None],
        lock: Any,  # noqa: ARG002 - tasks of one loop need none
    ) -> "AsyncioMultiplexer":
        """Returns a multiplexer for the connection, which calls `notify_capacity` when a response frees a place."""
        return AsyncioMultiplexer(connection, timeout, notify_capacity)

    def is_readable(self, connection: Connection) -> bool:
        """Whether the socket has bytes to read now."""
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)
        return bool(poll.poll(0))
