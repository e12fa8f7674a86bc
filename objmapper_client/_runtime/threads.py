"""How threads wait: in the call that reads, in poll(2), or for one another. Nothing else here knows how.

The shared connection has no thread of its own. A thread that waits for an answer while no other reads becomes the
reader: it gives each answer to the one that asked, and once it has its own, leaves the reading to another that waits.
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
from objmapper_client._connection.pending_request import PendingRequest, SimpleRequest, Verb
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
# How much longer than it should a thread may sleep in the socket, whose own time limit is that of a whole request.
_DEADLINE_SLACK = 0.05
# How long a thread that has bytes to send waits for the socket before it looks what else has happened, in seconds.
_LOCK_POLL_INTERVAL = 0.05


class ThreadWaiter:
    """What one thread waits at until another opens it."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Lets the one who waits go on. To be called once."""
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Whether it was opened in time."""
        return self._lock.acquire(timeout=max(0.0, seconds))


def run(pool: Pool, operation: Verb[T], deadline: float = 0) -> T:
    """Runs a verb in this thread; after the pool's timeout it is told that the time is up."""
    is_fresh = not deadline
    deadline = deadline or _now() + pool.timeout
    try:
        if not isinstance(operation, SimpleRequest):
            return _run(pool, operation, deadline)
        # Where the server is known to have no connection that requests share, the way by it is a detour.
        if pool.version != 1 and _await_response(pool, operation, deadline, is_fresh=is_fresh):
            return operation.result()
        return _run(pool, operation.fallback_v1(pool), deadline)
    except BaseException:
        # An exception out of a signal handler may have come anywhere.
        pool.recover()
        if isinstance(operation, SimpleRequest):
            operation.discard()
        raise


def _run(pool: Pool, steps: Effects[T], deadline: float) -> T:
    results: list[T] = []
    steps = collect_result(steps, results)
    try:
        effect = next(steps)
        while effect is not None:
            try:
                if isinstance(effect, PendingRequest):
                    came: Any = _await_response(pool, effect, deadline)
                elif isinstance(effect, ResetDeadline):
                    deadline = _now() + pool.timeout + effect.seconds
                    came = True
                elif isinstance(effect, TimeLeft):
                    came = deadline - _now()
                elif isinstance(effect, NextChunk | RunBlocking | Notify):
                    began = _now()
                    came = _perform(effect, deadline)
                    deadline += _now() - began
                else:
                    came = _perform(effect, deadline)
            except BaseException as error:
                if isinstance(effect, PendingRequest):
                    effect.discard()
                effect = steps.throw(error)
            else:
                effect = steps.send(came)
        return results[0]
    finally:
        steps.close()


def _await_response(pool: Pool, pending: PendingRequest, deadline: float, *, is_fresh: bool = False) -> bool:
    """Has a request answered: at once where nothing stands in the way, which is what is fast here.

    Where `is_fresh`, all of its time is left.
    """
    first_error: Exception | None = None
    if not pool.is_waited_for and isinstance(shared := pool.shared, ThreadMultiplexer):
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
            if pool.is_waited_for:
                pool.answered()
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
    raise TypeError(f"nobody here waits for {effect!r}: an async iterator is for AsyncClient")


def _exchange_all(pendings: list[PendingRequest], deadline: float) -> None:
    """Sends requests of one connection ahead, and waits for all. Errors are left with those that they concern."""
    multiplexer: ThreadMultiplexer = pendings[0].multiplexer
    multiplexer.start(pendings, deadline)
    for pending in pendings:
        try:
            multiplexer.wait(pending, deadline)
        except (ObjmapperError, PipelineFull) as error:
            pending.failure = error


def _wait(wait: Wait, deadline: float) -> Any:
    left = deadline - _now()
    if wait.most is not None:
        left = min(left, wait.most)
    if left <= 0:
        return False
    if wait.host is not None:
        return look_up(wait.host, wait.port).result(left)
    if wait.seconds is not None:
        time.sleep(min(left, wait.seconds))
        return True
    # Rounded up: waking too early would be one more round.
    return bool(_poll(wait).poll(left * 1000 + 1))


def _poll(wait: Wait) -> Any:
    if wait.poll is None:
        wait.poll = select.poll()
        wait.poll.register(wait.descriptor, select.POLLOUT if wait.writable else select.POLLIN)
    return wait.poll


class ThreadRuntime:
    """What a pool of connections needs to know of those who wait."""

    loop = None

    def gate(self) -> ThreadWaiter:
        """What one waits at until another opens it."""
        return ThreadWaiter()

    def share(self, connection: Connection, timeout: float, _: Callable[[], None], lock: Any) -> "ThreadMultiplexer":
        """Has requests share a connection. The thread that reads tells the pool itself."""
        return ThreadMultiplexer(connection, timeout, lock)

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""
        return bool(_poll(connection.readable).poll(0))


class ThreadMultiplexer(Multiplexer):
    """A connection that threads share. An exception out of a signal handler may come between any two steps."""

    def __init__(self, connection: Connection, timeout: float, lock: Any) -> None:
        super().__init__(connection, lock, timeout)
        self._owned_lock = lock
        self._timeout = timeout - _DEADLINE_SLACK
        self._reader: PendingRequest | None = None
        #: Those who wait while another reads, the longest first.
        self._followers: dict[PendingRequest, ThreadWaiter] = {}
        self._send = connection.socket.send
        self._recv = connection.socket.recv
        self._is_unix = connection.is_unix
        self._sleep_in_socket()

    def _sleep_in_socket(self) -> None:
        """A reader sleeps in the call that reads rather than in a poll before it.

        One system call and one wake-up less a request: 20 µs of 50.
        """
        sock = self.connection.socket
        sock.setblocking(True)
        seconds = max(self._timeout, 1e-3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))

    def exchange(self, pending: PendingRequest, deadline: float, is_fresh: bool = False) -> None:
        """Sends a request and waits for its answer.

        Raises NoRoom, LocalProtocolError, ConnectionFailed, RequestTimeout, RemoteProtocolError, DescriptorLimit.
        """
        seconds = self._timeout
        must_look = False
        if not is_fresh:
            seconds = deadline - _now()
            # Where time is short, the socket's own limit is too long.
            must_look = seconds < self._timeout
        try:
            with self.lock:
                try:
                    if not pending.idempotent and self._reader is None:
                        self.look()
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
                        # The next send meets this error again and tells it apart.
                        sent = 0
                    # From here to the call that sleeps every step counts: the server's thread, which the send has woken
                    # up, runs on this core as soon as this one sleeps, and else has another core woken up: 20 µs
                    # instead of 2.
                    if sent != len(frame):
                        if frame:
                            self.leave_to_flush(pending, frame[sent:])
                        self._send_queued()
                        must_look = True
                except (PipelineFull, LocalProtocolError):
                    raise
                except BaseException:
                    self._interrupted()
                    raise
            if is_reader:
                self._read(pending, deadline, must_look)
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
        """Sends requests, or has them sent by those who wait for answers. What cannot be sent is failed."""
        left = deadline - _now()
        with self.lock:
            try:
                if self._reader is None and not all(pending.idempotent for pending in pendings):
                    self.look()
                for pending in pendings:
                    try:
                        self.queue(pending, left)
                    except (PipelineFull, LocalProtocolError) as error:
                        pending.failure, pending.is_done = error, True
                self._send_queued()
            except BaseException:
                self._interrupted()
                raise

    def wait(self, pending: PendingRequest, deadline: float) -> None:
        """Waits for the answer of a request that was started."""
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

    def _interrupted(self) -> None:
        """A signal's handler has raised in the midst of things: what was sent or read in that moment is lost."""
        with self.lock:
            self.on_finished(self.fail(interrupted_error(self.connection.address)))
            # Those that had their answer already, and were not woken up.
            self.on_finished([pending for pending in self._followers if pending.is_done])

    def _abandon(self, pending: PendingRequest, error: BaseException) -> None:
        with self.lock:
            if self._has_lock_left():
                self._interrupted()
            pending.is_late = isinstance(error, RequestTimeout)
            self.abandon(pending)
            if pending.is_late:
                self.suspect_hang(pending)

    def abandon(self, pending: PendingRequest) -> None:
        """A request's caller wants no answer any more. Takes the lock."""
        with self.lock:
            # A reader that was interrupted may have lost bytes that it had received: over TCP nothing else keeps them.
            if self._reader is pending and (self.connection.inbox or not (self._is_unix or pending.is_late)):
                self._interrupted()
            self._leave_readers(pending)
            pending.discard_locked()

    def _has_lock_left(self) -> bool:
        """Whether an exception came between the last line of a `with self.lock` and its end. To be called with it."""
        self._owned_lock.release()
        try:
            return bool(self._owned_lock._is_owned())
        finally:
            self._owned_lock.acquire()

    def _wait(self, pending: PendingRequest, deadline: float) -> None:
        """Waits while another reads, or does the reading."""
        while not pending.is_done:
            if self.outgoing and self._reader is not None:
                self._write(pending, deadline)
            gate = None
            with self.lock:
                if pending.is_done:
                    return
                if self._reader is None:
                    self._reader = pending
                elif self.outgoing:
                    continue
                else:
                    gate = self._followers[pending] = ThreadWaiter()
            if gate is None:
                self._read(pending, deadline, must_look=True)
            elif not gate.wait(deadline - _now()) and not pending.is_done:
                raise timeout_error(self.connection.address)

    def _write(self, pending: PendingRequest, deadline: float) -> None:
        """Sends what is queued, while the reader sleeps and waits for answers only."""
        while self.outgoing and self._reader is not None and not pending.is_done:
            left = deadline - _now()
            if left <= 0:
                raise timeout_error(self.connection.address)
            poll = select.poll()
            try:
                poll.register(self.connection.socket, select.POLLOUT)
            except (OSError, ValueError):
                # It was closed at this moment.
                return
            # Not longer: the reader may get this answer too, or leave the reading to this one.
            if poll.poll(min(left, _LOCK_POLL_INTERVAL) * 1000 + 1):
                with self.lock:
                    try:
                        if self.outgoing:
                            self._send_queued()
                    except BaseException:
                        self._interrupted()
                        raise

    def _read(self, pending: PendingRequest, deadline: float, must_look: bool) -> None:
        """Reads until this request has its answer, then leaves the reading to another."""
        ancillary, flags, inbox = NO_ANCILLARY, 0, self.connection.inbox
        while not pending.is_done:
            if must_look and not self._ready(deadline):
                continue
            try:
                if self._is_unix:
                    # In one step: the descriptors have an owner from the moment on that they are here.
                    self.connection.take()
                    data, ancillary, flags, _ = inbox[0]
                else:
                    data = self._recv(CHUNK)
            except BlockingIOError:
                # The socket's own time is up.
                must_look = True
                continue
            except OSError as error:
                with self.lock:
                    if not self.is_closed:
                        self.on_finished(self.fail(io_error(self.connection.address, error)))
                    self._leave_readers(pending)
                return
            with self.lock:
                try:
                    if not self.feed_fast(pending, data, ancillary, flags):
                        self.on_finished(self.feed(data, ancillary, flags))
                    if pending.is_done:
                        self._reader = None
                        if self._followers:
                            self._hand_over()
                        return
                except BaseException:
                    self._interrupted()
                    raise
            must_look = bool(self.outgoing) or deadline - _now() < self._timeout

    def _ready(self, deadline: float) -> bool:
        """Waits until there is something to read, and sends what is left to be sent. Whether there is."""
        left = deadline - _now()
        if left <= 0:
            raise timeout_error(self.connection.address)
        poll = select.poll()
        try:
            poll.register(self.connection.socket, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
        except (OSError, ValueError):
            # Another thread closed it at this moment: the call that reads says so.
            return True
        found = poll.poll(left * 1000 + 1)
        events = found[0][1] if found else 0
        if events & select.POLLOUT:
            with self.lock:
                try:
                    self._send_queued()
                except BaseException:
                    self._interrupted()
                    raise
        return bool(events & ~select.POLLOUT)

    def _leave_readers(self, pending: PendingRequest) -> None:
        """The caller waits no longer; where the reading was left to it, it goes to the next."""
        if self._reader is pending:
            self._reader = None
        self._followers.pop(pending, None)
        self._hand_over()

    def _hand_over(self) -> None:
        """Has the thread that waits the longest do the reading, unless another does."""
        if self._reader is None and self._followers:
            pending = next(iter(self._followers))
            self._followers.pop(pending).open()

    def on_finished(self, finished: list[PendingRequest]) -> None:
        """Lets those go on that waited for these requests."""
        for pending in finished:
            gate = self._followers.pop(pending, None)
            if gate is not None:
                gate.open()

    def close(self, taken: frozenset[int] = frozenset()) -> None:
        """Closes the connection, whatever is under way; a thread that sleeps in its socket wakes up."""
        if self._reader is not None and not self.is_closed:
            with contextlib.suppress(OSError):
                self.connection.socket.shutdown(socket.SHUT_RDWR)
        super().close(taken)
