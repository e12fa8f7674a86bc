"""The shared connection of threads, which has no thread of its own.

A thread that waits for a response while no other thread reads becomes the reader. The reader delivers the responses of
all threads. When it has its own, the longest waiting thread reads on.
"""

import contextlib
import select
import socket
import struct
import threading
import time
from typing import Any

from objmapper_client._connection.connection import CHUNK, NO_ANCILLARY, NONBLOCKING, Connection
from objmapper_client._connection.multiplexer import Multiplexer, PipelineFull
from objmapper_client._connection.pending_request import PendingRequest
from objmapper_client._connection.socket_io import interrupted_error, io_error, timeout_error
from objmapper_client.errors import ConnectionFailed, LocalProtocolError, RequestTimeout

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
