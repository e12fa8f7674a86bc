"""Which connection a request runs on: the one that requests share, or one of its own for a content. It never waits.

Of the connections that a client may have, one is shared; the others carry one content at a time. Where there may be
only one it is both, in turn. A server of version 1 has no shared one.
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
    """What a thread or task waits at until another opens it. Yielded, it resumes with whether that was in time."""

    def open(self) -> None:
        """Lets the one who waits go on. Can be called by any thread, and twice."""


class Runtime(Protocol):
    """What a pool needs to know of those who wait: threads, or tasks."""

    @property
    def loop(self) -> object:
        """The event loop that they wait in, if they do."""
        raise NotImplementedError

    def gate(self) -> Waiter:
        """What one waits at until another opens it."""
        raise NotImplementedError

    def share(self, connection: Connection, timeout: float, note_room: Callable[[], None], lock: Any, /) -> Multiplexer:
        """Has requests share a connection. `note_room` is to be called where the answer to an abandoned request came.

        `lock` is the pool's, for what threads share.
        """
        raise NotImplementedError

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""
        raise NotImplementedError


class Claim:
    """A place among a pool's connections: one that is being made, or one for a caller alone.

    It is given back when the last reference to it goes, also where an exception comes out of a signal handler.
    """

    __slots__ = ("__weakref__", "_pool")

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool

    def __del__(self) -> None:
        # The constructor may not have come that far.
        pool = getattr(self, "_pool", None)
        if pool is not None and pool.has_claim(self):
            try:
                pool.release(self)
            except BaseException:
                # Python goes on after what a `__del__` raises.
                pool.recover()
                pool.release(self)
                raise


# A version that is believed on the server's word is asked for again after this, in seconds; one that is guessed sooner.
_CERTAIN, _GUESSED = 30.0, 1.0


class Pool:
    """The connections of one process: after a fork the child starts with a new one and abandons the parent's."""

    #: The version that is spoken without being agreed on; None where the server is asked.
    fixed_version: ClassVar[int | None] = None
    #: Seconds for which a server that is not there is waited for.
    wait = 0.0

    def __init__(
        self, address: Address, waiting: Runtime, *, most: int, attempts: int, timeout: float, connect_timeout: float
    ) -> None:
        self.address = address
        self.waiting = waiting
        self.most = most
        self.attempts = attempts
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.budget = RetryBudget()
        #: How many have been made in all.
        self.requests = 0
        # It knows its owner: the collector may close a stream, and so come here, while this thread has the lock, and
        # what an exception interrupted can be told and undone (see `recover`).
        self._lock = threading.RLock()
        #: What the server speaks: None where it has not been asked yet.
        self.version = self.fixed_version
        self._ask_again_at = 0.0
        self._ask_at_least_at = 0.0
        self.shared: Multiplexer | None = None
        #: The claim of the one who makes the shared connection, by its id.
        self._connecting: int | None = None
        self._idle: list[Connection] = []
        #: The claims of connections for one caller alone, by id, with the connections that have been made.
        self._in_use: dict[int, weakref.ref[Connection] | None] = {}
        self._exclusive_waiters: deque[weakref.ref[Waiter]] = deque()
        self._shared_waiters: deque[weakref.ref[Waiter]] = deque()
        #: Whether a request waits for room on the shared connection, or until it has nothing to do.
        self.is_waited_for = False
        self._closed = False

    def __len__(self) -> int:
        """How many connections there are."""
        made = sum(1 for connection in self._in_use.values() if connection is not None)
        return (self.shared is not None) + len(self._idle) + made

    def acquire_shared(self, claim: Claim, *, has_waited: bool = False) -> Multiplexer | Waiter | None:
        """The connection that requests share; a gate to wait at and then ask again; or None: the caller makes one.

        A caller that has not waited yet stands behind those who do.
        """
        with self._lock:
            shared = self.shared
            if shared is not None and shared.is_closing:
                # It goes on for those who still wait for its answers.
                shared = self.shared = None
            if shared is not None:
                may_pass = has_waited or not self._shared_waiters
                if shared.has_room and may_pass and not (self.most == 1 and self._exclusive_waiters):
                    return shared
                if shared.close_if_stuck():
                    shared = self.shared = None
            if shared is not None or self._connecting is not None or (self.most == 1 and self._in_use):
                return self._queue(self._shared_waiters, is_first=has_waited)
            connection = self._usable() if self.most == 1 else None
            if connection is not None and connection.version == 2:
                self.shared = self._share(connection)
                return self.shared
            if connection is not None:
                connection.close()
            self._connecting = id(claim)
            return None

    def publish_shared(self, claim: Claim, connection: Connection) -> Multiplexer | None:
        """Answers `take_shared`: here is the connection. None where it speaks version 1, and cannot be shared."""
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
        return self.waiting.share(connection, self.timeout, self.note_room, self._lock)

    def leave(self, shared: Multiplexer | None) -> None:
        """A request is done with the shared connection, which a pool that was closed meanwhile does not keep."""
        if self._closed and shared is not None:
            shared.close_when_idle()

    def acquire_exclusive(self, claim: Claim, *, has_waited: bool = False) -> Connection | Waiter | None:
        """A connection for the caller alone; a gate to wait at and then ask again; or None: the caller makes one."""
        with self._lock:
            if self.version == 1 and time.monotonic() >= self._ask_again_at:
                self.forget_version()
            connection = self._usable()
            if connection is None and self.most == 1 and self.shared is not None:
                connection = self.shared.detach_if_idle()
                if connection is None:
                    return self._queue(self._exclusive_waiters, is_first=has_waited)
                self.shared = None
                if connection.is_closed:
                    connection = None
            if connection is not None:
                self._book(claim, connection)
                return connection
            room = self.most - (1 if self.version != 1 and self.most > 1 else 0)
            is_connecting = self.most == 1 and self._connecting is not None
            if is_connecting or len(self._in_use) >= room:
                return self._queue(self._exclusive_waiters, is_first=has_waited)
            self._in_use[id(claim)] = None
            return None

    def publish_exclusive(self, claim: Claim, connection: Connection) -> None:
        """Answers `take_own`: here is the connection."""
        with self._lock:
            self._book(claim, connection)

    def _book(self, claim: Claim, connection: Connection) -> None:
        self._in_use[id(claim)] = weakref.ref(connection)
        connection.claim = claim

    def has_claim(self, claim: Claim) -> bool:
        """Whether a place is taken."""
        return id(claim) in self._in_use or self._connecting == id(claim)

    def release_claim(self, claim: Claim) -> None:
        """The place of a connection is free. Can be called twice."""
        with self._lock:
            if self._connecting == id(claim):
                self._connecting = None
                self._open(self._shared_waiters, len(self._shared_waiters))
                self._open(self._exclusive_waiters, 1 if self.most == 1 else 0)
            if self._in_use.pop(id(claim), self) is not self:
                self._open_next()

    def release(self, connection: Connection) -> None:
        """Takes a connection back, or closes it where it is of no more use."""
        claim = connection.claim
        # Not inside of `with`: CPython does not unlock after an exception right at a `try` there.
        try:
            with self._lock:
                is_current = connection.version == (self.version or connection.version)
                if self._closed or not connection.is_clean or not is_current:
                    connection.close()
                else:
                    connection.is_reused = True
                    self._idle.append(connection)
                # In this order: after an exception in between, `drop` releases it once more.
                if claim is not None:
                    self.release_claim(claim)
                connection.claim = None
        except BaseException:
            # Out of a signal handler. Streams end here, outside of what recovers after each verb.
            self.recover()
            # Another thread may have taken it since.
            if connection.claim is claim or connection.claim is None:
                self.discard(connection)
            raise

    def discard(self, connection: Connection) -> None:
        """Closes a connection that was taken."""
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
                # An exception came in the midst of `give`.
                self._idle.remove(connection)
            connection.close()
            if claim is not None:
                self.release_claim(claim)
            connection.claim = None

    def cancel_wait(self, gate: Waiter) -> None:
        """The caller waits no longer at this gate; where it was opened at that moment, the next one may go on."""
        with self._lock:
            for line in (self._exclusive_waiters, self._shared_waiters):
                for each in line:
                    if each() is gate:
                        line.remove(each)
                        self._note()
                        return
            self._wake_all()

    def answered(self) -> None:
        """The shared connection has done a request: it may have room now, or be free."""
        if self._closed:
            # It was being made when the client was closed.
            self._retire()
        with self._lock:
            shared = self.shared
            self._open(self._shared_waiters, 1 if shared is None or shared.is_closing else max(1, shared.room))
            if self.most == 1:
                self._open(self._exclusive_waiters, 1)

    def note_room(self) -> None:
        """`answered`, where a request waits for it."""
        if self.is_waited_for:
            self.answered()

    def close(self) -> None:
        """Closes what is idle; what is in use is closed once it no longer is."""
        try:
            with self._lock:
                self._closed = True
                while self._idle:
                    self._idle[-1].close()
                    self._idle.pop()
                self._note()
            self._retire()
        except BaseException:
            self.recover()
            raise

    def _retire(self) -> None:
        with self._lock:
            shared, self.shared = self.shared, None
        if shared is not None:
            shared.close_when_idle()

    def abandon(self) -> None:
        """Closes this process's copies of connections that are its parent's. No lock: its holder is not here."""
        shared = [] if self.shared is None else [self.shared.connection]
        in_use = [each() for each in self._in_use.values() if each is not None]
        self._in_use.clear()
        self._lock = threading.RLock()
        for connection in (*shared, *self._idle, *in_use):
            if connection is not None:
                connection.claim = None
                connection.close()

    def recover(self) -> None:
        """Undoes what an exception out of a signal handler may have left: a lock, waiters that were not woken up."""
        lock = self._lock
        # What the `with` statement has not come to.
        while lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks
            lock.release()
        if self._exclusive_waiters or self._shared_waiters:
            with lock:
                self._wake_all()

    def assume_version_1(self, *, is_certain: bool) -> None:
        """The server has said so, or it has answered in version 1 after it said nothing: for a while."""
        now = time.monotonic()
        self._ask_again_at = now + (_CERTAIN if is_certain else _GUESSED)
        self._ask_at_least_at = now + (_GUESSED if is_certain else 0)
        self.version = 1

    def may_renegotiate(self) -> bool:
        """For a verb that version 1 lacks: whether the server is asked once more what it speaks. Then it is doubted."""
        if self.version == 1 and self.fixed_version is None and time.monotonic() >= self._ask_at_least_at:
            self.forget_version()
        return self.version != 1

    def _usable(self) -> Connection | None:
        """The idle connection that was used last."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_closed:
                continue
            if connection.version == (self.version or 2) and not self.waiting.is_readable(connection):
                return connection
            # The server closed it, or answered without a request. There may be another one now, which knows more.
            connection.close()
            if self.version == 1:
                self.forget_version()
        return None

    def forget_version(self) -> None:
        """Perhaps there is another server now, that knows more."""
        self.version = self.fixed_version

    def _queue(self, line: deque["weakref.ref[Waiter]"], *, is_first: bool = False) -> Waiter:
        gate = self.waiting.gate()
        each = weakref.ref(gate)
        if is_first:
            line.appendleft(each)
        else:
            line.append(each)
        self._note()
        return gate

    def _open_next(self) -> None:
        """A connection for one alone has come free, or room for one."""
        self._open(self._exclusive_waiters, 1)
        if self.most == 1 and not self._exclusive_waiters:
            self._open(self._shared_waiters, len(self._shared_waiters))

    def _wake_all(self) -> None:
        """Each asks again, and waits again in its old place where there is nothing for it."""
        self._open(self._exclusive_waiters, len(self._exclusive_waiters))
        self._open(self._shared_waiters, len(self._shared_waiters))

    def _open(self, line: deque["weakref.ref[Waiter]"], count: int) -> None:
        while line and count:
            gate = line.popleft()()
            if gate is not None:
                gate.open()
                count -= 1
        self._note()

    def _note(self) -> None:
        # Where the pool is closed, requests that are done have what they leave closed by `answered`.
        self.is_waited_for = (
            self._closed or bool(self._shared_waiters) or (self.most == 1 and bool(self._exclusive_waiters))
        )
