"""A server that does as the test says: it reads one request, then plays a script on the connection."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Script = Callable[[socket.socket], None]


@contextmanager
def lying_server(directory: Path, *scripts: Script) -> Iterator[str]:
    """Serves so many connections as there are scripts, one after the other, each with its own."""
    path = directory / "liar.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        for script in scripts:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    connection.recv(5000)
                    script(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"unix:{path}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(15)
        listener.close()
        path.unlink()
        assert not thread.is_alive()


def say(data: bytes) -> Script:
    """Sends the bytes and waits until the client has closed."""

    def script(connection: socket.socket) -> None:
        connection.sendall(data)
        wait_for_end(connection)

    return script


def hang_up(data: bytes = b"") -> Script:
    """Sends the bytes, then closes."""
    return lambda connection: connection.sendall(data)


def passes(data: bytes, count: int, path: str = "/dev/null") -> Script:
    """Sends the bytes with so many descriptors of `path`."""

    def script(connection: socket.socket) -> None:
        descriptors = [os.open(path, os.O_RDONLY) for _ in range(count)]
        try:
            socket.send_fds(connection, [data], descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        wait_for_end(connection)

    return script


def wait_for_end(connection: socket.socket) -> None:
    while connection.recv(5000):
        pass
