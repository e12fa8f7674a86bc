"""An object, or its bytes: by descriptor, or copied."""

import io
from collections.abc import Callable
from typing import NamedTuple

from objmapper_client._connection.pending_request import NO_DETAILS, PendingRequest, SimpleRequest, Verb, details
from objmapper_client._connection.pool import Pool
from objmapper_client._files.memory import MemoryFile
from objmapper_client._operations.download import Download, abort, begin, fill, finish, range_length
from objmapper_client._operations.requests import violation_by
from objmapper_client._runtime.descriptors import give_last
from objmapper_client._runtime.effects import Effects, RunBlocking
from objmapper_client.errors import Conflict, LocalProtocolError, ObjmapperError
from objmapper_client.object import Object, too_large, truncated
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_requests import Operation

#: A content up to this length shares a connection with other answers; what is longer would hold them up.
MAX_SHARED = 1 << 18


#: Reading more than this from a file is left to a thread by an event loop.
_QUICK = 1 << 18


#: Of a buffer that is filled by another thread this much is filled at once.
_PIECE = 8 << 20


# Looking members up in their enumerations costs more than one thinks: see `object`.
_FDPASS, _BY_DESCRIPTOR = Operation.FDPASS, Mode.FDPASS


_OPERATIONS = {mode: Operation.of(mode) for mode in Mode}


Result = Object | ObjmapperError


class OpenRequest(SimpleRequest[Object]):
    """An object by descriptor."""

    _found: Object | None = None

    def result(self) -> Object:
        """The object that came."""
        metadata = self.metadata
        # Spelled out: this is what programs do all the time, and each call counts.
        found = self._found = Object.__new__(Object)
        found.uri, found.mode, found.etag, found.mtime = self.uri, _BY_DESCRIPTOR, metadata[2], metadata[1]
        # Both have it for a moment: see `drop`.
        found._descriptor = self._descriptor
        self._descriptor = -1
        found._examine()
        return found

    def discard_locked(self) -> None:
        """`discard`, for a caller that has the connection's lock."""
        if self._found is not None and self._found._descriptor == self._descriptor:
            self._descriptor = -1
        super().discard_locked()

    def fallback_v1(self, pool: Pool) -> Effects[Object]:
        """The same on a connection of its own, in the version that the server speaks by then."""
        download = yield from begin(pool, Operation.FDPASS, self.uri)
        connection, metadata = download.connection, download.metadata
        try:
            found = Object(-1, self.uri, Mode.COPY, 0, metadata.etag, metadata.mtime)
            found.mode = Mode.FDPASS
            give_last(connection.descriptors, found)
            pool.release(connection)
        except BaseException:
            pool.discard(connection)
            raise
        found._examine()
        return found


def open_object(pool: Pool, uri: str, mode: Mode) -> Verb[Object]:
    """An object: its own descriptor, or a memory file that holds the bytes."""
    return OpenRequest(_FDPASS, uri) if mode is _BY_DESCRIPTOR else _open_copy(pool, uri, mode)


def opened(pool: Pool, uri: str, mode: Mode) -> Effects[Object]:
    """`open_object` as a step of something else."""
    operation = open_object(pool, uri, mode)
    if not isinstance(operation, SimpleRequest):
        return (yield from operation)
    try:
        return operation.result() if (yield operation) else (yield from operation.fallback_v1(pool))
    except BaseException:
        operation.discard()
        raise


def _open_copy(pool: Pool, uri: str, mode: Mode) -> Effects[Object]:
    memory = MemoryFile()
    try:
        got = yield from _copy(pool, uri, mode, 0, None, memory.make_room)
        if got.content is not None:
            memory.write(got.content)
        return memory.become(uri, mode, got.length, etag=got.etag, mtime=got.mtime)
    except BaseException:
        memory.close()
        raise


def read(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[bytes]:
    """An object's bytes, or a range of them."""
    _check_range(offset, length)
    if mode is Mode.FDPASS:
        with (yield from opened(pool, uri, mode)) as found:
            wanted = range_length(found.size, offset, length)
            if wanted <= _QUICK:
                data = found.pread(wanted, offset)
            else:
                data = yield RunBlocking(lambda: found.pread(wanted, offset))
            if len(data) < wanted:
                raise truncated(uri, len(data), wanted)
            return data
    room = _BytesRoom()
    got = yield from _copy(pool, uri, mode, offset, length, room.make)
    return room.take() if got.content is None else got.content


def readinto(pool: Pool, uri: str, mode: Mode, buffer: memoryview, offset: int) -> Effects[int]:
    """An object's bytes from `offset` on, into the front of `buffer`, as many as it takes."""
    _check_range(offset, None)
    if mode is Mode.FDPASS:
        with (yield from opened(pool, uri, mode)) as found:
            wanted = range_length(found.size, offset, len(buffer))
            if len(buffer) <= _QUICK:
                count = found.readinto(buffer, offset)
            else:
                count, came = 0, -1
                while count < wanted and came:
                    # In pieces: where the call is cancelled, the piece that is being read is waited for.
                    piece, at = buffer[count : count + _PIECE], offset + count
                    came = yield RunBlocking(lambda piece=piece, at=at: found.readinto(piece, at))  # type: ignore[misc]
                    count += came
            if count < wanted:
                raise truncated(uri, count, wanted)
            return count
    got = yield from _copy(pool, uri, mode, offset, len(buffer), lambda length: buffer[:length])
    if got.content is not None:
        buffer[: got.length] = got.content
    return got.length


class FetchResult(NamedTuple):
    """How a copy ended: its length, what the server said of the object, and the bytes where no room was made."""

    length: int
    etag: str | None
    mtime: int | None
    content: bytes | None = None


def _copy(
    pool: Pool, uri: str, mode: Mode, offset: int, length: int | None, make_room: Callable[[int], memoryview]
) -> Effects[FetchResult]:
    """The bytes of an object, or of a range of it.

    The first part is asked for on the shared connection. What is longer goes on with a connection of its own, provided
    that the object is still the same; else all of it comes from there.
    """
    operation = _OPERATIONS[mode]
    if length is None or length <= MAX_SHARED:
        said = _range(offset, MAX_SHARED if length is None else length)
        first = PendingRequest(operation, uri).with_parameters(said, most=MAX_SHARED)
        if (yield first):
            _, mtime, etag = first.metadata[:3]
            if is_complete(first, offset, length):
                return FetchResult(len(first.content), etag, mtime, first.content)
            got = yield from fetch_remainder(pool, first, offset, make_room)
            if got is not None:
                return got
    download = yield from begin(pool, operation, uri, _range(offset, length))
    yield from _receive(pool, download, make_room, b"")
    return FetchResult(download.length, download.metadata.etag, download.metadata.mtime)


def is_complete(first: PendingRequest, offset: int, length: int | None) -> bool:
    """Whether a first part is all that was asked for. Raises RemoteProtocolError where it is not as long as it must."""
    have, size = len(first.content), first.metadata.size
    if size is None:
        return have < MAX_SHARED or have == length
    wanted = range_length(size, offset, length)
    if have != min(wanted, MAX_SHARED):
        what = "of" if have < wanted else "bytes, more than"
        raise violation_by(first, f"{first.uri}: the server sent {have} {what} the {wanted} bytes that it has")
    return have == wanted


def fetch_remainder(
    pool: Pool, first: PendingRequest, offset: int, make_room: Callable[[int], memoryview]
) -> Effects[FetchResult | None]:
    """All that a first part is the beginning of. None where the object has changed since."""
    size, mtime, etag = first.metadata[:3]
    if size is None or etag is None:
        return None
    start, have = offset + len(first.content), first.content
    requested = details(offset=start, length=size - start, if_match=etag)
    try:
        download = yield from begin(pool, first.operation, first.uri, requested)
    except Conflict:
        return None
    if download.metadata.etag not in (None, etag) or download.length != size - start:
        abort(pool, download)
        return None
    yield from _receive(pool, download, make_room, have)
    return FetchResult(size - offset, etag, mtime)


def _receive(pool: Pool, download: Download, make_room: Callable[[int], memoryview], have: bytes) -> Effects[None]:
    try:
        room = make_room(len(have) + download.length)
        room[: len(have)] = have
        yield from fill(download, room[len(have) :])
    except BaseException:
        abort(pool, download)
        raise
    yield from finish(pool, download)


class _BytesRoom:
    """Room for bytes that are received in place and never copied."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._view: memoryview | None = None

    def make(self, length: int) -> memoryview:
        try:
            # The only reference to these bytes is the file's: it lets them be written to, and gives them out as they
            # are.
            self._file = io.BytesIO(bytes(length))
        except (MemoryError, OverflowError):
            raise too_large(length) from None
        self._view = self._file.getbuffer()
        return self._view

    def take(self) -> bytes:
        if self._view is not None:
            self._view.release()
        return self._file.getvalue()


def _range(offset: int, length: int | None) -> tuple[object, ...]:
    if offset == 0 and length is None:
        return NO_DETAILS
    return details(offset=offset or None, length=length)


def _check_range(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise LocalProtocolError(f"a range has an offset and a length from 0 on, not {offset} and {length}")
