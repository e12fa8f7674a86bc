"""A server that answers what a test tells it to, byte by byte: for answers that no good server gives."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fixed_reply_server(answer: bytes, *, keep_open: bool) -> Iterator[str]:
    """Yield the address of a server that gives `answer` to each request; then it holds the connection, or closes it.

    Each receive is one request: those of these tests fit one packet.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []
        thread = threading.Thread(target=_serve, args=(listener, answer, keep_open, connections))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # Wakes accept(), which close() would not.
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            thread.join()


def _serve(listener: socket.socket, answer: bytes, keep_open: bool, connections: list[socket.socket]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            break
        connections.append(connection)
        with connection:
            try:
                while request := connection.recv(8192):
                    if request.startswith(b"OBJM"):
                        # As a server does that knows version 1 only: the client comes back with that.
                        connection.sendall(b"\x20\0\x09version 1")
                        break
                    connection.sendall(answer)
                    if not keep_open:
                        break
                # Closing with bytes unread resets the connection, and the answer may be lost.
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(5)
                while connection.recv(8192):
                    pass
            except OSError:
                continue
