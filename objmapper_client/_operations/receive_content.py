"""Receives a content on an exclusive connection."""

from objmapper_client._connection import socket_io
from objmapper_client._connection.connection import CHUNK, Connection
from objmapper_client._connection.pending_request import NO_PARAMETER_VALUES, ParameterValues, encode
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.request_runner import with_exclusive
from objmapper_client._runtime.effects import TIME_LEFT, Effects
from objmapper_client.errors import ConnectionFailed, RemoteProtocolError, RequestTimeout, error_for
from objmapper_client.protocol.v1 import ContentReply, DescriptorReply, ErrorReply, Mode, encode_request
from objmapper_client.protocol.v2_requests import CloseAck, CloseFrame, Operation
from objmapper_client.protocol.v2_responses import NO_METADATA, Metadata, ResponseHead

# Bytes of an unwanted rest of a content that the client receives and discards, to keep the connection.
_MAX_DISCARD = 1 << 18


class Download:
    """A response whose head has come. Its descriptor is in the connection, or its content follows there.

    In bytes: `length` of the requested range, `left` of it still to come, `size` of the object, `skip` before the range
    and `surplus` after it (version 1 sends the whole object).
    """

    __slots__ = ("connection", "left", "length", "metadata", "size", "skip", "surplus")

    def __init__(
        self, connection: Connection, content_len: int, metadata: Metadata, requested: ParameterValues
    ) -> None:
        self.connection = connection
        self.metadata = metadata
        self.skip = self.surplus = 0
        self.length = self.left = content_len
        self.size: int | None = metadata.size
        if connection.version == 1:
            # Version 1 has no ranges: the server sends the whole object.
            self.size = content_len
            if requested:
                self._apply_range(content_len, *requested[:2])

    def _apply_range(self, content_len: int, offset: int | None, length: int | None) -> None:
        self.skip = min(offset or 0, content_len)
        rest = content_len - self.skip
        self.length = self.left = rest if length is None else min(rest, length)
        self.surplus = rest - self.length


def begin_download(
    pool: Pool, operation: Operation, uri: str, requested: ParameterValues = NO_PARAMETER_VALUES
) -> Effects[Download]:
    """Requests an object on an exclusive connection, and waits for the head of the response.

    Raises the server's error response. The download owns the connection until `finish_download`, `end_stream` or
    `abort`.
    """
    return (yield from with_exclusive(pool, lambda connection: _begin(pool, connection, operation, uri, requested)))


def _begin(
    pool: Pool, connection: Connection, operation: Operation, uri: str, requested: ParameterValues
) -> Effects[Download]:
    if connection.version == 1:
        return (yield from _begin_v1(pool, connection, operation, uri, requested))
    left: float = yield TIME_LEFT
    connection.last_id = request_id = connection.last_id + 1 & 0xFFFFFFFF
    yield from socket_io.send(connection, encode(request_id, operation, uri, requested, max(left, 0.001)))
    head = yield from receive_head(connection, request_id, operation, uri)
    if operation is Operation.FDPASS:
        socket_io.check_descriptor(connection)
        return Download(connection, 0, head.metadata, requested)
    offset, max_bytes = requested[:2] if requested else (None, None)
    size = head.metadata.size
    if max_bytes is not None and head.content_len > max_bytes:
        raise RemoteProtocolError(
            f"{connection.address}: the server sends {head.content_len} bytes, more than requested"
        )
    if size is not None and head.content_len != (expected := range_length(size, offset or 0, max_bytes)):
        raise RemoteProtocolError(f"{uri}: the server sends {head.content_len} bytes of a content of {expected}")
    return Download(connection, head.content_len, head.metadata, requested)


def range_length(size: int, offset: int, length: int | None) -> int:
    """The number of an object's bytes that a range covers."""
    available = max(0, size - offset)
    return available if length is None else min(available, length)


def receive_head(connection: Connection, request_id: int, operation: Operation, uri: str) -> Effects[ResponseHead]:
    """Waits for the head of the response to the only request on a connection. Raises the server's error response."""
    while (head := next_head(connection, request_id, operation, uri)) is None:
        connection.responses.feed((yield from socket_io.receive(connection)))
    return head


def next_head(
    connection: Connection, request_id: int, operation: Operation, uri: str, *, is_spent: bool = False
) -> ResponseHead | None:
    """The same, of what has come so far. Where `is_spent`, an answer leaves the connection of no more use."""
    while (head := connection.responses.next({request_id: operation}.get)) is not None:
        if isinstance(head, ResponseHead):
            connection.is_closing |= is_spent
            if operation is not Operation.FDPASS or head.status:
                socket_io.refuse_descriptors(connection)
            if head.status:
                raise error_for(head.status, head.metadata.message or "", uri)
            return head
        if isinstance(head, CloseAck):
            raise RemoteProtocolError(
                f"{connection.address}: the server confirmed a close that the client did not send"
            )
        # It answers what it has read, and no more is sent on this connection.
        connection.is_closing = True
    return None


def _begin_v1(
    pool: Pool, connection: Connection, operation: Operation, uri: str, requested: ParameterValues
) -> Effects[Download]:
    mode = Mode(operation.value)
    yield from socket_io.send(connection, encode_request(mode, uri))
    decoder = connection.replies
    while (reply := decoder.next(mode)) is None:
        decoder.feed((yield from socket_io.receive(connection)))
    if pool.version is None and not isinstance(reply, ErrorReply):
        # The server closed the connection after a hello, and answers version 1.
        pool.assume_version_1(is_certain=False)
    match reply:
        case DescriptorReply():
            if not decoder.is_empty:
                raise RemoteProtocolError(f"{connection.address}: the server sent more than requested")
            socket_io.check_descriptor(connection)
            return Download(connection, 0, NO_METADATA, NO_PARAMETER_VALUES)
        case ContentReply(length):
            socket_io.refuse_descriptors(connection)
            return Download(connection, length, NO_METADATA, requested)
        case ErrorReply(status, message):
            socket_io.refuse_descriptors(connection)
            raise error_for(status, message, uri)


def next_chunk(_: Pool, download: Download, max_bytes: int) -> Effects[bytes]:
    """Receives the next 1 to `max_bytes` bytes of a content; b"" at its end."""
    return (yield from _next_piece(download, max_bytes))


def _next_piece(download: Download, max_bytes: int) -> Effects[bytes]:
    while download.skip:
        download.skip -= len((yield from _receive_some(download.connection, min(download.skip, CHUNK))))
    if download.left == 0:
        return b""
    chunk = yield from _receive_some(download.connection, min(max_bytes, download.left))
    download.left -= len(chunk)
    return chunk


def _receive_some(connection: Connection, max_bytes: int) -> Effects[bytes]:
    decoder = connection.replies if connection.version == 1 else connection.responses
    chunk = decoder.take_content(max_bytes)
    if not chunk:
        chunk = yield from socket_io.receive_some(connection, max_bytes)
    socket_io.refuse_descriptors(connection)
    return chunk


def fill_buffer(download: Download, buffer: memoryview) -> Effects[None]:
    """Receives the whole content into `buffer`, which must have its length."""
    connection, at = download.connection, 0
    decoder = connection.replies if connection.version == 1 else connection.responses
    while download.left:
        if download.skip or not decoder.is_empty:
            chunk = yield from _next_piece(download, download.left)
            buffer[at : at + len(chunk)] = chunk
            at += len(chunk)
        else:
            length = yield from socket_io.receive_into(connection, buffer[at : at + download.left])
            socket_io.refuse_descriptors(connection)
            at += length
            download.left -= length


def finish_download(pool: Pool, download: Download) -> Effects[None]:
    """Returns the connection to the pool. Discards a short rest of the content; closes the connection if it is long."""
    remaining = download.skip + download.left + download.surplus
    if remaining > _MAX_DISCARD:
        pool.discard(download.connection)
        return
    try:
        while remaining:
            remaining -= len((yield from _receive_some(download.connection, min(remaining, CHUNK))))
    except (ConnectionFailed, RequestTimeout):
        # The caller does not need these bytes.
        pool.discard(download.connection)
        return
    except BaseException:
        pool.discard(download.connection)
        raise
    try:
        expect_end(download.connection)
    except BaseException:
        pool.discard(download.connection)
        raise
    pool.release(download.connection)


def end_stream(pool: Pool, download: Download) -> None:
    """Returns the connection to the pool if the rest of the content has come, else closes it. Never waits."""
    connection = download.connection
    remaining = download.skip + download.left + download.surplus
    try:
        while remaining:
            decoder = connection.replies if connection.version == 1 else connection.responses
            received = decoder.take_content(remaining)
            if not received:
                # Read no more than the rest of the content: bytes after it belong to the decoder.
                received = socket_io.receive_now(connection, remaining)
            if not received:
                pool.discard(connection)
                return
            remaining -= len(received)
        socket_io.refuse_descriptors(connection)
        expect_end(connection)
    except BaseException:
        pool.discard(connection)
        raise
    pool.release(connection)


def expect_end(connection: Connection) -> None:
    """Raises RemoteProtocolError if the server sent more than the response."""
    if connection.version == 1:
        is_more = not connection.replies.is_empty
    else:
        found = connection.responses.next(lambda _: None)
        connection.is_closing |= isinstance(found, CloseFrame)
        is_more = not connection.responses.is_empty
    if is_more:
        raise RemoteProtocolError(f"{connection.address}: the server sent more content than announced")


def abort(pool: Pool, download: Download) -> None:
    """Closes the connection."""
    pool.discard(download.connection)
