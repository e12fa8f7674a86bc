"""A server of version 1 that follows a script of the test instead of the protocol.

It refuses a hello, then reads one request of each connection and plays a script on it.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from objmapper_client.protocol import encode_error
from objmapper_client.protocol.hello import MAGIC
from tests.support.fake_server_v2 import Peer, PeerScript, send_with_descriptors, wait_for_end
from tests.support.unix_listener import serve_connections

Script = Callable[[socket.socket], None]


@contextmanager
def misbehaving_server(directory: Path, *scripts: Script, first_v2: PeerScript | None = None) -> Iterator[str]:
    """Serves one connection of version 1 for each script, in order, after one of version 2 with `first_v2`, if any.

    A further connection fails the test.
    """
    left, unexpected = list(scripts), []
    left_v2 = [] if first_v2 is None else [first_v2]

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            try:
                if left_v2:
                    peer = Peer(connection, 0)
                    peer.agree()
                    left_v2.pop()(peer)
                    return
                received = connection.recv(5000)
                if received.startswith(MAGIC):
                    connection.sendall(encode_error(0x20, "what came is no request"))
                elif received and left:
                    left.pop(0)(connection)
                elif received:
                    unexpected.append(received)
            except OSError:
                # The client has closed the connection.
                return

    with serve_connections(directory / "misbehaving.sock", serve) as address:
        yield address
    assert not unexpected, "the client made one connection more than it should"


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
    """Sends the bytes with `count` descriptors of `path`."""

    def script(connection: socket.socket) -> None:
        send_with_descriptors(connection, data, count, path)
        wait_for_end(connection)

    return script


@contextmanager
def raw_server(directory: Path, answer: bytes) -> Iterator[str]:
    """Answers whatever comes first on a connection with these bytes."""

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            connection.recv(5000)
            say(answer)(connection)

    with serve_connections(directory / "raw.sock", serve) as address:
        yield address
