"""Which connection a request runs on: the one that requests share, or one of its own for a content. It never waits.

Of the connections that a client may have, one is shared; the others carry one content at a time. Where there may be only
one it is both, in turn. A server of version 1 has no shared one.
"""

import threading
from collections import deque
from typing import Protocol

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

    def gate(self) -> Gate:
        """What one waits at until another opens it."""

    def share(self, connection: Connection) -> Multiplex:
        """Has requests share a connection."""

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""


class Pool:
    """The connections of one process: after a fork the child starts with a new one and abandons the parent's."""

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
        self._lock = threading.Lock()
        #: What the server speaks: None where it has not been asked yet.
        self.version: int | None = None
        self.shared: Multiplex | None = None
        self._is_connecting = False
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        #: Connections of one's own that are being made.
        self._promised = 0
        self._wanting: deque[Gate] = deque()
        self._wanting_shared: list[Gate] = []
        self._closed = False

    def __len__(self) -> int:
        """How many connections there are."""
        return (self.shared is not None) + len(self._idle) + len(self._in_use)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody wants to be told when the shared connection has room, or nothing to do."""
        return bool(self._wanting_shared) or (self.most == 1 and bool(self._wanting))

    def take_shared(self) -> Multiplex | Gate | None:
        """The connection that requests share; a gate to wait at and then ask again; or None: the caller makes one."""
        with self._lock:
            shared = self.shared
            if shared is not None:
                if shared.is_closing:
                    # It goes on for those who still wait for its answers.
                    self.shared = None
                elif shared.has_room and not (self.most == 1 and self._wanting):
                    return shared
                elif all(ask.is_abandoned for ask in shared.under_way.values()) and not shared.has_room:
                    self.shared = None
                    shared.close()
                else:
                    return self._queue(self._wanting_shared)
            if self._is_connecting:
                return self._queue(self._wanting_shared)
            if self.most == 1:
                if self._in_use or self._promised:
                    return self._queue(self._wanting_shared)
                connection = self._usable()
                if connection is not None:
                    if connection.version == 2:
                        self.shared = self.waiting.share(connection)
                        return self.shared
                    connection.close()
            self._is_connecting = True
            return None

    def put_shared(self, connection: Connection | None) -> Multiplex | None:
        """Answers `take_shared`: here is the connection, or there was none to be had. The latter changes nothing else."""
        with self._lock:
            self._is_connecting = False
            if connection is not None:
                self.version = 2
                self.shared = self.waiting.share(connection)
            self._open_all()
            return self.shared

    def take_own(self) -> Connection | Gate | None:
        """A connection for the caller alone; a gate to wait at and then ask again; or None: the caller makes one."""
        with self._lock:
            connection = self._usable()
            if connection is None:
                shared = self.shared
                if self.most == 1 and shared is not None:
                    if any(not ask.is_abandoned for ask in shared.under_way.values()):
                        return self._queue(self._wanting)
                    self.shared = None
                    if shared.under_way or shared.is_closing:
                        shared.close()
                    else:
                        connection = shared.connection
                else:
                    reserved = 0 if self.version == 1 or self.most == 1 else 1
                    if len(self._in_use) + self._promised + (self.most == 1 and self._is_connecting) >= (
                        self.most - reserved
                    ):
                        return self._queue(self._wanting)
            if connection is None:
                self._promised += 1
                return None
            connection.is_reused = True
            self._in_use.add(connection)
            return connection

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
            if gate in self._wanting:
                self._wanting.remove(gate)
            elif gate in self._wanting_shared:
                self._wanting_shared.remove(gate)
            else:
                self._open_next()

    def answered(self) -> None:
        """The shared connection has done a request: it may have room now, or be free."""
        with self._lock:
            self._open_all()
            self._open_next()

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
            # The server closed it, or said what nobody asked for.
            connection.close()
        return None

    def _queue(self, line: "deque[Gate] | list[Gate]") -> Gate:
        gate = self.waiting.gate()
        line.append(gate)
        return gate

    def _open_next(self) -> None:
        if self._wanting:
            self._wanting.popleft().open()
        elif self.most == 1:
            self._open_all()

    def _open_all(self) -> None:
        while self._wanting_shared:
            self._wanting_shared.pop().open()
