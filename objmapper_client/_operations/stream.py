"""Streams of an object's bytes."""

from objmapper_client._connection.pool import Pool
from objmapper_client._operations.metadata_operations import check_range
from objmapper_client._operations.open_and_read import INLINE_LIMIT, OPERATION_OF_MODE, range_parameters, run_open
from objmapper_client._operations.receive_content import Download, begin_download
from objmapper_client._runtime.effects import Effects, RunBlocking, Wait
from objmapper_client.object import Object, truncated_error
from objmapper_client.protocol.v1 import Mode


def begin_stream(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[Download | Object]:
    """Opens a stream. Returns an object (fdpass), or a download whose content has not been received."""
    check_range(offset, length)
    if mode is Mode.FDPASS:
        return (yield from run_open(pool, uri, mode))
    return (yield from begin_download(pool, OPERATION_OF_MODE[mode], uri, range_parameters(offset, length)))


def read_piece(found: Object, chunk_size: int, offset: int, end: int) -> Effects[bytes]:
    """Reads up to `chunk_size` bytes of an object from `offset`. Raises Conflict if the object was truncated."""
    if min(chunk_size, end - offset) > INLINE_LIMIT:
        chunk: bytes = yield RunBlocking(lambda: read_piece_blocking(found, chunk_size, offset, end))
        return chunk
    chunk = read_piece_blocking(found, chunk_size, offset, end)
    if offset // INLINE_LIMIT < (offset + len(chunk)) // INLINE_LIMIT:
        # Lets an event loop run other tasks.
        yield Wait(seconds=0)
    return chunk


def read_piece_blocking(found: Object, chunk_size: int, offset: int, end: int) -> bytes:
    """`read_piece` in this thread."""
    wanted = min(chunk_size, end - offset)
    chunk = found.pread(wanted, offset)
    if len(chunk) < wanted:
        raise truncated_error(found.uri, offset + len(chunk), found.size)
    return chunk
