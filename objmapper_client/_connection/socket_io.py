"""Non-blocking reads and writes on a connection's socket.

A generator that must wait yields a `Wait`. The runtime resumes it with whether the socket was ready in time.
"""

import array
import socket
import struct
from typing import Any

from objmapper_client._connection.connection import (
    _RIGHTS,
    _SOCKET,
    CHUNK,
    CLOEXEC,
    CONTROL,
    NONBLOCKING,
    Ancillary,
    Connection,
)
from objmapper_client._runtime.descriptors import call_into
from objmapper_client._runtime.effects import PROGRESS_STRIDE, Effects, ResetDeadline
from objmapper_client.address import Address
from objmapper_client.errors import ConnectionFailed, DescriptorLimit, RemoteProtocolError, RequestTimeout

_FD = struct.Struct("@i")


class DescriptorRefused(Exception):
    """The server's socket accepts no descriptors. Nothing was sent."""


def lost_descriptor_error() -> DescriptorLimit:
    """The error for a passed descriptor that the kernel dropped because this process is at its limit."""
    return DescriptorLimit(
        "this process has no number left for a passed descriptor; raise the limit (ulimit -n) or close descriptors"
    )


def only_descriptor(ancillary: Ancillary) -> int | None:
    """The received descriptor if there is exactly one, else None."""
    if len(ancillary) == 1:
        level, kind, data = ancillary[0]
        if level == _SOCKET and kind == _RIGHTS and len(data) == _FD.size:
            found: int = _FD.unpack(data)[0]
            return found
    return None


def send(
    connection: Connection, data: bytes | memoryview, passed: int | None = None, *, is_last: bool = True
) -> Effects[None]:
    """Sends all of `data`, and the descriptor `passed` with its first byte.

    `is_last`: this completes the request, and the server may execute it. Raises DescriptorRefused, ConnectionFailed,
    RequestTimeout.
    """
    left = memoryview(data)
    while left:
        # Set before the call: if a signal handler raises right after it, the request must not look like an unsent one.
        connection.is_request_started = True
        was_sent, connection.is_sent = connection.is_sent, connection.is_sent or is_last
        try:
            if passed is None:
                sent = connection.socket.send(left, NONBLOCKING)
            else:
                sent = send_with_descriptor(connection.socket, left, passed, NONBLOCKING)
        except BlockingIOError:
            connection.is_sent = was_sent
            if not (yield connection.writable):
                raise timeout_error(connection.address) from None
        except PermissionError as error:
            connection.is_sent = was_sent
            if passed is None:
                raise io_error(connection.address, error) from error
            raise DescriptorRefused from error
        except OSError as error:
            connection.is_sent = was_sent
            raise io_error(connection.address, error) from error
        else:
            passed = None
            if sent < len(left):
                connection.is_sent = was_sent
            left = left[sent:]
            yield from note_progress(connection, sent)


def send_with_descriptor(sock: socket.socket, data: bytes | memoryview, passed: int, flags: int) -> int:
    """Sends bytes with a descriptor on the first one. Returns the number of bytes sent."""
    return sock.sendmsg([data], [(_SOCKET, _RIGHTS, array.array("i", [passed]))], flags)


def note_progress(connection: Connection, length: int) -> Effects[None]:
    """Counts transferred bytes. Restarts the time limit after every PROGRESS_STRIDE bytes."""
    connection.bytes_since_reset += length
    if connection.bytes_since_reset >= PROGRESS_STRIDE:
        connection.bytes_since_reset = 0
        yield _PROGRESS


_PROGRESS = ResetDeadline()


def receive(connection: Connection) -> Effects[bytes]:
    """Waits for bytes. Appends received descriptors to the connection's."""
    return (yield from receive_some(connection, CHUNK))


def receive_some(connection: Connection, limit: int) -> Effects[bytes]:
    """Waits for 1 to `limit` bytes."""
    # Right after a request the socket is empty: poll first, which saves a read that would fail.
    must_wait = not connection.has_response
    while True:
        if must_wait and not (yield connection.readable):
            raise timeout_error(connection.address)
        try:
            if connection.is_unix:
                call_into(connection.inbox, connection.socket.recvmsg, limit, CONTROL, CLOEXEC | NONBLOCKING)
                data = b""
            else:
                data = connection.socket.recv(limit, NONBLOCKING)
        except BlockingIOError:
            must_wait = True
            continue
        except OSError as error:
            raise io_error(connection.address, error) from error
        if connection.is_unix:
            data = _unpack(connection)
        yield from _note_received(connection, len(data))
        return data


def receive_now(connection: Connection, limit: int = CHUNK) -> bytes:
    """The bytes that can be read now, up to `limit`; b"" if there are none or the connection has ended."""
    limit = min(limit, CHUNK)
    try:
        if connection.is_unix:
            call_into(connection.inbox, connection.socket.recvmsg, limit, CONTROL, CLOEXEC | NONBLOCKING)
            data = b""
        else:
            data = connection.socket.recv(limit, NONBLOCKING)
    except OSError:
        # Nothing to read, or a broken connection: the next send or wait reports that.
        return b""
    if connection.is_unix:
        data = _unpack(connection)
    connection.has_response |= bool(data)
    return data


def receive_into(connection: Connection, buffer: memoryview) -> Effects[int]:
    """Waits for bytes of content and stores them in `buffer`. Returns their number."""
    while True:
        try:
            if connection.is_unix:
                call_into(connection.inbox, connection.socket.recvmsg_into, [buffer], CONTROL, CLOEXEC | NONBLOCKING)
                length = 0
            else:
                length = connection.socket.recv_into(buffer, 0, NONBLOCKING)
        except BlockingIOError:
            if not (yield connection.readable):
                raise timeout_error(connection.address) from None
            continue
        except OSError as error:
            raise io_error(connection.address, error) from error
        if connection.is_unix:
            length = _unpack(connection)
        yield from _note_received(connection, length)
        return length


def _unpack(connection: Connection) -> Any:
    """Empties the inbox: returns the message's bytes; its descriptors go to the connection. Raises DescriptorLimit."""
    received, is_lost = connection.unpack_inbox()
    if is_lost:
        raise lost_descriptor_error()
    return received


def _note_received(connection: Connection, length: int) -> Effects[None]:
    """Records a read. Raises ConnectionFailed if it was the end of the connection."""
    if length == 0:
        raise closed_error(connection.address, midway=connection.has_response)
    connection.has_response = True
    yield from note_progress(connection, length)


def check_descriptor(connection: Connection) -> None:
    """Raises RemoteProtocolError unless the server passed exactly one descriptor."""
    if len(connection.descriptors) != 1:
        raise RemoteProtocolError(
            f"{connection.address}: the server passed {len(connection.descriptors)} descriptors where one was expected"
        )


def refuse_descriptors(connection: Connection) -> None:
    """Raises RemoteProtocolError if the server passed a descriptor."""
    if connection.descriptors:
        raise RemoteProtocolError(f"{connection.address}: the server passed a descriptor that was not requested")


def timeout_error(address: Address) -> RequestTimeout:
    """The error for a response that did not come in time."""
    return RequestTimeout(f"{address}: no answer in time")


def io_error(address: Address, error: OSError) -> ConnectionFailed:
    """The error for a connection on which a system call failed."""
    return ConnectionFailed(f"{address}: the connection broke ({error.strerror})")


def interrupted_error(address: Address) -> ConnectionFailed:
    """The error for requests on a shared connection that a signal handler interrupted."""
    return ConnectionFailed(f"{address}: a signal interrupted the exchange")


def closed_error(address: Address, *, midway: bool) -> ConnectionFailed:
    """The error for a connection that the server closed; `midway`: after the first byte of a response."""
    where = " in the middle of an answer" if midway else ""
    return ConnectionFailed(f"{address}: the server closed the connection{where}")
