"""Non-blocking steps on a socket. A step that must wait yields a `Wait` and is resumed with whether it came in time."""

import array
import os
import socket
from collections.abc import Generator
from typing import Any, TypeVar

from objmapper_client.address import Address, TcpAddress, UnixAddress
from objmapper_client.errors import (
    ConnectionFailed,
    DescriptorLimit,
    LocalProtocolError,
    RemoteProtocolError,
    RequestTimeout,
)
from objmapper_client.protocol import ReplyDecoder

T = TypeVar("T")

# The kernel passes at most 253 descriptors in a message: what was not asked for must be received to be closed.
MOST_DESCRIPTORS = 253
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_CONTROL = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize) if hasattr(socket, "CMSG_SPACE") else 0
_CHUNK = 1 << 16
_BACKLOG_PAUSE = 0.002


class Wait:
    """What a step waits for: a descriptor to become readable or writable, a time to pass, or a host's address.

    A wait for a descriptor may have a `limit`, in seconds: a step whose wait it ends is resumed with None.
    """

    __slots__ = ("descriptor", "host", "limit", "poll", "port", "seconds", "writable")

    def __init__(
        self,
        descriptor: int = -1,
        *,
        writable: bool = False,
        seconds: float | None = None,
        host: str | None = None,
        port: int = 0,
    ) -> None:
        self.descriptor = descriptor
        self.writable = writable
        self.seconds = seconds
        self.host = host
        self.port = port
        self.limit: float | None = None
        # Where a waiter keeps what it made for this descriptor.
        self.poll: Any = None


Ancillary = list[tuple[int, int, bytes]]
_NOTHING: tuple[Ancillary, int] = ([], 0)

# Resumed with False where the time was up, else with True or with what was asked for.
Steps = Generator[Wait, Any, T]


# Waits for nothing; says only whether there is time left.
_A_MOMENT = Wait(seconds=0)


class Connection:
    """A connected socket, what has been read from it, and the descriptors that came along. It owns all of them."""

    __slots__ = (
        "address",
        "answered",
        "decoder",
        "descriptors",
        "is_blocking",
        "is_reused",
        "is_unix",
        "readable",
        "socket",
        "writable",
    )

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.socket = sock
        self.address = address
        self.is_unix = isinstance(address, UnixAddress)
        self.decoder = ReplyDecoder()
        self.descriptors: list[int] = []
        self.readable = Wait(sock.fileno())
        self.writable = Wait(sock.fileno(), writable=True)
        self.is_reused = False
        #: Whether a byte has come since the last request was sent.
        self.answered = False
        #: Whether the socket itself waits, with a time limit of its own: then a step need not be waited for first.
        self.is_blocking = False

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.socket.close()

    @property
    def is_clean(self) -> bool:
        """Whether the last exchange left nothing behind, so that the connection can be used again."""
        return self.decoder.is_empty and not self.descriptors


def connect(address: Address) -> Steps[Connection]:
    """A new connection. Raises ConnectionFailed, RequestTimeout."""
    if isinstance(address, UnixAddress):
        return (yield from _connect_unix(address))
    if isinstance(address, TcpAddress):
        return (yield from _connect_tcp(address))
    raise LocalProtocolError(f"{address}: there are no connections over UDP")


def _connect_unix(address: UnixAddress) -> Steps[Connection]:
    if not hasattr(socket, "AF_UNIX"):
        raise LocalProtocolError(f"{address}: this platform has no Unix sockets; use tcp://")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(address.path)
                return Connection(sock, address)
            except BlockingIOError:
                # The server's backlog is full, and nothing tells when it no longer is.
                if not (yield Wait(seconds=_BACKLOG_PAUSE)):
                    raise RequestTimeout(f"{address}: no connection in time; the server's backlog is full") from None
            except OSError as error:
                raise _unreachable(address, error) from error
    except BaseException:
        sock.close()
        raise


def _connect_tcp(address: TcpAddress) -> Steps[Connection]:
    found = yield Wait(host=address.host, port=address.port)
    if found is False:
        raise RequestTimeout(f"{address}: the host's address was not found in time")
    if isinstance(found, OSError):
        raise ConnectionFailed(f"{address}: unknown host ({found.strerror})") from found
    last: ConnectionFailed | None = None
    for family, kind, number, _, target in found:
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                sock.connect(target)
            except (BlockingIOError, InterruptedError):
                if not (yield Wait(sock.fileno(), writable=True)):
                    raise RequestTimeout(f"{address}: no connection in time") from None
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return Connection(sock, address)
            last = _unreachable(address, OSError(code, os.strerror(code)))
            sock.close()
        except OSError as error:
            sock.close()
            if isinstance(error, RequestTimeout):
                raise
            last = _unreachable(address, error)
        except BaseException:
            sock.close()
            raise
    raise last or ConnectionFailed(f"{address}: the host has no address")


def _unreachable(address: Address, error: OSError) -> ConnectionFailed:
    return ConnectionFailed(f"{address}: server not reached ({error.strerror}); is it running?")


def send(connection: Connection, data: bytes) -> Steps[None]:
    """Sends all of `data`."""
    connection.answered = False
    left = memoryview(data)
    while left:
        try:
            sent = connection.socket.send(left, _NOSIGNAL)
        except BlockingIOError:
            if connection.is_blocking or not (yield connection.writable):
                raise _too_late(connection) from None
        except OSError as error:
            raise _broken(connection, error) from error
        else:
            if sent == len(left):
                return
            left = left[sent:]


def receive(connection: Connection) -> Steps[None]:
    """Waits for bytes and feeds them to the connection's decoder; descriptors go to its list."""
    data = yield from _receive(connection, _CHUNK)
    connection.decoder.feed(data)


def receive_some(connection: Connection, most: int) -> Steps[bytes]:
    """Waits for 1 to `most` bytes of a content."""
    return (yield from _receive(connection, most))


def _receive(connection: Connection, most: int) -> Steps[bytes]:
    while True:
        # Right after a request there is nothing to read: waiting first saves a call that would fail.
        if not connection.is_blocking and not (yield connection.readable):
            raise _too_late(connection)
        ancillary, flags = _NOTHING
        try:
            if connection.is_unix:
                data, ancillary, flags, _ = connection.socket.recvmsg(most, _CONTROL, _CLOEXEC)
            else:
                data = connection.socket.recv(most)
        except BlockingIOError:
            yield from _not_yet(connection)
            continue
        except OSError as error:
            raise _broken(connection, error) from error
        yield from _came(connection, len(data), ancillary, flags)
        return data


def receive_into(connection: Connection, buffer: memoryview) -> Steps[int]:
    """Waits for bytes of a content and puts them into `buffer`. Returns how many."""
    while True:
        if not connection.is_blocking and not (yield connection.readable):
            raise _too_late(connection)
        ancillary, flags = _NOTHING
        try:
            if connection.is_unix:
                length, ancillary, flags, _ = connection.socket.recvmsg_into([buffer], _CONTROL, _CLOEXEC)
            else:
                length = connection.socket.recv_into(buffer)
        except BlockingIOError:
            yield from _not_yet(connection)
            continue
        except OSError as error:
            raise _broken(connection, error) from error
        yield from _came(connection, length, ancillary, flags)
        return length


def _not_yet(connection: Connection) -> Steps[None]:
    """A call found nothing: with a socket that waits, its time limit has passed."""
    if connection.is_blocking:
        raise _too_late(connection)
    yield from ()


def _came(connection: Connection, length: int, ancillary: Ancillary, flags: int) -> Steps[None]:
    """Takes note of what a call brought."""
    if ancillary or flags:
        _keep_descriptors(connection, ancillary, flags)
    if length == 0:
        midway = " in the middle of an answer" if connection.answered else ""
        raise ConnectionFailed(f"{connection.address}: the server closed the connection{midway}")
    if connection.answered and connection.is_blocking and not (yield _A_MOMENT):
        # A server that trickles renews the socket's own limit, never that of the request.
        raise _too_late(connection)
    connection.answered = True


def _keep_descriptors(connection: Connection, ancillary: Ancillary, flags: int) -> None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            connection.descriptors.extend(numbers)
    if flags & socket.MSG_CTRUNC:
        raise DescriptorLimit(
            "a passed descriptor did not fit into this process: raise its limit (ulimit -n) or close descriptors"
        )


def take_descriptor(connection: Connection) -> int:
    """The descriptor of a reply, given away. Raises RemoteProtocolError unless exactly one came."""
    if len(connection.descriptors) != 1:
        raise RemoteProtocolError(
            f"{connection.address}: the server passed {len(connection.descriptors)} descriptors where one was due"
        )
    return connection.descriptors.pop()


def refuse_descriptors(connection: Connection) -> None:
    """Raises RemoteProtocolError where a descriptor came along that was not asked for."""
    if connection.descriptors:
        raise RemoteProtocolError(f"{connection.address}: the server passed a descriptor that was not asked for")


def _too_late(connection: Connection) -> RequestTimeout:
    return RequestTimeout(f"{connection.address}: no answer in time")


def _broken(connection: Connection, error: OSError) -> ConnectionFailed:
    return ConnectionFailed(f"{connection.address}: the connection broke ({error.strerror})")
