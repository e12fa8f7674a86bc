"""How tasks wait: for futures that an event loop's callbacks resolve. The only module that knows asyncio.

A shared connection has one callback for what comes, and one for what is to be sent: the requests of one turn of the
loop leave in one call.
"""

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.dispatch import send_request, with_server_error
from objmapper_client._connection.multiplexer import Multiplexer, PipelineFull
from objmapper_client._connection.pending_request import PendingRequest, SimpleRequest, Verb
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.resolver import look_up
from objmapper_client._connection.socket_io import interrupted_error, timeout_error
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

# Requests that are cancelled at once may fill a connection before the server gets to run: this long it has, in seconds.
_HANG_TIMEOUT = 1.0
running_loop = asyncio.get_running_loop


class AsyncioWaiter:
    """What a task waits at until another opens it."""

    __slots__ = ("__weakref__", "_future", "_is_open", "_loop")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[bool] | None = None
        self._is_open = False

    def open(self) -> None:
        """Lets the one who waits go on. Can be called twice."""
        self._is_open = True
        if self._future is not None:
            _resolve(self._future, True)

    async def wait(self, loop: asyncio.AbstractEventLoop, seconds: float) -> bool:
        """Whether it was opened in time."""
        if self._is_open:
            return True
        self._future = loop.create_future()
        timer = loop.call_later(seconds, _resolve, self._future, False)
        try:
            return await self._future
        finally:
            timer.cancel()


async def run(pool: Pool, operation: Verb[T]) -> T:
    """Runs a verb as part of this task; after the pool's timeout RequestTimeout is raised in it.

    A cancellation is thrown into its steps, so that they leave nothing behind.
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


async def _run(loop: asyncio.AbstractEventLoop, pool: Pool, steps: Effects[T], deadline: float) -> T:
    results: list[T] = []
    steps = collect_result(steps, results)
    try:
        effect = next(steps)
        while effect is not None:
            try:
                if isinstance(effect, PendingRequest):
                    came: Any = await _await_response(loop, pool, effect, deadline)
                elif isinstance(effect, ResetDeadline):
                    deadline = loop.time() + pool.timeout + effect.seconds
                    came = True
                elif isinstance(effect, TimeLeft):
                    came = deadline - loop.time()
                elif isinstance(effect, NextChunk | RunBlocking | Notify):
                    began = loop.time()
                    came = await _perform(loop, effect, deadline)
                    deadline += loop.time() - began
                else:
                    came = await _perform(loop, effect, deadline)
            except BaseException as error:
                if isinstance(effect, PendingRequest):
                    effect.discard()
                effect = steps.throw(error)
            else:
                effect = steps.send(came)
        return results[0]
    finally:
        steps.close()


async def _await_response(
    loop: asyncio.AbstractEventLoop, pool: Pool, pending: PendingRequest, deadline: float, *, is_fresh: bool = False
) -> bool:
    """Has a request answered: at once where nothing stands in the way, which is what is fast here.

    Where `is_fresh`, all of its time is left.
    """
    shared = pool.shared
    first_error: Exception | None = None
    if isinstance(shared, AsyncioMultiplexer) and not pool.is_waited_for:
        try:
            shared.start(pending, pool.timeout if is_fresh else deadline - loop.time(), deadline)
            await shared.wait(pending)
            if pending.status == 0:
                pool.requests += 1
                return True
        except (PipelineFull, ConnectionFailed) as error:
            first_error = error
        except RequestTimeout as error:
            raise with_server_error(pending, error) from error
        finally:
            if pool.is_waited_for:
                pool.answered()
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


async def _next_chunk(loop: asyncio.AbstractEventLoop, pull: NextChunk) -> Any:
    """The next piece of an iterator. A file that may wait is read in a thread, or once it has something."""
    assert isinstance(pull.source, Iterator)
    if pull.may_wait and not (pull.descriptor >= 0 and await _has_come(loop, pull.descriptor)):
        source = pull.source
        return await _in_thread(loop, lambda: next(source, None))
    return next(pull.source, None)


async def _has_come(loop: asyncio.AbstractEventLoop, descriptor: int) -> bool:
    """Waits until a descriptor is readable. False where the event loop cannot wait for it."""
    ready: asyncio.Future[bool] = loop.create_future()
    # A copy: the program may have a callback of its own for the number.
    try:
        own = os.dup(descriptor)
    except OSError:
        # This process has no descriptor left.
        return False
    try:
        loop.add_reader(own, _resolve, ready, True)
        try:
            return await ready
        finally:
            loop.remove_reader(own)
    except OSError:
        return False
    finally:
        os.close(own)


class _ThreadCall:
    """A function for another thread, which either has not begun or is waited for."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._is_begun = self._is_cancelled = False

    def __call__(self) -> object:
        with self._lock:
            if self._is_cancelled:
                return None
            self._is_begun = True
        return self._function()

    def cancel(self) -> bool:
        """Whether it had not begun, and never will."""
        with self._lock:
            self._is_cancelled = True
            return not self._is_begun


async def _in_thread(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> object:
    """Has a thread do it. Where this is cancelled the thread is waited for: it uses what belongs to the caller."""
    job = _ThreadCall(function)
    future = loop.run_in_executor(None, job)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not job.cancel():
            while not future.done():
                # Cancelled again, or cancelled by the end of the loop: the thread is still at work.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            made: Any = None if future.cancelled() or future.exception() is not None else future.result()
            if hasattr(made, "close"):
                made.close()
        raise


async def _exchange_all(pendings: list[PendingRequest], deadline: float) -> None:
    """Sends requests of one connection ahead, and waits for all. Errors are left with those that they concern."""
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
    if wait.most is not None:
        left = min(left, wait.most)
    if left <= 0:
        return False
    if wait.seconds is not None:
        await asyncio.sleep(min(left, wait.seconds))
        return True
    if wait.host is not None:
        return await _look_up(loop, wait.host, wait.port, left)
    ready: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(left, _resolve, ready, False)
    add, remove = (loop.add_writer, loop.remove_writer) if wait.writable else (loop.add_reader, loop.remove_reader)
    add(wait.descriptor, _resolve, ready, True)
    try:
        return await ready
    finally:
        timer.cancel()
        remove(wait.descriptor)


async def _look_up(loop: asyncio.AbstractEventLoop, host: str, port: int, seconds: float) -> Any:
    lookup = look_up(host, port)
    known: asyncio.Future[bool] = loop.create_future()

    def tell() -> None:
        # The loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, known, True)

    timer = loop.call_later(seconds, _resolve, known, False)
    lookup.when_done(tell)
    try:
        return lookup.result(0) if await known else False
    finally:
        timer.cancel()


def _resolve(future: "asyncio.Future[bool]", value: bool) -> None:
    if not future.done():
        future.set_result(value)


class AsyncioRuntime:
    """What a pool of connections needs to know of those who wait."""

    def __init__(self) -> None:
        #: Nothing of the pool is of use in another one.
        self.loop: object = running_loop()

    def gate(self) -> AsyncioWaiter:
        """What one waits at until another opens it."""
        return AsyncioWaiter()

    def share(
        self,
        connection: Connection,
        timeout: float,
        note_room: Callable[[], None],
        lock: Any,  # noqa: ARG002 - tasks of one loop need none
    ) -> "AsyncioMultiplexer":
        """Has requests share a connection. `note_room` is called where the answer to an abandoned request came."""
        return AsyncioMultiplexer(connection, timeout, note_room)

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)
        return bool(poll.poll(0))


class AsyncioMultiplexer(Multiplexer):
    """A connection that tasks of one event loop share."""

    def __init__(self, connection: Connection, timeout: float, note_room: Callable[[], None]) -> None:
        super().__init__(connection, contextlib.nullcontext(), timeout)
        self._note_room = note_room
        self._loop = asyncio.get_running_loop()
        self._descriptor = connection.socket.fileno()
        self._is_unix = connection.is_unix
        self._will_send = False
        self._is_full = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._descriptor, self._read)

    def start(self, pending: PendingRequest, seconds: float, deadline: float) -> None:
        """Has a request sent at the end of this turn of the loop. Raises NoRoom, LocalProtocolError."""
        loop = self._loop
        if not pending.idempotent:
            self.look()
        self.queue(pending, seconds)
        pending.deadline = deadline
        pending.gate = loop.create_future()
        if not self._will_send:
            self._will_send = True
            loop.call_soon(self._send)
        timer = self._timer
        if timer is None or deadline < timer.when():
            if timer is not None:
                timer.cancel()
            self._timer = loop.call_at(deadline, self._expire)

    async def wait(self, pending: PendingRequest) -> None:
        """Waits for the answer of a request that was started."""
        try:
            await pending.gate
        except BaseException:
            pending.discard()
            raise
        if pending.failure is not None:
            raise pending.failure

    def _send(self) -> None:
        self._will_send = False
        try:
            is_full = not self.flush()
        except ConnectionFailed as error:
            self.on_finished(self.fail(error))
            return
        if is_full != self._is_full and not self.is_closed:
            self._is_full = is_full
            if is_full:
                self._loop.add_writer(self._descriptor, self._send)
            else:
                self._loop.remove_writer(self._descriptor)

    def _read(self) -> None:
        before = len(self.under_way)
        try:
            self.look()
        except BaseException:
            # Out of a signal handler.
            self.on_finished(self.fail(interrupted_error(self.connection.address)))
            raise
        if len(self.under_way) < before:
            self._note_room()

    def on_finished(self, finished: list[PendingRequest]) -> None:
        """Lets those go on that waited for these requests."""
        for pending in finished:
            if not pending.gate.done():
                pending.gate.set_result(None)
            else:
                pending.discard()

    def _expire(self) -> None:
        """Fails those whose time is up; their answers, if any come, are thrown away. One timer serves all."""
        self._timer = None
        now = self._loop.time() + 1e-3
        soonest: float | None = None
        late: PendingRequest | None = None
        for pending in self.unanswered():
            if pending.is_abandoned:
                continue
            if pending.deadline <= now:
                pending.is_abandoned = pending.is_late = True
                pending.failure = timeout_error(self.connection.address)
                _resolve(pending.gate, True)
                late = pending
            elif soonest is None or pending.deadline < soonest:
                soonest = pending.deadline
        if late is not None:
            self.suspect_hang(late)
        if soonest is not None and not self.is_closed:
            self._timer = self._loop.call_at(soonest, self._expire)

    def is_stuck(self) -> bool:
        """Whether nothing has come since the oldest request was sent, which is some time ago."""
        if not super().is_stuck():
            return False
        began = self.unanswered()[0].deadline - self._timeout
        return self._loop.time() > began + min(_HANG_TIMEOUT, self._timeout / 2)

    def detach_if_idle(self) -> Connection | None:
        """Gives the connection away, if no request waits for an answer; closes it where one is still to come."""
        connection = super().detach_if_idle()
        if connection is not None and not self.is_closed:
            self._leave_loop()
        return connection

    def close(self, taken: frozenset[int] = frozenset()) -> None:
        """Closes the connection, whatever is under way."""
        if not self.is_closed:
            self._leave_loop()
        super().close(taken)

    def _leave_loop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
            if self._is_full:
                self._loop.remove_writer(self._descriptor)
