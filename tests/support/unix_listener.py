"""A Unix socket that accepts connections for a function of the test."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve_connections(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Calls `serve` with each connection, in one thread, until the end of the block. Yields the address."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(64)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            serve(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"unix:{path}"
    finally:
        # Wakes accept(), which close() would not.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(15)
        listener.close()
        path.unlink()
        assert not thread.is_alive()
