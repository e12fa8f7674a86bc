"""Putting an object: small ones like any request; large ones by descriptor where that passes, else as content."""

import os

from objmapper_client._connection import socket_io
from objmapper_client._connection.connection import Connection
from objmapper_client._connection.dispatch import require_version_2, unsupported, with_exclusive
from objmapper_client._connection.handshake import ClosedInHandshake
from objmapper_client._connection.pending_request import details, encode
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.socket_io import DescriptorRefused
from objmapper_client._operations.download import expect_end, head_of, next_head
from objmapper_client._operations.requests import PutArguments, Stat, StatRequest, stat_of
from objmapper_client._operations.upload_source import Source, open_source
from objmapper_client._runtime.effects import TIME_LEFT, Effects, Notify, ResetDeadline, RunBlocking
from objmapper_client.address import UnixAddress
from objmapper_client.errors import ConnectionFailed, LocalProtocolError, RemoteProtocolError, UnsupportedMode
from objmapper_client.protocol.v2_requests import Operation
from objmapper_client.protocol.v2_responses import Metadata

#: A content up to this length shares a connection with other requests.
_MAX_SHARED = 1 << 16
_PIECE = 1 << 20
#: A server that copies a file is given at least the time that this many bytes a second take.
_SLOWEST_COPY = 16 << 20


def put(pool: Pool, uri: str, wanted: PutArguments) -> Effects[Stat]:
    """Stores an object, whole or not at all."""
    source = yield from open_source(wanted.data, wanted.length)
    try:
        upload = _Upload(pool, uri, source, wanted)
        if source.length == 0:
            yield from upload.end()
        if source.length <= _MAX_SHARED:
            return (yield from upload.put_shared())
        pool.may_renegotiate()
        metadata = yield from with_exclusive(pool, upload.exchange, put=uri, may_begin_again=upload.may_begin_again)
        return stat_of(uri, metadata)
    finally:
        source.close()


class _Upload:
    """A put, over all its tries."""

    def __init__(self, pool: Pool, uri: str, source: Source, wanted: PutArguments) -> None:
        _, _, if_match, if_none_match, make_parents, progress = wanted
        self._pool = pool
        self._uri = uri
        self._source = source
        self._said = details(if_match=if_match, if_none_match=if_none_match, make_parents=make_parents)
        self._said_with_content = details(
            content_len=source.length, if_match=if_match, if_none_match=if_none_match, make_parents=make_parents
        )
        self._progress = progress
        self._passes = isinstance(pool.address, UnixAddress) and source.is_whole_file
        self._has_begun = False

    def put_shared(self) -> Effects[Stat]:
        """A small one, in one message on the shared connection."""
        content = bytearray()
        while len(content) < self._source.length:
            content += yield from self._piece(len(content))
        pending = StatRequest(Operation.PUT, self._uri).with_parameters(self._said_with_content)
        pending.payload = bytes(content)
        pending.idempotent = False
        if not (yield pending):
            yield from require_version_2(self._pool, pending, "put")
        yield from self._report(len(content))
        return pending.result()

    def may_begin_again(self) -> bool:
        """Whether there can be another try: pieces can be had once only."""
        return not self._has_begun or self._source.pull is None

    def exchange(self, connection: Connection) -> Effects[Metadata]:
        """A large one, on a connection of its own."""
        if connection.version == 1:
            if self._pool.version == 1:
                raise unsupported(self._pool, "put")
            raise ClosedInHandshake(f"{self._pool.address}: the server closed the connection before it said hello")
        connection.last_id = number = connection.last_id + 1 & 0xFFFFFFFF
        operation = Operation.PUT
        if self._passes:
            try:
                yield from self._by_descriptor(connection, number)
                operation = Operation.PUT_DESCRIPTOR
            except DescriptorRefused:
                # The server has said so to the kernel, because it takes no writes at all: it will tell why.
                self._passes = False
        if not self._passes:
            yield from self._with_content(connection, number)
        try:
            head = yield from head_of(connection, number, operation, self._uri)
        except UnsupportedMode:
            if operation is not Operation.PUT_DESCRIPTOR:
                raise
            # The server does not read from the file's file system, which may leave it without an answer.
            self._passes = False
            return (yield from self.exchange(connection))
        expect_end(connection)
        self._pool.release(connection)
        if self._passes:
            yield from self._report(self._source.length)
        return head.metadata

    def _by_descriptor(self, connection: Connection, number: int) -> Effects[None]:
        request = encode(number, Operation.PUT_DESCRIPTOR, self._uri, self._said, max((yield TIME_LEFT), 0.001))
        yield from socket_io.send(connection, request, self._source.descriptor)
        yield ResetDeadline(self._source.length / _SLOWEST_COPY)

    def _with_content(self, connection: Connection, number: int) -> Effects[None]:
        self._has_begun = True
        request = encode(number, Operation.PUT, self._uri, self._said_with_content, max((yield TIME_LEFT), 0.001))
        # The server executes it once it has all of the content.
        yield from socket_io.send(connection, request, is_last=False)
        sent = 0
        while sent < self._source.length:
            piece = yield from self._piece(sent)
            try:
                yield from socket_io.send(connection, piece, is_last=sent + len(piece) == self._source.length)
            except ConnectionFailed:
                self._check_early_reply(connection, number)
                raise
            sent += len(piece)
            yield from self._report(sent)
            if sent < self._source.length:
                self._check_early_reply(connection, number)

    def _check_early_reply(self, connection: Connection, number: int) -> None:
        """Raises what the server has answered already: where it refuses, the rest of the content need not be sent."""
        data = socket_io.receive_now(connection)
        if not data:
            return
        connection.responses.feed(data)
        if next_head(connection, number, Operation.PUT, self._uri, is_spent=True) is not None:
            raise RemoteProtocolError(f"{connection.address}: the server confirmed a put before it had come")

    def _piece(self, sent: int) -> Effects[bytes | memoryview]:
        """What comes next. Raises LocalProtocolError where that is not what was promised."""
        source = self._source
        piece: bytes | memoryview | None = None
        if source.memory is not None:
            piece = source.memory[sent : sent + _PIECE]
        elif source.descriptor is not None:
            descriptor, length = source.descriptor, min(_PIECE, source.length - sent)
            piece = yield RunBlocking(lambda: os.pread(descriptor, length, source.offset + sent))
        elif source.pull is not None:
            piece = yield source.pull
            if piece is not None and sent + len(piece) == source.length:
                # The last one waits here: once it is sent, the server stores what it has.
                yield from self.end()
        if piece is None or (not piece and source.pull is None) or sent + len(piece) > source.length:
            raise self._mismatch()
        return piece

    def end(self) -> Effects[None]:
        """Raises LocalProtocolError where there is more data than was promised."""
        pull = self._source.pull
        while pull is not None and (piece := (yield pull)) is not None:
            if len(piece):
                raise self._mismatch()

    def _mismatch(self) -> LocalProtocolError:
        return LocalProtocolError(
            f"{self._uri}: length: the data does not have the promised {self._source.length} bytes"
        )

    def _report(self, sent: int) -> Effects[None]:
        progress = self._progress
        if progress is not None:
            yield Notify(lambda: progress(sent))
