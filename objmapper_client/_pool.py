"""Connections that can be used again. It never waits: how many may be in use at once is the facades' concern."""

import os
import threading

from objmapper_client._transport import Connection
from objmapper_client._waiting import is_readable


class Pool:
    """Idle connections of one process. After a fork the child starts with none and leaves the parent's alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._process = os.getpid()
        self._closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """The connection used last, or None where there is none; it is the caller's."""
        if self._process != os.getpid():
            self._begin_again()
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if not is_readable(connection.readable):
                connection.is_reused = True
                return connection
            # The server closed it, or said what nobody asked for.
            connection.close()
        return None

    def give(self, connection: Connection) -> None:
        """Takes a connection back, or closes it where it is of no more use."""
        if self._closed or not connection.is_clean or self._process != os.getpid():
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Closes what is idle; what is in use is closed when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _begin_again(self) -> None:
        with self._lock:
            if self._process != os.getpid():
                # These descriptors are copies: closing them ends nothing for the parent.
                inherited, self._idle = self._idle, []
                self._process = os.getpid()
                for connection in inherited:
                    connection.close()
