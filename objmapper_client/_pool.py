"""Which connection a request runs on: the one that requests share, or one of its own for a content. It never waits.

Of the connections that a client may have, one is shared; the others carry one content at a time. Where there may be
only one it is both, in turn. A server of version 1 has no shared one.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Protocol

from objmapper_client._multiplex import Multiplex
from objmapper_client._retry import Budget
from objmapper_client._transport import Connection
from objmapper_client.address import Address


class Gate(Protocol):
    """What somebody waits at until another opens it. Yielded, it resumes with whether that was in time."""

    def open(self) -> None:
        """Lets the one who waits go on. Can be called by any thread, and twice."""


class Waiting(Protocol):
    """What a pool needs to know of those who wait: threads, or tasks."""

    @property
    def loop(self) -> object:
        """The event loop that they wait in, if they do."""
        raise NotImplementedError

    def gate(self) -> Gate:
        """What one waits at until another opens it."""
        raise NotImplementedError

    def share(self, connection: Connection, timeout: float, note_room: Callable[[], None], /) -> Multiplex:
        """Has requests share a connection. `note_room` is to be called where an answer came that nobody wanted."""
        raise NotImplementedError

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""
        raise NotImplementedError


class Pool:
    """The connections of one process: after a fork the child starts with a new one and abandons the parent's."""

    #: The version that is spoken without being agreed on; None where the server is asked.
    agreed: ClassVar[int | None] = None
    #: Seconds for which a server that is not there is waited for.
    wait = 0.0

    def __init__(
        self, address: Address, waiting: Waiting, *, most: int, attempts: int, timeout: float, connect_timeout: float
    ) -> None:
        self.address = address
        self.waiting = waiting
        self.most = most
        self.attempts = attempts
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.budget = Budget()
        #: How many have been made in all.
        self.requests = 0
        # The collector may close a stream, and so come here, while this very thread has the lock.
        self._lock = threading.RLock()
        #: What the server speaks: None where it has not been asked yet.
        self.version = self.agreed
        self.shared: Multiplex | None = None
        self._is_connecting = False
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        #: Connections of one's own that are being made.
        self._promised = 0
        self._wanting: deque[Gate] = deque()
        self._wanting_shared: deque[Gate] = deque()
        #: Whether somebody wants to be told when the shared connection has room, or nothing to do.
        self.is_waited_for = False
        self._closed = False

    def __len__(self) -> int:
        """How many connections there are."""
        return (self.shared is not None) + len(self._idle) + len(self._in_use)

    def take_shared(self, *, has_waited: bool = False) -> Multiplex | Gate | None:
        """The connection that requests share; a gate to wait at and then ask again; or None: the caller makes one.

        Whoever has not waited yet stands behind those who do.
        """
        with self._lock:
            shared = self.shared
            if shared is not None and shared.is_closing:
                # It goes on for those who still wait for its answers.
                shared = self.shared = None
            if shared is not None:
                may_pass = has_waited or not self._wanting_shared
                if shared.has_room and may_pass and not (self.most == 1 and self._wanting):
                    return shared
                if shared.give_up_hung():
                    shared = self.shared = None
            if shared is not None or self._is_connecting or (self.most == 1 and (self._in_use or self._promised)):
                return self._queue(self._wanting_shared)
            connection = self._usable() if self.most == 1 else None
            if connection is not None and connection.version == 2:
                self.shared = self.waiting.share(connection, self.timeout, self.note_room)
                return self.shared
            if connection is not None:
                connection.close()
            self._is_connecting = True
            return None

    def put_shared(self, connection: Connection | None) -> Multiplex | None:
        """Answers `take_shared`: here is the connection, or there was none to be had."""
        with self._lock:
            self._is_connecting = False
            if connection is not None:
                self.version = 2
                self.shared = self.waiting.share(connection, self.timeout, self.note_room)
            self._open(self._wanting_shared, len(self._wanting_shared))
            self._open(self._wanting, 1 if self.most == 1 else 0)
            return self.shared

    def take_own(self) -> Connection | Gate | None:
        """A connection for the caller alone; a gate to wait at and then ask again; or None: the caller makes one."""
        with self._lock:
            connection = self._usable()
            if connection is None and self.most == 1 and self.shared is not None:
                connection = self.shared.lay_down()
                if connection is None:
                    return self._queue(self._wanting)
                self.shared = None
                if connection.is_closed:
                    connection = None
            if connection is not None:
                self._in_use.add(connection)
                return connection
            room = self.most - (1 if self.version != 1 and self.most > 1 else 0)
            is_connecting = self.most == 1 and self._is_connecting
            if is_connecting or len(self._in_use) + self._promised >= room:
                return self._queue(self._wanting)
            self._promised += 1
            return None

    def put_own(self, connection: Connection | None) -> None:
        """Answers `take_own`: here is the connection, or there was none to be had."""
        with self._lock:
            self._promised -= 1
            if connection is not None:
                self._in_use.add(connection)
            else:
                self._open_next()

    def give(self, connection: Connection) -> None:
        """Takes a connection back, or closes it where it is of no more use."""
        with self._lock:
            self._in_use.discard(connection)
            if self._closed or not connection.is_clean or connection.version != (self.version or connection.version):
                connection.close()
            else:
                connection.is_reused = True
                self._idle.append(connection)
            self._open_next()

    def drop(self, connection: Connection) -> None:
        """Closes a connection that was taken."""
        with self._lock:
            self._in_use.discard(connection)
            connection.close()
            self._open_next()

    def withdraw(self, gate: Gate) -> None:
        """Whoever waited at this gate waits no longer; where it was opened at that moment, the next one may go on."""
        with self._lock:
            for line in (self._wanting, self._wanting_shared):
                if gate in line:
                    line.remove(gate)
                    break
            else:
                self._open_next()
            self._note()

    def answered(self) -> None:
        """The shared connection has done a request: it may have room now, or be free."""
        if self._closed:
            # It was being made when the client was closed.
            self._retire()
        with self._lock:
            self._open(self._wanting_shared, 1)
            if self.most == 1:
                self._open(self._wanting, 1)

    def note_room(self) -> None:
        """`answered`, where somebody waits for it."""
        if self.is_waited_for:
            self.answered()

    def adopt(self, connection: Connection) -> None:
        """Takes in a connection that was made to be shared, and cannot be."""
        with self._lock:
            self._idle.append(connection)

    def close(self) -> None:
        """Closes what is idle; what is in use is closed once it no longer is."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._note()
        self._retire()

    def _retire(self) -> None:
        with self._lock:
            shared, self.shared = self.shared, None
        if shared is not None:
            shared.retire()

    def abandon(self) -> None:
        """Closes this process's copies of connections that are its parent's. No lock: whoever held it is not here."""
        shared = [] if self.shared is None else [self.shared.connection]
        for connection in (*shared, *self._idle, *self._in_use):
            connection.close()

    def _usable(self) -> Connection | None:
        """The idle connection that was used last."""
        while self._idle:
            connection = self._idle.pop()
            if not self.waiting.is_readable(connection):
                return connection
            # The server closed it, or said what nobody asked for. There may be another one now, which knows more.
            connection.close()
            if self.version == 1:
                self.doubt_version()
        return None

    def doubt_version(self) -> None:
        """Perhaps there is another server now, that knows more."""
        self.version = self.agreed

    def _queue(self, line: deque[Gate]) -> Gate:
        gate = self.waiting.gate()
        line.append(gate)
        self._note()
        return gate

    def _open_next(self) -> None:
        """A connection for one alone has come free, or room for one."""
        self._open(self._wanting, 1)
        if self.most == 1 and not self._wanting:
            self._open(self._wanting_shared, len(self._wanting_shared))

    def _open(self, line: deque[Gate], count: int) -> None:
        while line and count:
            line.popleft().open()
            count -= 1
        self._note()

    def _note(self) -> None:
        # Where the pool is closed, requests that are done have what they leave closed by `answered`.
        self.is_waited_for = self._closed or bool(self._wanting_shared) or (self.most == 1 and bool(self._wanting))
