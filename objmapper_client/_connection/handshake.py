"""A new connection, and what both sides agree on: version 2 with its extension, or version 1."""

import contextlib
import os
import socket

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.socket_io import receive, send
from objmapper_client._connection.sockets import new_socket, resolve, unreachable
from objmapper_client._runtime.effects import Effects, Wait
from objmapper_client.address import Address, TcpAddress, UnixAddress
from objmapper_client.errors import (
    ConnectionFailed,
    DescriptorLimit,
    LocalProtocolError,
    RemoteProtocolError,
    RequestTimeout,
    error_for,
)
from objmapper_client.protocol.hello import HELLO_ACK_SIZE, Capability, HelloAck, decode_hello_ack, encode_hello
from objmapper_client.protocol.v1 import ErrorReply, Status
from objmapper_client.protocol.v2_requests import CLOSE

#: Requests under way on one connection. Each may hold a descriptor here and one in the server.
PIPELINE = 256
CAPABILITIES = Capability.OUT_OF_ORDER | Capability.PIPELINING | Capability.EXTENDED
_BACKLOG_RETRY_INTERVAL = 0.002


class ClosedInHandshake(ConnectionFailed):
    """The server closed the connection before it answered the hello."""


def connect(address: Address) -> Effects[Connection]:
    """A new connection; over UDP a socket that hears one server. Raises ConnectionFailed, RequestTimeout."""
    if isinstance(address, UnixAddress):
        return (yield from _connect_unix(address))
    if isinstance(address, TcpAddress):
        return (yield from _connect_tcp(address))
    from objmapper_client._udp import connection

    return (yield from connection.connect(address))


def negotiate(connection: Connection) -> Effects[bool]:
    """Agrees on version 2 with its extension. False where the server has none: then this connection is of no more use.

    Raises what a server answers that has no room, HungUp, RemoteProtocolError, ConnectionFailed, RequestTimeout.
    """
    data = b""
    # A server that refuses the connection may have closed it already; its word is still there to be read.
    with contextlib.suppress(ConnectionFailed):
        yield from send(connection, encode_hello(CAPABILITIES, PIPELINE))
    while True:
        try:
            data += yield from receive(connection)
        except ConnectionFailed as error:
            if data:
                raise
            raise ClosedInHandshake(
                f"{connection.address}: the server closed the connection before it said hello"
            ) from error
        found = decode_hello_ack(data)
        if found is not None:
            break
    behind = data[HELLO_ACK_SIZE:] if isinstance(found, HelloAck) else b""
    if connection.descriptors or (behind and behind[0] != CLOSE):
        raise RemoteProtocolError(f"{connection.address}: the server sent more than it was asked for")
    match found:
        case HelloAck(capabilities, max_pipeline):
            if Capability.EXTENDED not in capabilities:
                return False
            if behind:
                raise ConnectionFailed(f"{connection.address}: the server closes the connection, and takes no requests")
            connection.version = 2
            connection.max_pipeline = max(1, min(PIPELINE, max_pipeline))
            return True
        case ErrorReply(Status.PROTOCOL_ERROR | Status.VERSION_MISMATCH | Status.CAPABILITY_ERROR):
            return False
        case ErrorReply(status, message):
            raise error_for(status, message, str(connection.address))


def _connect_unix(address: UnixAddress) -> Effects[Connection]:
    if not hasattr(socket, "AF_UNIX"):
        raise LocalProtocolError(f"{address}: this platform has no Unix sockets; use tcp://")
    sock = new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(address.path)
                return Connection(sock, address)
            except BlockingIOError:
                # The server's backlog is full, and nothing tells when it no longer is.
                if not (yield Wait(seconds=_BACKLOG_RETRY_INTERVAL)):
                    raise RequestTimeout(f"{address}: no connection in time; the server's backlog is full") from None
            except OSError as error:
                raise unreachable(address, error) from error
    except BaseException:
        sock.close()
        raise


def _connect_tcp(address: TcpAddress) -> Effects[Connection]:
    last = ConnectionFailed(f"{address}: the host has no address")
    for family, kind, number, _, target in (yield from resolve(address)):
        try:
            sock = new_socket(family, kind, number)
        except DescriptorLimit:
            raise
        except OSError as error:
            # A family that this kernel has not.
            last = unreachable(address, error)
            continue
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A host that has vanished is noticed also by those who only wait.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                sock.connect(target)
            except (BlockingIOError, InterruptedError):
                if not (yield Wait(sock.fileno(), writable=True)):
                    raise RequestTimeout(f"{address}: no connection in time") from None
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return Connection(sock, address)
            last = unreachable(address, OSError(code, os.strerror(code)))
            sock.close()
        except OSError as error:
            sock.close()
            if isinstance(error, RequestTimeout):
                raise
            last = unreachable(address, error)
        except BaseException:
            sock.close()
            raise
    raise last
