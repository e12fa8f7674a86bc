"""The shared connection of the tasks of one event loop.

It has one reader callback and one writer callback. All requests of one loop iteration are sent in one system call.
"""

import asyncio
import contextlib
from collections.abc import Callable

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.multiplexer import Multiplexer
from objmapper_client._connection.pending_request import PendingRequest
from objmapper_client._connection.socket_io import interrupted_error, timeout_error
from objmapper_client.errors import ConnectionFailed

# Seconds that a server has to respond before a connection full of cancelled requests counts as stuck.
_HANG_TIMEOUT = 1.0


def resolve_future(future: "asyncio.Future[bool]", value: bool) -> None:
    """Sets the result of a future that has none: a timer and an event may come in one loop iteration."""
    if not future.done():
        future.set_result(value)


class AsyncioMultiplexer(Multiplexer):
    """A connection that tasks of one event loop share."""

    def __init__(self, connection: Connection, timeout: float, notify_capacity: Callable[[], None]) -> None:
        super().__init__(connection, contextlib.nullcontext(), timeout)
        self._notify_capacity = notify_capacity
        self._loop = asyncio.get_running_loop()
        self._descriptor = connection.socket.fileno()
        self._is_unix = connection.is_unix
        self._is_send_scheduled = False
        self._is_writer_registered = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._descriptor, self._read)

    def start(self, pending: PendingRequest, seconds: float, deadline: float) -> None:
        """Queues a request, to be sent at the end of this loop iteration. Raises PipelineFull, LocalProtocolError."""
        loop = self._loop
        if not pending.idempotent:
            self.read_available()
        self.queue(pending, seconds)
        pending.deadline = deadline
        pending.waiter = loop.create_future()
        if not self._is_send_scheduled:
            self._is_send_scheduled = True
            loop.call_soon(self._send)
        timer = self._timer
        if timer is None or deadline < timer.when():
            if timer is not None:
                timer.cancel()
            self._timer = loop.call_at(deadline, self._expire)

    async def wait(self, pending: PendingRequest) -> None:
        """Waits for the response to a request that `start` has queued."""
        try:
            await pending.waiter
        except BaseException:
            pending.discard()
            raise
        if pending.failure is not None:
            raise pending.failure

    def _send(self) -> None:
        self._is_send_scheduled = False
        try:
            is_blocked = not self.flush()
        except ConnectionFailed as error:
            self.on_finished(self.fail(error))
            return
        if is_blocked != self._is_writer_registered and not self.is_closed:
            self._is_writer_registered = is_blocked
            if is_blocked:
                self._loop.add_writer(self._descriptor, self._send)
            else:
                self._loop.remove_writer(self._descriptor)

    def _read(self) -> None:
        before = len(self.pending)
        try:
            self.read_available()
        except BaseException:
            # A signal handler has raised.
            self.on_finished(self.fail(interrupted_error(self.connection.address)))
            raise
        if len(self.pending) < before:
            self._notify_capacity()

    def on_finished(self, finished: list[PendingRequest]) -> None:
        """Wakes the tasks that wait for these requests."""
        for pending in finished:
            if not pending.waiter.done():
                pending.waiter.set_result(None)
            else:
                pending.discard()

    def _expire(self) -> None:
        """Fails the requests whose deadline has passed. Discards their responses. One timer serves all requests."""
        self._timer = None
        now = self._loop.time() + 1e-3
        next_deadline: float | None = None
        expired: PendingRequest | None = None
        for pending in self.unanswered():
            if pending.is_abandoned:
                continue
            if pending.deadline <= now:
                pending.is_abandoned = pending.is_late = True
                pending.failure = timeout_error(self.connection.address)
                resolve_future(pending.waiter, True)
                expired = pending
            elif next_deadline is None or pending.deadline < next_deadline:
                next_deadline = pending.deadline
        if expired is not None:
            self.close_if_unresponsive(expired)
        if next_deadline is not None and not self.is_closed:
            self._timer = self._loop.call_at(next_deadline, self._expire)

    def is_stuck(self) -> bool:
        """Whether no bytes have come since the oldest request was sent, at least `_HANG_TIMEOUT` ago."""
        if not super().is_stuck():
            return False
        started = self.unanswered()[0].deadline - self._timeout
        return self._loop.time() > started + min(_HANG_TIMEOUT, self._timeout / 2)

    def detach_if_idle(self) -> Connection | None:
        """Removes and returns the connection if no request waits for a response. See the base class."""
        connection = super().detach_if_idle()
        if connection is not None and not self.is_closed:
            self._remove_callbacks()
        return connection

    def close(self, keep: frozenset[int] = frozenset()) -> None:
        """Closes the connection with its pending requests."""
        if not self.is_closed:
            self._remove_callbacks()
        super().close(keep)

    def _remove_callbacks(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
            if self._is_writer_registered:
                self._loop.remove_writer(self._descriptor)
