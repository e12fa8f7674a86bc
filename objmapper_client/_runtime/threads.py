"""The runtime for threads: performs effects with blocking calls, poll(2) and locks.

The shared connection has no thread of its own. A thread that waits for a response while no other thread reads becomes
the reader. The reader delivers the responses of all threads. When it has its own, the longest waiting thread reads on.
"""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from objmapper_client._connection.connection import CHUNK, NO_ANCILLARY, NONBLOCKING, Connection
from objmapper_client._connection.dispatch import send_request, with_server_error
from objmapper_client._connection.multiplexer import Multiplexer, PipelineFull
from objmapper_client._connection.pending_request import PendingRequest, Runnable, SimpleRequest
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.resolver import look_up
from objmapper_client._connection.socket_io import interrupted_error, io_error, timeout_error
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

_now = time.monotonic
# Seconds that a thread may sleep in the socket past its deadline; the socket's time limit is that of a whole request.
_DEADLINE_SLACK = 0.05
# Seconds that a thread with unsent bytes waits for the socket before it checks the reader again.
_LOCK_POLL_INTERVAL = 0.05


class ThreadWaiter:
    """One thread waits on it until another thread calls `wake`."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Wakes the waiting thread. Must be called once only."""
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Waits for `wake`. Returns False after `seconds`."""
        return self._lock.acquire(timeout=max(0.0, seconds))


def run(pool: Pool, operation: Runnable[T], deadline: float = 0) -> T:
    """Runs an operation in this thread. Raises RequestTimeout after the pool's timeout."""
    is_fresh = not deadline
    deadline = deadline or _now() + pool.timeout
    try:
        if not isinstance(operation, SimpleRequest):
            return _run(pool, operation, deadline)
        # A server of version 1 has no shared connection.
        if pool.version != 1 and _await_response(pool, operation, deadline, is_fresh=is_fresh):
            return operation.result()
        return _run(pool, operation.fallback_v1(pool), deadline)
    except BaseException:
        # A signal handler may have raised at any point.
        pool.recover()
        if isinstance(operation, SimpleRequest):
            operation.discard()
        raise


def _run(pool: Pool, effects: Effects[T], deadline: float) -> T:
    results: list[T] = []
    effects = collect_result(effects, results)
    try:
        effect = next(effects)
        while effect is not None:
            try:
                if isinstance(effect, PendingRequest):
                    result: Any = _await_response(pool, effect, deadline)
                elif isinstance(effect, ResetDeadline):
                    deadline = _now() + pool.timeout + effect.seconds
                    result = True
                elif isinstance(effect, TimeLeft):
                    result = deadline - _now()
                elif isinstance(effect, NextChunk | RunBlocking | Notify):
                    started = _now()
                    result = _perform(effect, deadline)
                    deadline += _now() - started
                else:
                    result = _perform(effect, deadline)
            except BaseException as error:
                if isinstance(effect, PendingRequest):
                    effect.discard()
                effect = effects.throw(error)
            else:
                effect = effects.send(result)
        return results[0]
    finally:
        effects.close()


def _await_response(pool: Pool, pending: PendingRequest, deadline: float, *, is_fresh: bool = False) -> bool:
    """Sends a request and waits for its response; without the retry machinery if the shared connection takes it.

    `is_fresh`: the whole time limit is left.
    """
    first_error: Exception | None = None
    if not pool.has_waiters and isinstance(shared := pool.shared, ThreadMultiplexer):
        try:
            shared.exchange(pending, deadline, is_fresh)
            if pending.status == 0:
                pool.requests += 1
                return True
        except (PipelineFull, ConnectionFailed) as error:
            first_error = error
        except RequestTimeout as error:
            raise with_server_error(pending, error) from error
        finally:
            if pool.has_waiters:
                pool.on_request_done()
    return _run(pool, send_request(pool, pending, first_error), deadline)


def _perform(effect: object, deadline: float) -> Any:
    match effect:
        case Wait():
            return _wait(effect, deadline)
        case ThreadWaiter():
            return effect.wait(deadline - _now())
        case list():
            return _exchange_all(effect, deadline)
        case RunBlocking() | Notify():
            return effect.function()
        case NextChunk(source=Iterator() as pieces):
            return next(pieces, None)
    raise TypeError(f"Client cannot wait for {effect!r}; pass an async iterator to AsyncClient")


def _exchange_all(pendings: list[PendingRequest], deadline: float) -> None:
    """Pipelines requests on one connection and waits for all. Stores each error in its request's `failure`."""
    multiplexer: ThreadMultiplexer = pendings[0].multiplexer
    multiplexer.start(pendings, deadline)
    for pending in pendings:
        try:
            multiplexer.wait(pending, deadline)
        except (ObjmapperError, PipelineFull) as error:
            pending.failure = error


def _wait(wait: Wait, deadline: float) -> Any:
    left = deadline - _now()
    if wait.timeout is not None:
        left = min(left, wait.timeout)
    if left <= 0:
        return False
    if wait.host is not None:
        return look_up(wait.host, wait.port).result(left)
    if wait.seconds is not None:
        time.sleep(min(left, wait.seconds))
        return True
    # Rounded up: a thread that wakes too early has to poll again.
    return bool(_poll(wait).poll(left * 1000 + 1))


def _poll(wait: Wait) -> Any:
    if wait.poll is None:
        wait.poll = select.poll()
        wait.poll.register(wait.descriptor, select.POLLOUT if wait.writable else select.POLLIN)
    return wait.poll


class ThreadRuntime:
    """Implements `pool.Runtime` for threads."""

    loop = None

    def new_waiter(self) -> ThreadWaiter:
        """Returns a waiter for the calling thread."""
        return ThreadWaiter()

    def share(self, connection: Connection, timeout: float, _: Callable[[], None], lock: Any) -> "ThreadMultiplexer":
        """Returns a multiplexer for the connection. Its reader calls the pool directly."""
        return ThreadMultiplexer(connection, timeout, lock)

    def is_readable(self, connection: Connection) -> bool:
        """Whether the socket has bytes to read now."""
        return bool(_poll(connection.readable).poll(0))


class ThreadMultiplexer(Multiplexer):
    """A connection that threads share. A signal handler may raise between any two steps."""

    def __init__(self, connection: Connection, timeout: float, lock: Any) -> None:
        super().__init__(connection, lock, timeout)
        self._rlock = lock
        self._timeout = timeout - _DEADLINE_SLACK
        self._reader: PendingRequest | None = None
        #: Requests whose threads wait while another thread reads; the oldest first.
        self._followers: dict[PendingRequest, ThreadWaiter] = {}
        self._send = connection.socket.send
        self._recv = connection.socket.recv
        self._is_unix = connection.is_unix
        self._set_receive_timeout()

    def _set_receive_timeout(self) -> None:
        """Makes the socket blocking with a time limit, so that a reader sleeps in recv(2) without a poll(2) before it.

        This saves one system call and one wake-up a request: 20 µs of 50.
        """
        sock = self.connection.socket
        sock.setblocking(True)
        seconds = max(self._timeout, 1e-3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))

    def exchange(self, pending: PendingRequest, deadline: float, is_fresh: bool = False) -> None:
        """Sends a request and waits for its response.

        Raises PipelineFull, LocalProtocolError, ConnectionFailed, RequestTimeout, RemoteProtocolError, DescriptorLimit.
        """
        seconds = self._timeout
        must_poll = False
        if not is_fresh:
            seconds = deadline - _now()
            # The socket's time limit would be longer than the time that is left.
            must_poll = seconds < self._timeout
        try:
            with self.lock:
                try:
                    if not pending.idempotent and self._reader is None:
                        self.read_available()
                    if self.outgoing:
                        self.queue(pending, seconds)
                        frame = b""
                    else:
                        frame = self.register(pending, seconds)
                    is_reader = self._reader is None
                    if is_reader:
                        self._reader = pending
                    try:
                        sent = self._send(frame, NONBLOCKING) if frame else -1
                    except OSError:
                        # The next read reports this error.
                        sent = 0
                    # Keep the path from here to recv(2) short. The send has woken the server's thread: if this thread
                    # sleeps soon, the server runs on this core (2 µs); else the kernel wakes another core (20 µs).
                    if sent != len(frame):
                        if frame:
                            self.queue_remainder(pending, frame[sent:])
                        self._send_queued()
                        must_poll = True
                except (PipelineFull, LocalProtocolError):
                    raise
                except BaseException:
                    self._on_interrupt()
                    raise
            if is_reader:
                self._read(pending, deadline, must_poll)
            else:
                self._wait(pending, deadline)
        except (PipelineFull, LocalProtocolError):
            raise
        except BaseException as error:
            self._abandon(pending, error)
            raise
        if pending.failure is not None:
            raise pending.failure

    def start(self, pendings: list[PendingRequest], deadline: float) -> None:
        """Sends requests as far as the socket takes them; waiting threads send the rest. Fails those over the limit."""
        left = deadline - _now()
        with self.lock:
            try:
                if self._reader is None and not all(pending.idempotent for pending in pendings):
                    self.read_available()
                for pending in pendings:
                    try:
                        self.queue(pending, left)
                    except (PipelineFull, LocalProtocolError) as error:
                        pending.failure, pending.is_done = error, True
                self._send_queued()
            except BaseException:
                self._on_interrupt()
                raise

    def wait(self, pending: PendingRequest, deadline: float) -> None:
        """Waits for the response to a request that `start` has queued."""
        try:
            self._wait(pending, deadline)
        except BaseException as error:
            self._abandon(pending, error)
            raise
        if pending.failure is not None:
            raise pending.failure

    def _send_queued(self) -> None:
        try:
            self.flush()
        except ConnectionFailed as error:
            self.on_finished(self.fail(error))

    def _on_interrupt(self) -> None:
        """Closes the connection after a signal handler raised: bytes sent or read at that moment are lost."""
        with self.lock:
            self.on_finished(self.fail(interrupted_error(self.connection.address)))
            # Requests that are done, but whose threads were not woken.
            self.on_finished([pending for pending in self._followers if pending.is_done])

    def _abandon(self, pending: PendingRequest, error: BaseException) -> None:
        with self.lock:
            if self._is_lock_leaked():
                self._on_interrupt()
            pending.is_late = isinstance(error, RequestTimeout)
            self.abandon(pending)
            if pending.is_late:
                self.close_if_unresponsive(pending)

    def abandon(self, pending: PendingRequest) -> None:
        """Drops a request: the connection discards its response. Takes the lock."""
        with self.lock:
            # An interrupted reader may have lost received bytes. On Unix sockets the inbox keeps them, on TCP nothing.
            if self._reader is pending and (self.connection.inbox or not (self._is_unix or pending.is_late)):
                self._on_interrupt()
            self._stop_waiting(pending)
            pending.discard_locked()

    def _is_lock_leaked(self) -> bool:
        """Whether an exception kept a `with self.lock` from releasing the lock. The caller holds the lock once."""
        self._rlock.release()
        try:
            return bool(self._rlock._is_owned())
        finally:
            self._rlock.acquire()

    def _wait(self, pending: PendingRequest, deadline: float) -> None:
        """Waits while another thread reads; reads itself if none does."""
        while not pending.is_done:
            if self.outgoing and self._reader is not None:
                self._write(pending, deadline)
            waiter = None
            with self.lock:
                if pending.is_done:
                    return
                if self._reader is None:
                    self._reader = pending
                elif self.outgoing:
                    continue
                else:
                    waiter = self._followers[pending] = ThreadWaiter()
            if waiter is None:
                self._read(pending, deadline, must_poll=True)
            elif not waiter.wait(deadline - _now()) and not pending.is_done:
                raise timeout_error(self.connection.address)

    def _write(self, pending: PendingRequest, deadline: float) -> None:
        """Sends queued bytes while the reader sleeps in recv(2)."""
        while self.outgoing and self._reader is not None and not pending.is_done:
            left = deadline - _now()
            if left <= 0:
                raise timeout_error(self.connection.address)
            poll = select.poll()
            try:
                poll.register(self.connection.socket, select.POLLOUT)
            except (OSError, ValueError):
                # Another thread has closed the socket.
                return
            # A short wait: meanwhile the reader may receive this response or stop reading.
            if poll.poll(min(left, _LOCK_POLL_INTERVAL) * 1000 + 1):
                with self.lock:
                    try:
                        if self.outgoing:
                            self._send_queued()
                    except BaseException:
                        self._on_interrupt()
                        raise

    def _read(self, pending: PendingRequest, deadline: float, must_poll: bool) -> None:
        """Reads until this request has its response, then makes another waiting thread the reader."""
        ancillary, flags, inbox = NO_ANCILLARY, 0, self.connection.inbox
        while not pending.is_done:
            if must_poll and not self._ready(deadline):
                continue
            try:
                if self._is_unix:
                    # One C call receives and stores the message, so that its descriptors always have an owner.
                    self.connection.receive_message()
                    data, ancillary, flags, _ = inbox[0]
                else:
                    data = self._recv(CHUNK)
            except BlockingIOError:
                # The socket's time limit has passed.
                must_poll = True
                continue
            except OSError as error:
                with self.lock:
                    if not self.is_closed:
                        self.on_finished(self.fail(io_error(self.connection.address, error)))
                    self._stop_waiting(pending)
                return
            with self.lock:
                try:
                    if not self.feed_fast(pending, data, ancillary, flags):
                        self.on_finished(self.feed(data, ancillary, flags))
                    if pending.is_done:
                        self._reader = None
                        if self._followers:
                            self._promote_follower()
                        return
                except BaseException:
                    self._on_interrupt()
                    raise
            must_poll = bool(self.outgoing) or deadline - _now() < self._timeout

    def _ready(self, deadline: float) -> bool:
        """Waits until the socket is readable; meanwhile sends queued bytes. Returns whether it is readable."""
        left = deadline - _now()
        if left <= 0:
            raise timeout_error(self.connection.address)
        poll = select.poll()
        try:
            poll.register(self.connection.socket, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
        except (OSError, ValueError):
            # Another thread has closed the socket: the next read reports it.
            return True
        found = poll.poll(left * 1000 + 1)
        events = found[0][1] if found else 0
        if events & select.POLLOUT:
            with self.lock:
                try:
                    self._send_queued()
                except BaseException:
                    self._on_interrupt()
                    raise
        return bool(events & ~select.POLLOUT)

    def _stop_waiting(self, pending: PendingRequest) -> None:
        """Removes a request from the waiting ones; if it was the reader, the next thread reads."""
        if self._reader is pending:
            self._reader = None
        self._followers.pop(pending, None)
        self._promote_follower()

    def _promote_follower(self) -> None:
        """Makes the longest waiting thread the reader, if there is none."""
        if self._reader is None and self._followers:
            pending = next(iter(self._followers))
            self._followers.pop(pending).wake()

    def on_finished(self, finished: list[PendingRequest]) -> None:
        """Wakes the threads that wait for these requests."""
        for pending in finished:
            waiter = self._followers.pop(pending, None)
            if waiter is not None:
                waiter.wake()

    def close(self, keep: frozenset[int] = frozenset()) -> None:
        """Closes the connection with its pending requests, and wakes a thread that sleeps in recv(2)."""
        if self._reader is not None and not self.is_closed:
            with contextlib.suppress(OSError):
                self.connection.socket.shutdown(socket.SHUT_RDWR)
        super().close(keep)
