"""How tasks wait: for futures that an event loop's callbacks resolve. The only module that knows asyncio.

A shared connection has one callback for what comes, and one for what is to be sent: the requests of one turn of the
loop leave in one call.
"""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from objmapper_client._ask import Ask, Single, Verb
from objmapper_client._lines import answered
from objmapper_client._multiplex import Multiplex, NoRoom
from objmapper_client._pool import Pool
from objmapper_client._steps import Call, Progress, Pull, Steps, T, Wait
from objmapper_client._transport import CHUNK, CLOEXEC, CONTROL, NOTHING, Connection, broken, too_late
from objmapper_client.errors import ConnectionFailed, LocalProtocolError, ObjmapperError

running_loop = asyncio.get_running_loop


class Gate:
    """What a task waits at until another opens it."""

    __slots__ = ("_future", "_is_open", "_loop")

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


async def run(pool: Pool, verb: Verb[T]) -> T:
    """Runs a verb as part of this task; after the pool's timeout it is told that the time is up.

    A cancellation is thrown into its steps, so that they leave nothing behind.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + pool.timeout
    if isinstance(verb, Single):
        if await _answer(loop, pool, verb, deadline):
            return verb.result()
        verb = verb.otherwise(pool)
    return await _run(loop, pool, verb, deadline)


async def _run(loop: asyncio.AbstractEventLoop, pool: Pool, steps: Steps[T], deadline: float) -> T:
    try:
        wish = next(steps)
        while True:
            try:
                if isinstance(wish, Ask):
                    came: Any = await _answer(loop, pool, wish, deadline)
                elif isinstance(wish, Progress):
                    deadline = loop.time() + pool.timeout + wish.seconds
                    came = True
                else:
                    came = await _grant(loop, wish, deadline)
            except BaseException as error:
                wish = steps.throw(error)
            else:
                wish = steps.send(came)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


async def _answer(loop: asyncio.AbstractEventLoop, pool: Pool, ask: Ask, deadline: float) -> bool:
    """Has a request answered: at once where nothing stands in the way, which is what is fast here."""
    shared = pool.shared
    trouble: Exception | None = None
    if isinstance(shared, TaskMultiplex) and not pool.is_waited_for:
        try:
            shared.start(ask, pool.timeout, deadline)
            await shared.wait(ask)
            if ask.status == 0:
                pool.requests += 1
                return True
        except (NoRoom, ConnectionFailed) as error:
            trouble = error
        finally:
            if pool.is_waited_for:
                pool.answered()
    return await _run(loop, pool, answered(pool, ask, trouble), deadline)


async def _grant(loop: asyncio.AbstractEventLoop, wish: object, deadline: float) -> Any:
    match wish:
        case Wait():
            return await _wait(loop, wish, deadline)
        case Gate():
            return await wish.wait(loop, deadline - loop.time())
        case list():
            return await _exchange_all(wish, deadline)
        case Call():
            return await loop.run_in_executor(None, wish.function)
        case Pull(source=AsyncIterator() as pieces):
            return await anext(pieces, None)
        case Pull(source=Iterator()):
            return await _pull(loop, wish)
    raise AssertionError(wish)


async def _pull(loop: asyncio.AbstractEventLoop, pull: Pull) -> Any:
    """The next piece of an iterator. A file that may wait is read in a thread, or once it has something."""
    assert isinstance(pull.source, Iterator)
    if pull.may_wait and not (pull.descriptor >= 0 and await _has_come(loop, pull.descriptor)):
        return await loop.run_in_executor(None, next, pull.source, None)
    return next(pull.source, None)


async def _has_come(loop: asyncio.AbstractEventLoop, descriptor: int) -> bool:
    """Waits until a descriptor is readable. False where the event loop cannot wait for it."""
    ready: asyncio.Future[bool] = loop.create_future()
    # A copy: the program may have a callback of its own for the number.
    own = os.dup(descriptor)
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


async def _exchange_all(asks: list[Ask], deadline: float) -> None:
    """Sends requests of one connection ahead, and waits for all. Errors are left with those that they concern."""
    multiplex: TaskMultiplex = asks[0].multiplex
    left = deadline - asyncio.get_running_loop().time()
    for ask in asks:
        try:
            multiplex.start(ask, left, deadline)
        except (NoRoom, LocalProtocolError) as error:
            ask.failure, ask.is_done = error, True
    for ask in asks:
        try:
            if ask.failure is None:
                await multiplex.wait(ask)
        except ObjmapperError as error:
            ask.failure = error


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
        try:
            return await asyncio.wait_for(loop.getaddrinfo(wait.host, wait.port, type=socket.SOCK_STREAM), left)
        except TimeoutError:
            return False
        except OSError as error:
            return error
    ready: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(left, _resolve, ready, False)
    add, remove = (loop.add_writer, loop.remove_writer) if wait.writable else (loop.add_reader, loop.remove_reader)
    add(wait.descriptor, _resolve, ready, True)
    try:
        return await ready
    finally:
        timer.cancel()
        remove(wait.descriptor)


def _resolve(future: "asyncio.Future[bool]", value: bool) -> None:
    if not future.done():
        future.set_result(value)


class Tasks:
    """What a pool of connections needs to know of those who wait."""

    def __init__(self) -> None:
        #: Nothing of the pool is of use in another one.
        self.loop: object = running_loop()

    def gate(self) -> Gate:
        """What one waits at until another opens it."""
        return Gate()

    def share(self, connection: Connection, timeout: float, note_room: Callable[[], None]) -> "TaskMultiplex":
        """Has requests share a connection. `note_room` is called where an answer came that nobody wanted."""
        return TaskMultiplex(connection, timeout, note_room)

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)
        return bool(poll.poll(0))


class TaskMultiplex(Multiplex):
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

    def start(self, ask: Ask, seconds: float, deadline: float) -> None:
        """Has a request sent at the end of this turn of the loop. Raises NoRoom, LocalProtocolError."""
        loop = self._loop
        self.queue(ask, seconds)
        ask.deadline = deadline
        ask.gate = loop.create_future()
        if not self._will_send:
            self._will_send = True
            loop.call_soon(self._send)
        timer = self._timer
        if timer is None or deadline < timer.when():
            if timer is not None:
                timer.cancel()
            self._timer = loop.call_at(deadline, self._expire)

    async def wait(self, ask: Ask) -> None:
        """Waits for the answer of a request that was started."""
        try:
            await ask.gate
        except BaseException:
            ask.discard()
            raise
        if ask.failure is not None:
            raise ask.failure

    def _send(self) -> None:
        self._will_send = False
        try:
            is_full = not self.flush()
        except ConnectionFailed as error:
            self._wake(self.fail(error))
            return
        if is_full != self._is_full and not self.is_closed:
            self._is_full = is_full
            if is_full:
                self._loop.add_writer(self._descriptor, self._send)
            else:
                self._loop.remove_writer(self._descriptor)

    def _read(self) -> None:
        ancillary, flags = NOTHING
        sock = self.connection.socket
        try:
            if self._is_unix:
                data, ancillary, flags, _ = sock.recvmsg(CHUNK, CONTROL, CLOEXEC)
            else:
                data = sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._wake(self.fail(broken(self.connection.address, error)))
            return
        before = len(self.under_way)
        finished = self.arrived(data, ancillary, flags)
        self._wake(finished)
        for _ in range(before - len(self.under_way) - len(finished)):
            self._note_room()

    def _wake(self, finished: list[Ask]) -> None:
        for ask in finished:
            if not ask.gate.done():
                ask.gate.set_result(None)
            else:
                ask.discard()

    def _expire(self) -> None:
        """Fails those whose time is up; their answers, if any come, are thrown away. One timer serves all."""
        self._timer = None
        now = self._loop.time() + 1e-3
        soonest: float | None = None
        for ask in self.unanswered():
            if ask.is_abandoned:
                continue
            if ask.deadline <= now:
                ask.is_abandoned = ask.is_late = True
                ask.failure = too_late(self.connection.address)
                _resolve(ask.gate, True)
            elif soonest is None or ask.deadline < soonest:
                soonest = ask.deadline
        if soonest is not None:
            self._timer = self._loop.call_at(soonest, self._expire)

    def lay_down(self) -> Connection | None:
        """Gives the connection away, if nobody waits for an answer; closes it where one is still to come."""
        connection = super().lay_down()
        if connection is not None and not self.is_closed:
            self._leave_loop()
        return connection

    def close(self) -> None:
        """Closes the connection, whatever is under way."""
        if not self.is_closed:
            self._leave_loop()
        super().close()

    def _leave_loop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
            if self._is_full:
                self._loop.remove_writer(self._descriptor)
