"""A content on a connection of its own: an answer that has begun, and what is received of it."""

from objmapper_client._connection import socket_io
from objmapper_client._connection.connection import CHUNK, Connection
from objmapper_client._connection.dispatch import with_exclusive
from objmapper_client._connection.pending_request import NO_DETAILS, Details, encode
from objmapper_client._connection.pool import Pool
from objmapper_client._runtime.effects import TIME_LEFT, Effects
from objmapper_client.errors import ConnectionFailed, RemoteProtocolError, RequestTimeout, error_for
from objmapper_client.protocol.v1 import ContentReply, DescriptorReply, ErrorReply, Mode, encode_request
from objmapper_client.protocol.v2_requests import CloseAck, CloseFrame, Operation
from objmapper_client.protocol.v2_responses import NO_METADATA, Metadata, ResponseHead

# Up to this many bytes that are left of a content are received and dropped, to keep the connection.
_WORTH_DROPPING = 1 << 18


class Download:
    """An answer that has begun: a descriptor, which the connection has, or the length of a content that follows there.

    `length` are the bytes that were asked for and are there, `left` those of them still to come, `size` is the
    object's.
    """

    __slots__ = ("before", "behind", "connection", "left", "length", "metadata", "size")

    def __init__(self, connection: Connection, content_len: int, metadata: Metadata, requested: Details) -> None:
        self.connection = connection
        self.metadata = metadata
        self.before = self.behind = 0
        self.length = self.left = content_len
        self.size: int | None = metadata.size
        if connection.version == 1:
            # Version 1 has no ranges: everything comes.
            self.size = content_len
            if requested:
                self._cut(content_len, *requested[:2])

    def _cut(self, content_len: int, offset: int | None, length: int | None) -> None:
        self.before = min(offset or 0, content_len)
        rest = content_len - self.before
        self.length = self.left = rest if length is None else min(rest, length)
        self.behind = rest - self.length


def begin(pool: Pool, operation: Operation, uri: str, requested: Details = NO_DETAILS) -> Effects[Download]:
    """Asks for an object on a connection of its own, and waits for the head of the answer.

    Raises what the server answered. The connection stays with what has begun: see `finish` and `give_up`.
    """
    return (yield from with_exclusive(pool, lambda connection: _begin(pool, connection, operation, uri, requested)))


def _begin(pool: Pool, connection: Connection, operation: Operation, uri: str, requested: Details) -> Effects[Download]:
    if connection.version == 1:
        return (yield from _begin_v1(pool, connection, operation, uri, requested))
    left: float = yield TIME_LEFT
    connection.last_id = number = connection.last_id + 1 & 0xFFFFFFFF
    yield from socket_io.send(connection, encode(number, operation, uri, requested, max(left, 0.001)))
    head = yield from head_of(connection, number, operation, uri)
    if operation is Operation.FDPASS:
        socket_io.check_descriptor(connection)
        return Download(connection, 0, head.metadata, requested)
    offset, most = requested[:2] if requested else (None, None)
    size = head.metadata.size
    if most is not None and head.content_len > most:
        raise RemoteProtocolError(
            f"{connection.address}: the server sends {head.content_len} bytes, more than it was asked for"
        )
    if size is not None and head.content_len != (due := range_length(size, offset or 0, most)):
        what = "of" if head.content_len < due else "bytes, more than"
        raise RemoteProtocolError(f"{uri}: the server sends {head.content_len} {what} the {due} bytes that it has")
    return Download(connection, head.content_len, head.metadata, requested)


def range_length(size: int, offset: int, length: int | None) -> int:
    """How many bytes of an object a range has."""
    there = max(0, size - offset)
    return there if length is None else min(there, length)


def head_of(connection: Connection, number: int, operation: Operation, uri: str) -> Effects[ResponseHead]:
    """The head of the answer to the only request on a connection. Raises what the server answered."""
    while (head := next_head(connection, number, operation, uri)) is None:
        connection.responses.feed((yield from socket_io.receive(connection)))
    return head


def next_head(
    connection: Connection, number: int, operation: Operation, uri: str, *, is_spent: bool = False
) -> ResponseHead | None:
    """The same, of what has come so far. Where `is_spent`, an answer leaves the connection of no more use."""
    while (head := connection.responses.next({number: operation}.get)) is not None:
        if isinstance(head, ResponseHead):
            connection.is_closing |= is_spent
            if operation is not Operation.FDPASS or head.status:
                socket_io.refuse_descriptors(connection)
            if head.status:
                raise error_for(head.status, head.metadata.message or "", uri)
            return head
        if isinstance(head, CloseAck):
            raise RemoteProtocolError(f"{connection.address}: the server confirmed a close that was not")
        # It answers what it has read, and no more is sent on this connection.
        connection.is_closing = True
    return None


def _begin_v1(
    pool: Pool, connection: Connection, operation: Operation, uri: str, requested: Details
) -> Effects[Download]:
    mode = Mode(operation.value)
    yield from socket_io.send(connection, encode_request(mode, uri))
    decoder = connection.replies
    while (reply := decoder.next(mode)) is None:
        decoder.feed((yield from socket_io.receive(connection)))
    if pool.version is None and not isinstance(reply, ErrorReply):
        # The server hung up on a hello, and answers this.
        pool.assume_version_1(is_certain=False)
    match reply:
        case DescriptorReply():
            if not decoder.is_empty:
                raise RemoteProtocolError(f"{connection.address}: the server sent more than it was asked for")
            socket_io.check_descriptor(connection)
            return Download(connection, 0, NO_METADATA, NO_DETAILS)
        case ContentReply(length):
            socket_io.refuse_descriptors(connection)
            return Download(connection, length, NO_METADATA, requested)
        case ErrorReply(status, message):
            socket_io.refuse_descriptors(connection)
            raise error_for(status, message, uri)


def next_chunk(_: Pool, download: Download, most: int) -> Effects[bytes]:
    """The next 1 to `most` bytes of a content; nothing at its end."""
    return (yield from _next(download, most))


def _next(download: Download, most: int) -> Effects[bytes]:
    while download.before:
        download.before -= len((yield from _some(download.connection, min(download.before, CHUNK))))
    if download.left == 0:
        return b""
    chunk = yield from _some(download.connection, min(most, download.left))
    download.left -= len(chunk)
    return chunk


def _some(connection: Connection, most: int) -> Effects[bytes]:
    decoder = connection.replies if connection.version == 1 else connection.responses
    chunk = decoder.take_content(most)
    if not chunk:
        chunk = yield from socket_io.receive_some(connection, most)
    socket_io.refuse_descriptors(connection)
    return chunk


def fill(download: Download, buffer: memoryview) -> Effects[None]:
    """The whole content, into `buffer`, which must have its length."""
    connection, at = download.connection, 0
    decoder = connection.replies if connection.version == 1 else connection.responses
    while download.left:
        if download.before or not decoder.is_empty:
            chunk = yield from _next(download, download.left)
            buffer[at : at + len(chunk)] = chunk
            at += len(chunk)
        else:
            length = yield from socket_io.receive_into(connection, buffer[at : at + download.left])
            socket_io.refuse_descriptors(connection)
            at += length
            download.left -= length


def finish(pool: Pool, download: Download) -> Effects[None]:
    """Gives the connection back. What is left of the content is dropped if it is little, and else the connection is."""
    behind = download.before + download.left + download.behind
    if behind > _WORTH_DROPPING:
        pool.discard(download.connection)
        return
    try:
        while behind:
            behind -= len((yield from _some(download.connection, min(behind, CHUNK))))
    except (ConnectionFailed, RequestTimeout):
        # The caller did not want these bytes.
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


def leave(pool: Pool, download: Download) -> None:
    """Gives the connection back where the rest of the content has come already, and else drops it. It never waits."""
    connection = download.connection
    behind = download.before + download.left + download.behind
    try:
        while behind:
            decoder = connection.replies if connection.version == 1 else connection.responses
            came = decoder.take_content(behind)
            if not came:
                # No more than the rest of the content: what is behind it is for the decoder.
                came = socket_io.receive_now(connection, behind)
            if not came:
                pool.discard(connection)
                return
            behind -= len(came)
        socket_io.refuse_descriptors(connection)
        expect_end(connection)
    except BaseException:
        pool.discard(connection)
        raise
    pool.release(connection)


def expect_end(connection: Connection) -> None:
    """Raises RemoteProtocolError where the server sent more than it was asked for."""
    if connection.version == 1:
        is_more = not connection.replies.is_empty
    else:
        found = connection.responses.next(lambda _: None)
        connection.is_closing |= isinstance(found, CloseFrame)
        is_more = not connection.responses.is_empty
    if is_more:
        raise RemoteProtocolError(f"{connection.address}: the server sent more content than it promised")


def abort(pool: Pool, download: Download) -> None:
    """Has the connection closed, whatever is still to come."""
    pool.discard(download.connection)
