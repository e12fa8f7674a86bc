"""Resolves host names within a time limit: one daemon thread a host."""

import socket
import threading
from collections.abc import Callable
from typing import Any

from objmapper_client._runtime.fork import forks


class Lookup:
    """A look-up of a host. Its result is a list of addresses as `socket.getaddrinfo` returns it, or the error."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._done = threading.Event()
        self._result: Any = None
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def result(self, seconds: float) -> Any:
        """Waits for the result. Returns False after `seconds`."""
        return self._result if self._done.wait(seconds) else False

    def when_done(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once the look-up has ended; possibly in another thread."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def run(self, flags: int = 0) -> Any:
        """Performs the look-up in this thread, stores its result, and calls the callbacks."""
        try:
            self._result = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            # ValueError: an invalid name, such as one with a label of more than 63 letters (UnicodeError).
            self._result = error
        with self._lock:
            self._done.set()
        for callback in self._callbacks:
            callback()
        return self._result


_lookups: dict[tuple[str, int, int], Lookup] = {}


def look_up(host: str, port: int) -> Lookup:
    """Starts a look-up, or joins a pending one for the same host: a hanging resolver costs one thread a host."""
    numeric = Lookup(host, port)
    if not isinstance(numeric.run(socket.AI_NUMERICHOST), socket.gaierror):
        # A numeric address or an invalid name: no thread is needed.
        return numeric
    # A forked child does not have its parent's threads.
    key = (host, port, forks.generation)
    created = Lookup(host, port)
    lookup = _lookups.setdefault(key, created)
    if lookup is created:

        def run() -> None:
            try:
                created.run()
            finally:
                _lookups.pop(key, None)

        try:
            threading.Thread(target=run, name="objmapper-lookup", daemon=True).start()
        except BaseException:
            _lookups.pop(key, None)
            raise
    return lookup
