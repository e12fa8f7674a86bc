"""An object's bytes in pieces."""

from objmapper_client._connection.pool import Pool
from objmapper_client._operations.download import Download, begin
from objmapper_client._operations.fetch import _OPERATIONS, _QUICK, _check_range, _range, opened
from objmapper_client._runtime.effects import Effects, RunBlocking, Wait
from objmapper_client.object import Object, truncated
from objmapper_client.protocol.v1 import Mode


def begin_stream(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[Download | Object]:
    """What a stream is taken from: an object by descriptor, or an answer that has begun."""
    _check_range(offset, length)
    if mode is Mode.FDPASS:
        return (yield from opened(pool, uri, mode))
    return (yield from begin(pool, _OPERATIONS[mode], uri, _range(offset, length)))


def next_piece(found: Object, chunk_size: int, offset: int, end: int) -> Effects[bytes]:
    """The bytes of an object from `offset` on, at most `chunk_size` of them. Raises Conflict where they are gone."""
    if min(chunk_size, end - offset) > _QUICK:
        chunk: bytes = yield RunBlocking(lambda: piece_at(found, chunk_size, offset, end))
        return chunk
    chunk = piece_at(found, chunk_size, offset, end)
    if offset // _QUICK < (offset + len(chunk)) // _QUICK:
        # An event loop does its other work now.
        yield Wait(seconds=0)
    return chunk


def piece_at(found: Object, chunk_size: int, offset: int, end: int) -> bytes:
    """`next_piece` in this thread."""
    wanted = min(chunk_size, end - offset)
    chunk = found.pread(wanted, offset)
    if len(chunk) < wanted:
        raise truncated(found.uri, offset + len(chunk), found.size)
    return chunk
