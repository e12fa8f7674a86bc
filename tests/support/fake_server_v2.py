"""Servers of version 2 with its extension that play a script of the test; a script talks to a `Peer`."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from objmapper_client.protocol.hello import HELLO_SIZE, MAGIC, Capability, encode_hello_ack
from objmapper_client.protocol.v2_requests import CloseFrame, Operation, Request, RequestDecoder
from objmapper_client.protocol.v2_responses import Metadata, encode_response
from tests.support.unix_listener import serve_connections


class Peer:
    """The server's end of a connection of version 2."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.connection = connection
        #: Which of the server's connections it is, from 0 on.
        self.number = number
        self.descriptors: list[int] = []
        self._decoder = RequestDecoder(extended=True)

    def agree(self, *, max_pipeline: int = 1000, capabilities: int = 0x103) -> None:
        """Reads the hello and answers it."""
        hello = self.connection.recv(HELLO_SIZE, socket.MSG_WAITALL)
        assert hello[: len(MAGIC)] == MAGIC
        self.send(encode_hello_ack(Capability(capabilities), max_pipeline, 1))

    def request(self) -> Request:
        """The next request. Raises EOFError where the client has closed."""
        while True:
            found = self._decoder.next()
            if isinstance(found, Request):
                return found
            assert not isinstance(found, CloseFrame), found
            assert found is None, found
            self._decoder.feed(self._receive())

    def _receive(self) -> bytes:
        data, descriptors, _, _ = socket.recv_fds(self.connection, 1 << 16, 253)
        self.descriptors.extend(descriptors)
        if not data:
            raise EOFError
        return data

    def content(self, request: Request) -> bytes:
        """The content of a put."""
        length = request.parameters.content_len or 0
        content = self._decoder.take_content(length)
        while len(content) < length:
            self._decoder.feed(self._receive())
            content += self._decoder.take_content(length - len(content))
        return content

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def answer(
        self,
        request: Request,
        content: bytes = b"",
        *,
        metadata: Metadata | None = None,
        path: str = __file__,
        count: int = 1,
    ) -> None:
        """Answers as one should; a request for a descriptor with `count` of them, of `path`."""
        if metadata is None:
            metadata = Metadata(size=len(content), mtime=7, etag="00000000000000ee")
        if request.operation is Operation.FDPASS:
            head = encode_response(request.id, 0, os.stat(path).st_size, metadata)
            send_with_descriptors(self.connection, head, count, path)
        else:
            self.send(encode_response(request.id, 0, len(content), metadata) + content)

    def refuse(self, request: Request, status: int, message: str = "because") -> None:
        self.send(encode_response(request.id, status, 0, Metadata(message=message)))

    def wait_for_end(self) -> None:
        """Until the client closes."""
        wait_for_end(self.connection)

    def hang_up(self) -> None:
        """Closes the connection, also while another thread reads from it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.connection.close()


PeerScript = Callable[[Peer], None]


def send_with_descriptors(connection: socket.socket, data: bytes, count: int, path: str) -> None:
    """Sends the bytes with `count` descriptors of `path`."""
    descriptors = [os.open(path, os.O_RDONLY) for _ in range(count)]
    try:
        socket.send_fds(connection, [data], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def wait_for_end(connection: socket.socket) -> None:
    while connection.recv(5000):
        pass


@contextmanager
def serve_peers(path: Path, script: PeerScript, peers: list[Peer]) -> Iterator[str]:
    """Plays the script on each connection, in a thread of its own, and adds it to `peers`. Yields the address."""
    threads: list[threading.Thread] = []

    def play(peer: Peer) -> None:
        try:
            script(peer)
        except (EOFError, OSError):
            # The client has closed the connection.
            pass
        finally:
            peer.close()

    def start(connection: socket.socket) -> None:
        connection.settimeout(20)
        peers.append(Peer(connection, len(peers)))
        threads.append(threading.Thread(target=play, args=(peers[-1],)))
        threads[-1].start()

    try:
        with serve_connections(path, start) as address:
            yield address
    finally:
        for peer in peers:
            peer.hang_up()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


class FakeServerV2:
    """A running server: its address, its connections so far, and the errors of its script."""

    def __init__(self) -> None:
        self.address = ""
        self.peers: list[Peer] = []
        self.errors: list[BaseException] = []

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        return len(self.peers)

    def wait_for_connections(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while self.connections < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)


@contextmanager
def fake_server_v2(
    directory: Path, script: PeerScript, *, max_pipeline: int = 1000, name: str = "fake.sock"
) -> Iterator[FakeServerV2]:
    """Agrees on version 2 on each connection, then plays the script. Raises the first error of the script."""
    server = FakeServerV2()

    def play(peer: Peer) -> None:
        try:
            peer.agree(max_pipeline=max_pipeline)
            script(peer)
        except (EOFError, OSError):
            raise
        except BaseException as error:  # shown by the test's own thread
            server.errors.append(error)

    with serve_peers(directory / name, play, server.peers) as server.address:
        yield server
    if server.errors:
        raise server.errors[0]


def answer_all(peer: Peer) -> None:
    """A script: a server as it should be, whose objects are their own URIs."""
    while True:
        request = peer.request()
        content = request.uri.encode()
        peer.content(request)
        parameters = request.parameters
        start = parameters.offset or 0
        end = len(content) if parameters.length is None else start + parameters.length
        if request.operation in (Operation.COPY, Operation.SPLICE):
            metadata = Metadata(size=len(content), mtime=7, etag="00000000000000ee")
            part = content[start:end]
            peer.send(encode_response(request.id, 0, len(part), metadata) + part)
        elif request.operation is Operation.FDPASS:
            peer.answer(request)
        else:
            peer.answer(request, metadata=Metadata(size=len(content), mtime=7, etag="00000000000000ee"))


class HeldReplies:
    """A script that answers at once, and requests of /slow after `release`."""

    def __init__(self) -> None:
        self.slow: list[Request] = []
        self.has_slow = threading.Event()
        self.release = threading.Event()
        self.is_answered = threading.Event()

    def __call__(self, peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.uri.startswith("/slow"):
                self.slow.append(request)
                self.has_slow.set()
                threading.Thread(target=self.answer_late, args=(peer, request)).start()
            else:
                peer.answer(request, request.uri.encode() if request.operation is Operation.COPY else b"")

    def answer_late(self, peer: Peer, request: Request) -> None:
        self.release.wait(20)
        with contextlib.suppress(OSError):
            peer.answer(request, b"" if request.operation is Operation.STAT else b"slow")
        self.is_answered.set()
