"""Putting an object: by descriptor where the transport passes them, else with its content."""

import os
from collections.abc import Callable

from objmapper_client import _transport
from objmapper_client._ask import Ask, details, encode
from objmapper_client._exchange import Stat, stat_of
from objmapper_client._lines import lacking, on_own
from objmapper_client._pool import Pool
from objmapper_client._sources import Source, source_of
from objmapper_client._steps import Call, Progress, Pull, Steps
from objmapper_client._transfer import head_of, nothing_behind
from objmapper_client._transport import Connection
from objmapper_client.address import UnixAddress
from objmapper_client.errors import ConnectionFailed, LocalProtocolError
from objmapper_client.protocol_v2 import Operation
from objmapper_client.protocol_v2_responses import Metadata

#: A content up to this length shares a connection with other requests.
_SHARED_MOST = 1 << 16
_PIECE = 1 << 20
#: A server that copies a file is given at least the time that this many bytes a second take.
_SLOWEST_COPY = 16 << 20


def put(
    pool: Pool,
    uri: str,
    data: object,
    length: int | None,
    if_match: str | None,
    if_none_match: str | None,
    make_parents: bool,
    progress: Callable[[int], None] | None,
) -> Steps[Stat]:
    """Stores an object, whole or not at all."""
    source = yield from source_of(data, length)
    try:
        by_descriptor = isinstance(pool.address, UnixAddress) and source.is_whole_file
        said = details(
            content_len=None if by_descriptor else source.length,
            if_match=if_match,
            if_none_match=if_none_match,
            make_parents=make_parents,
        )
        repeatable = if_match is not None or if_none_match is not None
        operation = Operation.PUT_DESCRIPTOR if by_descriptor else Operation.PUT
        if source.length <= _SHARED_MOST and (by_descriptor or source.memory is not None):
            ask = Ask(operation, uri).saying(said)
            ask.repeatable = repeatable
            if by_descriptor:
                ask.passed = source.descriptor
            else:
                ask.payload = source.memory
            if not (yield ask):
                raise lacking(pool, "put")
            stored = stat_of(ask)
        else:
            sending = _Sending(pool, operation, uri, said, source, progress)
            metadata = yield from on_own(pool, sending.exchange, repeatable=repeatable)
            stored = Stat(uri, metadata.size or 0, metadata.mtime or 0, metadata.etag or "")
            if not by_descriptor:
                return stored
        if progress is not None:
            progress(source.length)
        return stored
    finally:
        source.close()


class _Sending:
    """A put on a connection of its own."""

    def __init__(
        self,
        pool: Pool,
        operation: Operation,
        uri: str,
        said: tuple[object, ...],
        source: Source,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._pool = pool
        self._operation = operation
        self._uri = uri
        self._said = said
        self._source = source
        self._progress = progress
        self._was_begun = False

    def exchange(self, connection: Connection) -> Steps[Metadata]:
        if connection.version == 1:
            raise lacking(self._pool, "put")
        if self._was_begun and self._source.pieces is not None:
            raise ConnectionFailed(f"{self._uri}: a second try would need the pieces that were taken by the first")
        connection.last_id = number = connection.last_id + 1 & 0xFFFFFFFF
        seconds = self._pool.timeout
        request = encode(number, self._operation, self._uri, self._said, seconds)
        is_file = self._operation is Operation.PUT_DESCRIPTOR
        yield from _transport.send(connection, request, self._source.descriptor if is_file else None)
        if is_file:
            yield Progress(self._source.length / _SLOWEST_COPY)
        else:
            self._was_begun = True
            yield from self._content(connection)
        head = yield from head_of(connection, number, self._operation, self._uri)
        nothing_behind(connection)
        self._pool.give(connection)
        return head.metadata

    def _content(self, connection: Connection) -> Steps[None]:
        sent, source = 0, self._source
        while sent < source.length:
            if source.memory is not None:
                piece: memoryview | bytes | None = source.memory[sent : sent + _PIECE]
            elif source.descriptor is not None:
                piece = yield Call(self._read_at(sent))
            else:
                assert source.pieces is not None
                piece = yield Pull(source.pieces)
            if piece is None or (not piece and source.pieces is None) or sent + len(piece) > source.length:
                raise LocalProtocolError(f"{self._uri}: the data has not the {source.length} bytes that were promised")
            yield from _transport.send(connection, piece)
            sent += len(piece)
            if self._progress is not None:
                self._progress(sent)

    def _read_at(self, sent: int) -> Callable[[], bytes]:
        source = self._source
        assert source.descriptor is not None
        descriptor, length = source.descriptor, min(_PIECE, source.length - sent)
        return lambda: os.pread(descriptor, length, source.offset + sent)
