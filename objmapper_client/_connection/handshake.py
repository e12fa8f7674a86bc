"""Connects to a server and negotiates the protocol: version 2 with its extension, or version 1."""

import contextlib
import os
import socket

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.open_socket import new_socket, resolve, unreachable_error
from objmapper_client._connection.socket_io import receive, send
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

#: Pending requests on one connection. Each may hold a descriptor in the client and one in the server.
MAX_PIPELINE = 256
CAPABILITIES = Capability.OUT_OF_ORDER | Capability.PIPELINING | Capability.EXTENDED
_BACKLOG_RETRY_INTERVAL = 0.002


class ClosedInHandshake(ConnectionFailed):
    """The server closed the connection before it acknowledged the hello."""


def connect(address: Address) -> Effects[Connection]:
    """Connects to the server; over UDP, creates a connected socket. Raises ConnectionFailed, RequestTimeout."""
    if isinstance(address, UnixAddress):
        return (yield from _connect_unix(address))
    if isinstance(address, TcpAddress):
        return (yield from _connect_tcp(address))
    from objmapper_client._udp import connection

    return (yield from connection.connect(address))


def negotiate(connection: Connection) -> Effects[bool]:
    """Negotiates version 2 with its extension. Returns False if the server lacks it; the connection is unusable then.

    Raises ServerBusy, ClosedInHandshake, RemoteProtocolError, ConnectionFailed, RequestTimeout.
    """
    data = b""
    # A server that refuses the connection may have closed it already. Its error reply can still be read.
    with contextlib.suppress(ConnectionFailed):
        yield from send(connection, encode_hello(CAPABILITIES, MAX_PIPELINE))
    while True:
        try:
            data += yield from receive(connection)
        except ConnectionFailed as error:
            if data:
                raise
            raise ClosedInHandshake(
                f"{connection.address}: the server closed the connection during the handshake"
            ) from error
        reply = decode_hello_ack(data)
        if reply is not None:
            break
    remainder = data[HELLO_ACK_SIZE:] if isinstance(reply, HelloAck) else b""
    if connection.descriptors or (remainder and remainder[0] != CLOSE):
        raise RemoteProtocolError(f"{connection.address}: the server sent more than requested")
    match reply:
        case HelloAck(capabilities, max_pipeline):
            if Capability.EXTENDED not in capabilities:
                return False
            if remainder:
                raise ConnectionFailed(
                    f"{connection.address}: the server is closing the connection and accepts no more requests"
                )
            connection.version = 2
            connection.max_pipeline = max(1, min(MAX_PIPELINE, max_pipeline))
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
                # The server's backlog is full. The kernel does not signal when that ends, so poll.
                if not (yield Wait(seconds=_BACKLOG_RETRY_INTERVAL)):
                    raise RequestTimeout(f"{address}: no connection in time; the server's backlog is full") from None
            except OSError as error:
                raise unreachable_error(address, error) from error
    except BaseException:
        sock.close()
        raise


def _connect_tcp(address: TcpAddress) -> Effects[Connection]:
    last_error = ConnectionFailed(f"{address}: the host has no address")
    for family, kind, number, _, target in (yield from resolve(address)):
        try:
            sock = new_socket(family, kind, number)
        except DescriptorLimit:
            raise
        except OSError as error:
            # This kernel lacks the address family.
            last_error = unreachable_error(address, error)
            continue
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Keep-alive detects a vanished host while the client only waits for a response.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                sock.connect(target)
            except (BlockingIOError, InterruptedError):
                if not (yield Wait(sock.fileno(), writable=True)):
                    raise RequestTimeout(f"{address}: no connection in time") from None
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return Connection(sock, address)
            last_error = unreachable_error(address, OSError(code, os.strerror(code)))
            sock.close()
        except OSError as error:
            sock.close()
            if isinstance(error, RequestTimeout):
                raise
            last_error = unreachable_error(address, error)
        except BaseException:
            sock.close()
            raise
    raise last_error
