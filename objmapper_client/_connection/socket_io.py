"""Non-blocking steps on a connection's socket.

A step that must wait yields a `Wait`; the runtime resumes it with whether it came in time.
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
from objmapper_client._runtime.descriptors import take_in
from objmapper_client._runtime.effects import STRIDE, Effects, ResetDeadline
from objmapper_client.address import Address
from objmapper_client.errors import ConnectionFailed, DescriptorLimit, RemoteProtocolError, RequestTimeout

_NUMBER = struct.Struct("@i")


class DescriptorRefused(Exception):
    """The server's socket takes no descriptors; nothing was sent."""


def truncated_error() -> DescriptorLimit:
    """The error for a passed descriptor that this process could not take."""
    return DescriptorLimit(
        "a passed descriptor did not fit into this process: raise its limit (ulimit -n) or close descriptors"
    )


def only_descriptor(ancillary: Ancillary) -> int | None:
    """The descriptor, where just one came."""
    if len(ancillary) == 1:
        level, kind, data = ancillary[0]
        if level == _SOCKET and kind == _RIGHTS and len(data) == _NUMBER.size:
            found: int = _NUMBER.unpack(data)[0]
            return found
    return None


def send(
    connection: Connection, data: bytes | memoryview, passed: int | None = None, *, is_last: bool = True
) -> Effects[None]:
    """Sends all of `data`, and the descriptor `passed` with its first byte. Raises NotPassed, ConnectionFailed.

    `is_last`: the request is whole then, and the server may execute it.
    """
    left = memoryview(data)
    while left:
        # Before the call: an exception right behind it must not make an executed request look like one never sent.
        connection.is_begun = True
        was_sent, connection.is_sent = connection.is_sent, connection.is_sent or is_last
        try:
            if passed is None:
                sent = connection.socket.send(left, NONBLOCKING)
            else:
                sent = send_with(connection.socket, left, passed, NONBLOCKING)
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


def send_with(sock: socket.socket, data: bytes | memoryview, passed: int, flags: int) -> int:
    """Sends bytes with a descriptor on the first one. Returns how many went."""
    return sock.sendmsg([data], [(_SOCKET, _RIGHTS, array.array("i", [passed]))], flags)


def note_progress(connection: Connection, length: int) -> Effects[None]:
    """Takes note of bytes of a content that moved: with every STRIDE the time limit begins anew."""
    connection.moved += length
    if connection.moved >= STRIDE:
        connection.moved = 0
        yield _PROGRESS


_PROGRESS = ResetDeadline()


def receive(connection: Connection) -> Effects[bytes]:
    """Waits for bytes; descriptors go to the connection's list."""
    return (yield from receive_some(connection, CHUNK))


def receive_some(connection: Connection, most: int) -> Effects[bytes]:
    """Waits for 1 to `most` bytes."""
    # Right after a request there is nothing to read: waiting first saves a call that would fail.
    must_wait = not connection.answered
    while True:
        if must_wait and not (yield connection.readable):
            raise timeout_error(connection.address)
        try:
            if connection.is_unix:
                take_in(connection.inbox, connection.socket.recvmsg, most, CONTROL, CLOEXEC | NONBLOCKING)
                data = b""
            else:
                data = connection.socket.recv(most, NONBLOCKING)
        except BlockingIOError:
            must_wait = True
            continue
        except OSError as error:
            raise io_error(connection.address, error) from error
        if connection.is_unix:
            data = _take_buffered(connection)
        yield from _note_received(connection, len(data))
        return data


def receive_now(connection: Connection, most: int = CHUNK) -> bytes:
    """What has come by now, if anything, up to `most` bytes; the end counts as nothing."""
    most = min(most, CHUNK)
    try:
        if connection.is_unix:
            take_in(connection.inbox, connection.socket.recvmsg, most, CONTROL, CLOEXEC | NONBLOCKING)
            data = b""
        else:
            data = connection.socket.recv(most, NONBLOCKING)
    except OSError:
        # Nothing yet, or nothing any more: the next send or wait meets that.
        return b""
    if connection.is_unix:
        data = _take_buffered(connection)
    connection.answered |= bool(data)
    return data


def receive_into(connection: Connection, buffer: memoryview) -> Effects[int]:
    """Waits for bytes of a content and puts them into `buffer`. Returns how many."""
    while True:
        try:
            if connection.is_unix:
                take_in(connection.inbox, connection.socket.recvmsg_into, [buffer], CONTROL, CLOEXEC | NONBLOCKING)
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
            length = _take_buffered(connection)
        yield from _note_received(connection, length)
        return length


def _take_buffered(connection: Connection) -> Any:
    """What a call brought, without its descriptors, which the connection has then. Raises DescriptorLimit."""
    came, is_lost = connection.take_back()
    if is_lost:
        raise truncated_error()
    return came


def _note_received(connection: Connection, length: int) -> Effects[None]:
    """Takes note of what a call brought."""
    if length == 0:
        raise closed_error(connection.address, midway=connection.answered)
    connection.answered = True
    yield from note_progress(connection, length)


def check_descriptor(connection: Connection) -> None:
    """Raises RemoteProtocolError unless exactly one descriptor came."""
    if len(connection.descriptors) != 1:
        raise RemoteProtocolError(
            f"{connection.address}: the server passed {len(connection.descriptors)} descriptors where one was due"
        )


def refuse_descriptors(connection: Connection) -> None:
    """Raises RemoteProtocolError where a descriptor came along that was not asked for."""
    if connection.descriptors:
        raise RemoteProtocolError(f"{connection.address}: the server passed a descriptor that was not asked for")


def timeout_error(address: Address) -> RequestTimeout:
    """The error for an answer that did not come in time."""
    return RequestTimeout(f"{address}: no answer in time")


def io_error(address: Address, error: OSError) -> ConnectionFailed:
    """The error for a connection that the system has given up."""
    return ConnectionFailed(f"{address}: the connection broke ({error.strerror})")


def interrupted_error(address: Address) -> ConnectionFailed:
    """The error of a shared connection on which a signal's handler raised in the midst of an exchange."""
    return ConnectionFailed(f"{address}: a signal interrupted the exchange")


def closed_error(address: Address, *, midway: bool) -> ConnectionFailed:
    """The error for a connection that the server has closed."""
    where = " in the middle of an answer" if midway else ""
    return ConnectionFailed(f"{address}: the server closed the connection{where}")
