"""The addresses of a host, looked up within a time limit: one thread a host, which the process does not wait for."""

import socket
import threading
from collections.abc import Callable
from typing import Any

from objmapper_client._runtime.fork import forks


class Lookup:
    """The addresses of a host: a list of them as getaddrinfo(3) has it, or the error."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._came = threading.Event()
        self._found: Any = None
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def result(self, seconds: float) -> Any:
        """The addresses or the error; False where they are not known in time."""
        return self._found if self._came.wait(seconds) else False

    def when_done(self, callback: Callable[[], object]) -> None:
        """Calls this once the addresses, or the error, are known; perhaps in another thread."""
        with self._lock:
            if not self._came.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def look(self, flags: int = 0) -> Any:
        """Looks the host up, and notes what was found."""
        try:
            self._found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            # ValueError: a name that no host can have, such as a label of more than 63 letters (UnicodeError).
            self._found = error
        with self._lock:
            self._came.set()
        for callback in self._callbacks:
            callback()
        return self._found


_under_way: dict[tuple[str, int, int], Lookup] = {}


def look_up(host: str, port: int) -> Lookup:
    """Begins to look a host up, or joins a look-up that is under way: a resolver that hangs costs one thread a host."""
    numeric = Lookup(host, port)
    if not isinstance(numeric.look(socket.AI_NUMERICHOST), socket.gaierror):
        # A number, or a name that cannot be: no thread is needed.
        return numeric
    # A child after a fork does not have its parent's threads.
    key = (host, port, forks.made)
    mine = Lookup(host, port)
    found = _under_way.setdefault(key, mine)
    if found is mine:

        def look() -> None:
            try:
                mine.look()
            finally:
                _under_way.pop(key, None)

        try:
            threading.Thread(target=look, name="objmapper-lookup", daemon=True).start()
        except BaseException:
            _under_way.pop(key, None)
            raise
    return found
