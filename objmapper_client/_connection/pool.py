"""The connections of a client: one shared connection for requests, and exclusive ones for contents. It never blocks.

With `max_connections=1` the one connection is shared and exclusive in turn. A server of version 1 has no shared one.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.multiplexer import Multiplexer
from objmapper_client._connection.retry import RetryBudget
from objmapper_client.address import Address


class Waiter(Protocol):
    """A thread or task waits on it until another calls `wake`. As an effect it gives whether that was in time."""

    def wake(self) -> None:
        """Wakes the waiting thread or task."""


class Runtime(Protocol):
    """The part of a runtime (threads or asyncio) that a pool uses."""

    @property
    def loop(self) -> object:
        """The event loop of the pool's tasks; None for threads."""
        raise NotImplementedError

    def new_waiter(self) -> Waiter:
        """Returns a waiter for the calling thread or task."""
        raise NotImplementedError

    def share(
        self, connection: Connection, timeout: float, notify_capacity: Callable[[], None], lock: Any, /
    ) -> Multiplexer:
        """Returns a multiplexer for the connection.

        It calls `notify_capacity` when the response to an abandoned request frees a place. `lock`: the pool's lock.
        """
        raise NotImplementedError

    def is_readable(self, connection: Connection) -> bool:
        """Whether the socket has bytes to read now."""
        raise NotImplementedError


class Claim:
    """A reservation of one of the pool's connections, while it is being made and while it is exclusive.

    It ends with the last reference to it, so that an exception from a signal handler cannot leak it.
    """

    __slots__ = ("__weakref__", "_pool")

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool

    def __del__(self) -> None:
        # The constructor may have raised before it set `_pool`.
        pool = getattr(self, "_pool", None)
        if pool is not None and pool.has_claim(self):
            try:
                pool.release_claim(self)
            except BaseException:
                # Python ignores exceptions in `__del__`, so release again before raising.
                pool.recover()
                pool.release_claim(self)
                raise


# Seconds until the client negotiates again with a server that said that it speaks version 1, or was assumed to do so.
_CONFIRMED_SECONDS, _ASSUMED_SECONDS = 30.0, 1.0


class Pool:
    """The connections of a client in one process. After a fork the child makes a new pool and abandons its parent's."""

    #: The version of a transport that has no negotiation; None if the client negotiates.
    fixed_version: ClassVar[int | None] = None
    #: Seconds to wait for a server that is not running.
    wait = 0.0

    def __init__(
        self,
        address: Address,
        runtime: Runtime,
        *,
        max_connections: int,
        attempts: int,
        timeout: float,
        connect_timeout: float,
    ) -> None:
        self.address = address
        self.runtime = runtime
        self.max_connections = max_connections
        self.attempts = attempts
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.budget = RetryBudget()
        #: Requests made so far.
        self.requests = 0
        # Re-entrant: the garbage collector may close a stream, which calls the pool, while this thread holds the lock.
        # `recover` asks the lock whether an exception has left it locked.
        self._lock = threading.RLock()
        #: The server's version; None before the negotiation.
        self.version = self.fixed_version
        self._renegotiate_at = 0.0
        self._renegotiate_earliest = 0.0
        self.shared: Multiplexer | None = None
        #: The id of the claim under which the shared connection is being made.
        self._connecting: int | None = None
        self._idle: list[Connection] = []
        #: The ids of the claims of exclusive connections, with their connections; None while one is being made.
        self._in_use: dict[int, weakref.ref[Connection] | None] = {}
        self._exclusive_waiters: deque[weakref.ref[Waiter]] = deque()
        self._shared_waiters: deque[weakref.ref[Waiter]] = deque()
        #: Whether a request waits for capacity on the shared connection, or for the connection to be idle.
        self.has_waiters = False
        self._closed = False

    def __len__(self) -> int:
        """The number of connections."""
        established = sum(1 for connection in self._in_use.values() if connection is not None)
        return (self.shared is not None) + len(self._idle) + established

    def acquire_shared(self, claim: Claim, *, has_waited: bool = False) -> Multiplexer | Waiter | None:
        """Returns the shared connection, a waiter after which the caller tries again, or None: the caller makes one.

        A caller that has not waited yet queues behind those that wait.
        """
        with self._lock:
            shared = self.shared
            if shared is not None and shared.is_closing:
                # It stays open until its pending requests have their responses.
                shared = self.shared = None
            if shared is not None:
                may_overtake = has_waited or not self._shared_waiters
                if shared.has_capacity and may_overtake and not (self.max_connections == 1 and self._exclusive_waiters):
                    return shared
                if shared.close_if_stuck():
                    shared = self.shared = None
            if shared is not None or self._connecting is not None or (self.max_connections == 1 and self._in_use):
                return self._enqueue_waiter(self._shared_waiters, is_first=has_waited)
            connection = self._pop_idle() if self.max_connections == 1 else None
            if connection is not None and connection.version == 2:
                self.shared = self._share(connection)
                return self.shared
            if connection is not None:
                connection.close()
            self._connecting = id(claim)
            return None

    def publish_shared(self, claim: Claim, connection: Connection) -> Multiplexer | None:
        """Adds the connection that the caller of `acquire_shared` made. Returns None if it speaks version 1."""
        with self._lock:
            shared: Multiplexer | None = None
            if connection.version == 2:
                self.version = 2
                shared = self._share(connection)
                if not self._closed:
                    self.shared = shared
            elif self._closed:
                connection.close()
            else:
                self._idle.append(connection)
            self.release_claim(claim)
            return shared

    def _share(self, connection: Connection) -> Multiplexer:
        return self.runtime.share(connection, self.timeout, self.notify_capacity, self._lock)

    def release_shared(self, shared: Multiplexer | None) -> None:
        """Ends a request's use of a shared connection. Closes the connection if the pool was closed meanwhile."""
        if self._closed and shared is not None:
            shared.close_when_idle()

    def acquire_exclusive(self, claim: Claim, *, has_waited: bool = False) -> Connection | Waiter | None:
        """Returns an exclusive connection, a waiter as `acquire_shared` does, or None: the caller makes one."""
        with self._lock:
            if self.version == 1 and time.monotonic() >= self._renegotiate_at:
                self.forget_version()
            connection = self._pop_idle()
            if connection is None and self.max_connections == 1 and self.shared is not None:
                connection = self.shared.detach_if_idle()
                if connection is None:
                    return self._enqueue_waiter(self._exclusive_waiters, is_first=has_waited)
                self.shared = None
                if connection.is_closed:
                    connection = None
            if connection is not None:
                self._record_in_use(claim, connection)
                return connection
            max_exclusive = self.max_connections - (1 if self.version != 1 and self.max_connections > 1 else 0)
            is_connecting = self.max_connections == 1 and self._connecting is not None
            if is_connecting or len(self._in_use) >= max_exclusive:
                return self._enqueue_waiter(self._exclusive_waiters, is_first=has_waited)
            self._in_use[id(claim)] = None
            return None

    def publish_exclusive(self, claim: Claim, connection: Connection) -> None:
        """Adds the connection that the caller of `acquire_exclusive` made."""
        with self._lock:
            self._record_in_use(claim, connection)

    def _record_in_use(self, claim: Claim, connection: Connection) -> None:
        self._in_use[id(claim)] = weakref.ref(connection)
        connection.claim = claim

    def has_claim(self, claim: Claim) -> bool:
        """Whether a claim is held."""
        return id(claim) in self._in_use or self._connecting == id(claim)

    def release_claim(self, claim: Claim) -> None:
        """Ends a claim and wakes a waiter. May be called twice."""
        with self._lock:
            if self._connecting == id(claim):
                self._connecting = None
                self._wake(self._shared_waiters, len(self._shared_waiters))
                self._wake(self._exclusive_waiters, 1 if self.max_connections == 1 else 0)
            if self._in_use.pop(id(claim), self) is not self:
                self._wake_next()

    def release(self, connection: Connection) -> None:
        """Returns an exclusive connection to the pool, which closes it if it cannot be reused."""
        claim = connection.claim
        # Outside of `with`: CPython does not unlock if a signal handler raises right at a `try` inside it.
        try:
            with self._lock:
                is_current = connection.version == (self.version or connection.version)
                if self._closed or not connection.is_clean or not is_current:
                    connection.close()
                else:
                    connection.is_reused = True
                    self._idle.append(connection)
                # In this order: after an exception in between, `discard` releases the claim again.
                if claim is not None:
                    self.release_claim(claim)
                connection.claim = None
        except BaseException:
            # A signal handler has raised. Streams end here, outside of the `recover` of each operation.
            self.recover()
            # Another thread may have acquired it since.
            if connection.claim is claim or connection.claim is None:
                self.discard(connection)
            raise

    def discard(self, connection: Connection) -> None:
        """Closes an exclusive connection."""
        try:
            self._drop(connection)
        except BaseException:
            self.recover()
            self._drop(connection)
            raise

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            claim = connection.claim
            if connection in self._idle:
                # A signal handler interrupted `release`.
                self._idle.remove(connection)
            connection.close()
            if claim is not None:
                self.release_claim(claim)
            connection.claim = None

    def cancel_wait(self, waiter: Waiter) -> None:
        """Removes a waiter. If it has been woken at this moment, wakes all others, so that no wake-up is lost."""
        with self._lock:
            for waiters in (self._exclusive_waiters, self._shared_waiters):
                for reference in waiters:
                    if reference() is waiter:
                        waiters.remove(reference)
                        self._update_has_waiters()
                        return
            self._wake_all()

    def on_request_done(self) -> None:
        """Wakes waiters after a request on the shared connection: it may have capacity now, or be idle."""
        if self._closed:
            # The shared connection was being made when the client was closed.
            self._close_shared()
        with self._lock:
            shared = self.shared
            self._wake(self._shared_waiters, 1 if shared is None or shared.is_closing else max(1, shared.capacity))
            if self.max_connections == 1:
                self._wake(self._exclusive_waiters, 1)

    def notify_capacity(self) -> None:
        """Calls `on_request_done` if there are waiters."""
        if self.has_waiters:
            self.on_request_done()

    def close(self) -> None:
        """Closes the idle connections. Those in use are closed when their requests are done."""
        try:
            with self._lock:
                self._closed = True
                while self._idle:
                    self._idle[-1].close()
                    self._idle.pop()
                self._update_has_waiters()
            self._close_shared()
        except BaseException:
            self.recover()
            raise

    def _close_shared(self) -> None:
        with self._lock:
            shared, self.shared = self.shared, None
        if shared is not None:
            shared.close_when_idle()

    def abandon(self) -> None:
        """Closes a forked child's copies of its parent's connections. Without the lock: its holder is in the parent."""
        shared = [] if self.shared is None else [self.shared.connection]
        in_use = [reference() for reference in self._in_use.values() if reference is not None]
        self._in_use.clear()
        self._lock = threading.RLock()
        for connection in (*shared, *self._idle, *in_use):
            if connection is not None:
                connection.claim = None
                connection.close()

    def recover(self) -> None:
        """Repairs the pool after a signal handler raised: releases the lock and wakes all waiters."""
        lock = self._lock
        # A `with` statement that the exception interrupted.
        while lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks
            lock.release()
        if self._exclusive_waiters or self._shared_waiters:
            with lock:
                self._wake_all()

    def assume_version_1(self, *, is_certain: bool) -> None:
        """Uses version 1 for a while. `is_certain`: the server said so; else it answered a request of version 1."""
        now = time.monotonic()
        self._renegotiate_at = now + (_CONFIRMED_SECONDS if is_certain else _ASSUMED_SECONDS)
        self._renegotiate_earliest = now + (_ASSUMED_SECONDS if is_certain else 0)
        self.version = 1

    def may_renegotiate(self) -> bool:
        """For an operation that version 1 lacks: forgets version 1 if a negotiation is due. Returns whether it is."""
        if self.version == 1 and self.fixed_version is None and time.monotonic() >= self._renegotiate_earliest:
            self.forget_version()
        return self.version != 1

    def _pop_idle(self) -> Connection | None:
        """Removes and returns the idle connection that was used last; None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_closed:
                continue
            if connection.version == (self.version or 2) and not self.runtime.is_readable(connection):
                return connection
            # The server closed it, or sent bytes without a request. A newer server may run now: negotiate again.
            connection.close()
            if self.version == 1:
                self.forget_version()
        return None

    def forget_version(self) -> None:
        """Forgets the negotiated version: another server may run now."""
        self.version = self.fixed_version

    def _enqueue_waiter(self, waiters: deque["weakref.ref[Waiter]"], *, is_first: bool = False) -> Waiter:
        waiter = self.runtime.new_waiter()
        reference = weakref.ref(waiter)
        if is_first:
            waiters.appendleft(reference)
        else:
            waiters.append(reference)
        self._update_has_waiters()
        return waiter

    def _wake_next(self) -> None:
        """Wakes the next waiter for an exclusive connection; if there is none, those for the shared one."""
        self._wake(self._exclusive_waiters, 1)
        if self.max_connections == 1 and not self._exclusive_waiters:
            self._wake(self._shared_waiters, len(self._shared_waiters))

    def _wake_all(self) -> None:
        """Wakes all waiters. Each tries again, and queues again at the front if it gets nothing."""
        self._wake(self._exclusive_waiters, len(self._exclusive_waiters))
        self._wake(self._shared_waiters, len(self._shared_waiters))

    def _wake(self, waiters: deque["weakref.ref[Waiter]"], count: int) -> None:
        while waiters and count:
            waiter = waiters.popleft()()
            if waiter is not None:
                waiter.wake()
                count -= 1
        self._update_has_waiters()

    def _update_has_waiters(self) -> None:
        # In a closed pool `on_request_done` closes the shared connection, so finished requests must call it.
        self.has_waiters = (
            self._closed or bool(self._shared_waiters) or (self.max_connections == 1 and bool(self._exclusive_waiters))
        )
