"""Puts an object: small contents on the shared connection; large ones by descriptor if possible, else as content."""

import os

from objmapper_client._connection import socket_io
from objmapper_client._connection.connection import Connection
from objmapper_client._connection.handshake import ClosedInHandshake
from objmapper_client._connection.pending_request import encode, parameter_values
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.request_runner import require_version_2, unsupported_error, with_exclusive
from objmapper_client._connection.socket_io import DescriptorRefused
from objmapper_client._operations.metadata_operations import PutArguments, Stat, StatRequest, to_stat
from objmapper_client._operations.receive_content import expect_end, next_head, receive_head
from objmapper_client._operations.upload_source import Source, open_source
from objmapper_client._runtime.effects import TIME_LEFT, Effects, Notify, ResetDeadline, RunBlocking
from objmapper_client.address import UnixAddress
from objmapper_client.errors import ConnectionFailed, LocalProtocolError, RemoteProtocolError, UnsupportedMode
from objmapper_client.protocol.v2_requests import Operation
from objmapper_client.protocol.v2_responses import Metadata

#: Maximum bytes of a content that is sent on the shared connection.
_MAX_SHARED = 1 << 16
_PIECE = 1 << 20
#: Bytes a second. The time limit of a put by descriptor allows the server to copy at this rate.
_MIN_COPY_RATE = 16 << 20


def put(pool: Pool, uri: str, arguments: PutArguments) -> Effects[Stat]:
    """Stores an object atomically."""
    source = yield from open_source(arguments.data, arguments.length)
    try:
        upload = _Upload(pool, uri, source, arguments)
        if source.length == 0:
            yield from upload.check_source_end()
        if source.length <= _MAX_SHARED:
            return (yield from upload.put_shared())
        pool.may_renegotiate()
        metadata = yield from with_exclusive(pool, upload.exchange, put_uri=uri, may_retry=upload.may_retry)
        return to_stat(uri, metadata)
    finally:
        source.close()


class _Upload:
    """A put with all its attempts."""

    def __init__(self, pool: Pool, uri: str, source: Source, arguments: PutArguments) -> None:
        _, _, if_match, if_none_match, make_parents, progress = arguments
        self._pool = pool
        self._uri = uri
        self._source = source
        self._parameters = parameter_values(if_match=if_match, if_none_match=if_none_match, make_parents=make_parents)
        self._content_parameters = parameter_values(
            content_len=source.length, if_match=if_match, if_none_match=if_none_match, make_parents=make_parents
        )
        self._progress = progress
        self._uses_descriptor = isinstance(pool.address, UnixAddress) and source.is_whole_file
        self._has_sent_content = False

    def put_shared(self) -> Effects[Stat]:
        """Sends a small content in one message on the shared connection."""
        content = bytearray()
        while len(content) < self._source.length:
            content += yield from self._next_piece(len(content))
        pending = StatRequest(Operation.PUT, self._uri).with_parameters(self._content_parameters)
        pending.payload = bytes(content)
        pending.idempotent = False
        if not (yield pending):
            yield from require_version_2(self._pool, pending, "put")
        yield from self._report(len(content))
        return pending.result()

    def may_retry(self) -> bool:
        """Whether another attempt is possible: the chunks of an iterator can be read once only."""
        return not self._has_sent_content or self._source.chunks is None

    def exchange(self, connection: Connection) -> Effects[Metadata]:
        """Sends a large content on an exclusive connection. Returns the stored object's metadata."""
        if connection.version == 1:
            if self._pool.version == 1:
                raise unsupported_error(self._pool, "put")
            raise ClosedInHandshake(f"{self._pool.address}: the server closed the connection during the handshake")
        connection.last_id = request_id = connection.last_id + 1 & 0xFFFFFFFF
        operation = Operation.PUT
        if self._uses_descriptor:
            try:
                yield from self._send_descriptor(connection, request_id)
                operation = Operation.PUT_DESCRIPTOR
            except DescriptorRefused:
                # A server that allows no writes accepts no descriptors. Its response to the content has the reason.
                self._uses_descriptor = False
        if not self._uses_descriptor:
            yield from self._send_content(connection, request_id)
        try:
            head = yield from receive_head(connection, request_id, operation, self._uri)
        except UnsupportedMode:
            if operation is not Operation.PUT_DESCRIPTOR:
                raise
            # The server does not read from this file system, because its reads may hang.
            self._uses_descriptor = False
            return (yield from self.exchange(connection))
        expect_end(connection)
        self._pool.release(connection)
        if self._uses_descriptor:
            yield from self._report(self._source.length)
        return head.metadata

    def _send_descriptor(self, connection: Connection, request_id: int) -> Effects[None]:
        request = encode(
            request_id, Operation.PUT_DESCRIPTOR, self._uri, self._parameters, max((yield TIME_LEFT), 0.001)
        )
        yield from socket_io.send(connection, request, self._source.descriptor)
        yield ResetDeadline(self._source.length / _MIN_COPY_RATE)

    def _send_content(self, connection: Connection, request_id: int) -> Effects[None]:
        self._has_sent_content = True
        request = encode(request_id, Operation.PUT, self._uri, self._content_parameters, max((yield TIME_LEFT), 0.001))
        # The server executes the put once it has the whole content.
        yield from socket_io.send(connection, request, is_last=False)
        sent = 0
        while sent < self._source.length:
            piece = yield from self._next_piece(sent)
            try:
                yield from socket_io.send(connection, piece, is_last=sent + len(piece) == self._source.length)
            except ConnectionFailed:
                self._check_early_reply(connection, request_id)
                raise
            sent += len(piece)
            yield from self._report(sent)
            if sent < self._source.length:
                self._check_early_reply(connection, request_id)

    def _check_early_reply(self, connection: Connection, request_id: int) -> None:
        """Raises the server's error response if it has come before the whole content was sent."""
        data = socket_io.receive_now(connection)
        if not data:
            return
        connection.responses.feed(data)
        if next_head(connection, request_id, Operation.PUT, self._uri, is_spent=True) is not None:
            raise RemoteProtocolError(f"{connection.address}: the server confirmed a put before its content was sent")

    def _next_piece(self, sent: int) -> Effects[bytes | memoryview]:
        """Reads the next piece of the content. Raises LocalProtocolError if it does not fit the declared length."""
        source = self._source
        piece: bytes | memoryview | None = None
        if source.memory is not None:
            piece = source.memory[sent : sent + _PIECE]
        elif source.descriptor is not None:
            descriptor, length = source.descriptor, min(_PIECE, source.length - sent)
            piece = yield RunBlocking(lambda: os.pread(descriptor, length, source.offset + sent))
        elif source.chunks is not None:
            piece = yield source.chunks
            if piece is not None and sent + len(piece) == source.length:
                # Check before the last piece is sent, because the server stores the object then.
                yield from self.check_source_end()
        if piece is None or (not piece and source.chunks is None) or sent + len(piece) > source.length:
            raise self._mismatch()
        return piece

    def check_source_end(self) -> Effects[None]:
        """Raises LocalProtocolError if there is more data than the declared length."""
        chunks = self._source.chunks
        while chunks is not None and (piece := (yield chunks)) is not None:
            if len(piece):
                raise self._mismatch()

    def _mismatch(self) -> LocalProtocolError:
        return LocalProtocolError(f"{self._uri}: length: the data does not have {self._source.length} bytes")

    def _report(self, sent: int) -> Effects[None]:
        progress = self._progress
        if progress is not None:
            yield Notify(lambda: progress(sent))
