"""Servers that follow a script of the test instead of the protocol.

`misbehaving_server` speaks version 1 only: it refuses a hello, then reads one request of each connection and plays a
script on it. `fake_server_v2` agrees on version 2 with its extension; its scripts talk to a `Peer`.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from objmapper_client.protocol import encode_error
from objmapper_client.protocol.hello import HELLO_SIZE, MAGIC, Capability, encode_hello_ack
from objmapper_client.protocol.v2_requests import CloseFrame, Operation, Request, RequestDecoder
from objmapper_client.protocol.v2_responses import NO_METADATA, Metadata, encode_response

Script = Callable[[socket.socket], None]


@contextmanager
def misbehaving_server(directory: Path, *scripts: Script, before: "PeerScript | None" = None) -> Iterator[str]:
    """Serves one connection of version 1 for each script, in order.

    A further one fails the test. `before` these there may be one connection of version 2.
    """
    path = directory / "liar.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    left, too_many = list(scripts), []
    first_of_all = [] if before is None else [before]

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    if first_of_all:
                        peer = Peer(connection, 0)
                        peer.agree()
                        first_of_all.pop()(peer)
                        continue
                    first = connection.recv(5000)
                    if first.startswith(MAGIC):
                        connection.sendall(encode_error(0x20, "what came is no request"))
                    if not first or first.startswith(MAGIC):
                        continue
                    if not left:
                        too_many.append(1)
                        return
                    left.pop(0)(connection)
                except OSError:
                    continue

    with serving(listener, serve):
        yield f"unix:{path}"
    path.unlink()
    assert not too_many, "the client made one connection more than it should"


@contextmanager
def serving(listener: socket.socket, serve: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(15)
        listener.close()
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
    """Sends the bytes with `count` descriptors of `path`."""

    def script(connection: socket.socket) -> None:
        send_with(connection, data, count, path)
        wait_for_end(connection)

    return script


def send_with(connection: socket.socket, data: bytes, count: int, path: str) -> None:
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
def raw_server(directory: Path, answer: bytes) -> Iterator[str]:
    """Answers whatever comes first on a connection with these bytes."""
    path = directory / "raw.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                connection.recv(5000)
                say(answer)(connection)

    with serving(listener, serve):
        yield f"unix:{path}"
    path.unlink()


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
            send_with(self.connection, head, count, path)
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


class FakeServerV2:
    """A server of version 2 whose every connection plays a script, in a thread of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        #: How many connections there were.
        self.connections = 0
        #: What went wrong in scripts, other than the client's hanging up.
        self.errors: list[BaseException] = []
        self.peers: list[Peer] = []

    def wait_for_connections(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while self.connections < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)


@contextmanager
def fake_server_v2(
    directory: Path, script: PeerScript, *, max_pipeline: int = 1000, name: str = "pretend.sock"
) -> Iterator[FakeServerV2]:
    """Serves every connection with the script."""
    path = directory / name
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(64)
    server = FakeServerV2(f"unix:{path}")
    threads: list[threading.Thread] = []

    def play(peer: Peer) -> None:
        try:
            peer.agree(max_pipeline=max_pipeline)
            script(peer)
        except (EOFError, OSError):
            pass
        except BaseException as error:  # shown by the test's own thread
            server.errors.append(error)
        finally:
            peer.close()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            peer = Peer(connection, server.connections)
            server.peers.append(peer)
            server.connections += 1
            threads.append(threading.Thread(target=play, args=(peer,)))
            threads[-1].start()

    with serving(listener, serve):
        yield server
    path.unlink()
    for peer in server.peers:
        peer.hang_up()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    if server.errors:
        raise server.errors[0]


def answers_all(peer: Peer) -> None:
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


__all__ = [
    "NO_METADATA",
    "FakeServerV2",
    "Peer",
    "PeerScript",
    "Script",
    "answers_all",
    "fake_server_v2",
    "hang_up",
    "misbehaving_server",
    "passes",
    "say",
    "send_with",
    "wait_for_end",
]


class Held:
    """A script that answers at once, and requests of /slow after `go`."""

    def __init__(self) -> None:
        self.slow: list[Request] = []
        self.has_slow = threading.Event()
        self.go = threading.Event()
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
        self.go.wait(20)
        with contextlib.suppress(OSError):
            peer.answer(request, b"" if request.operation is Operation.STAT else b"slow")
        self.is_answered.set()
