"""Opens an object or reads its bytes: by descriptor, or copied."""

import io
from collections.abc import Callable
from typing import NamedTuple

from objmapper_client._connection.pending_request import (
    NO_PARAMETER_VALUES,
    PendingRequest,
    Runnable,
    SimpleRequest,
    parameter_values,
)
from objmapper_client._connection.pool import Pool
from objmapper_client._files.memory_file import MemoryFile
from objmapper_client._operations.metadata_operations import check_range, protocol_violation
from objmapper_client._operations.receive_content import (
    Download,
    abort,
    begin_download,
    fill_buffer,
    finish_download,
    range_length,
)
from objmapper_client._runtime.descriptors import move_last
from objmapper_client._runtime.effects import Effects, RunBlocking
from objmapper_client.errors import Conflict, ObjmapperError
from objmapper_client.object import Object, too_large_error, truncated_error
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_requests import Operation

#: Maximum bytes of a content on the shared connection. Longer ones would delay other responses.
MAX_SHARED = 1 << 18


#: Bytes of a file that an event loop reads itself; a thread reads more than this.
INLINE_LIMIT = 1 << 18


#: Bytes that another thread reads into a buffer in one call.
_PIECE = 8 << 20


# Looking up enum members is slow: see `object`.
_FDPASS, _BY_DESCRIPTOR = Operation.FDPASS, Mode.FDPASS


OPERATION_OF_MODE = {mode: Operation.of(mode) for mode in Mode}


OpenResult = Object | ObjmapperError


class OpenRequest(SimpleRequest[Object]):
    """Opens an object by descriptor."""

    _found: Object | None = None

    def result(self) -> Object:
        """The object, which owns the received descriptor."""
        metadata = self.metadata
        # The constructor inlined: this is the hot path.
        found = self._found = Object.__new__(Object)
        found.uri, found.mode, found.etag, found.mtime = self.uri, _BY_DESCRIPTOR, metadata[2], metadata[1]
        # Both own it for a moment: see `discard_locked`.
        found._descriptor = self._descriptor
        self._descriptor = -1
        found._read_size()
        return found

    def discard_locked(self) -> None:
        """`discard` for a caller that holds the connection's lock."""
        if self._found is not None and self._found._descriptor == self._descriptor:
            self._descriptor = -1
        super().discard_locked()

    def fallback_v1(self, pool: Pool) -> Effects[Object]:
        """Opens the object on an exclusive connection, in version 1 or what the server speaks by then."""
        download = yield from begin_download(pool, Operation.FDPASS, self.uri)
        connection, metadata = download.connection, download.metadata
        try:
            found = Object(-1, self.uri, Mode.COPY, 0, metadata.etag, metadata.mtime)
            found.mode = Mode.FDPASS
            move_last(connection.descriptors, found)
            pool.release(connection)
        except BaseException:
            pool.discard(connection)
            raise
        found._read_size()
        return found


def open_object(pool: Pool, uri: str, mode: Mode) -> Runnable[Object]:
    """Opens an object: its descriptor, or a memory file with its bytes."""
    return OpenRequest(_FDPASS, uri) if mode is _BY_DESCRIPTOR else _open_copy(pool, uri, mode)


def run_open(pool: Pool, uri: str, mode: Mode) -> Effects[Object]:
    """`open_object` as part of another operation."""
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
        fetched = yield from _copy(pool, uri, mode, 0, None, memory.allocate)
        if fetched.content is not None:
            memory.write(fetched.content)
        return memory.to_object(uri, mode, fetched.length, etag=fetched.etag, mtime=fetched.mtime)
    except BaseException:
        memory.close()
        raise


def read(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[bytes]:
    """Reads an object's bytes, or a range of them."""
    check_range(offset, length)
    if mode is Mode.FDPASS:
        with (yield from run_open(pool, uri, mode)) as found:
            wanted = range_length(found.size, offset, length)
            if wanted <= INLINE_LIMIT:
                data = found.pread(wanted, offset)
            else:
                data = yield RunBlocking(lambda: found.pread(wanted, offset))
            if len(data) < wanted:
                raise truncated_error(uri, len(data), wanted)
            return data
    target = _BytesBuffer()
    fetched = yield from _copy(pool, uri, mode, offset, length, target.make)
    return target.take() if fetched.content is None else fetched.content


def readinto(pool: Pool, uri: str, mode: Mode, buffer: memoryview, offset: int) -> Effects[int]:
    """Reads an object's bytes from `offset` into `buffer`. Returns their number."""
    check_range(offset, None)
    if mode is Mode.FDPASS:
        with (yield from run_open(pool, uri, mode)) as found:
            wanted = range_length(found.size, offset, len(buffer))
            if len(buffer) <= INLINE_LIMIT:
                count = found.readinto(buffer, offset)
            else:
                count, count_read = 0, -1
                while count < wanted and count_read:
                    # In pieces, because a cancelled call waits for the piece that is being read.
                    piece, at = buffer[count : count + _PIECE], offset + count
                    count_read = yield RunBlocking(lambda piece=piece, at=at: found.readinto(piece, at))  # type: ignore[misc]
                    count += count_read
            if count < wanted:
                raise truncated_error(uri, count, wanted)
            return count
    fetched = yield from _copy(pool, uri, mode, offset, len(buffer), lambda length: buffer[:length])
    if fetched.content is not None:
        buffer[: fetched.length] = fetched.content
    return fetched.length


class FetchResult(NamedTuple):
    """The result of a copy: its length, the object's metadata, and the bytes unless they were received in place."""

    length: int
    etag: str | None
    mtime: int | None
    content: bytes | None = None


def _copy(
    pool: Pool, uri: str, mode: Mode, offset: int, length: int | None, allocate: Callable[[int], memoryview]
) -> Effects[FetchResult]:
    """Copies the bytes of an object, or of a range of it.

    Requests the first part on the shared connection. If the content is longer, an exclusive connection fetches the rest
    if the object's version is unchanged, and else the whole content.
    """
    operation = OPERATION_OF_MODE[mode]
    if length is None or length <= MAX_SHARED:
        parameters = range_parameters(offset, MAX_SHARED if length is None else length)
        first = PendingRequest(operation, uri).with_parameters(parameters, max_content=MAX_SHARED)
        if (yield first):
            _, mtime, etag = first.metadata[:3]
            if is_complete(first, offset, length):
                return FetchResult(len(first.content), etag, mtime, first.content)
            fetched = yield from fetch_remainder(pool, first, offset, allocate)
            if fetched is not None:
                return fetched
    download = yield from begin_download(pool, operation, uri, range_parameters(offset, length))
    yield from _receive(pool, download, allocate, b"")
    return FetchResult(download.length, download.metadata.etag, download.metadata.mtime)


def is_complete(first: PendingRequest, offset: int, length: int | None) -> bool:
    """Whether a first part is the whole range. Raises RemoteProtocolError if its length is wrong."""
    prefix, size = len(first.content), first.metadata.size
    if size is None:
        return prefix < MAX_SHARED or prefix == length
    wanted = range_length(size, offset, length)
    if prefix != min(wanted, MAX_SHARED):
        message = f"{first.uri}: the server sent {prefix} bytes of a content of {wanted}"
        raise protocol_violation(first, message)
    return prefix == wanted


def fetch_remainder(
    pool: Pool, first: PendingRequest, offset: int, allocate: Callable[[int], memoryview]
) -> Effects[FetchResult | None]:
    """Fetches the rest of a content whose first part has come. Returns None if the object has changed since."""
    size, mtime, etag = first.metadata[:3]
    if size is None or etag is None:
        return None
    start, prefix = offset + len(first.content), first.content
    requested = parameter_values(offset=start, length=size - start, if_match=etag)
    try:
        download = yield from begin_download(pool, first.operation, first.uri, requested)
    except Conflict:
        return None
    if download.metadata.etag not in (None, etag) or download.length != size - start:
        abort(pool, download)
        return None
    yield from _receive(pool, download, allocate, prefix)
    return FetchResult(size - offset, etag, mtime)


def _receive(pool: Pool, download: Download, allocate: Callable[[int], memoryview], prefix: bytes) -> Effects[None]:
    try:
        target = allocate(len(prefix) + download.length)
        target[: len(prefix)] = prefix
        yield from fill_buffer(download, target[len(prefix) :])
    except BaseException:
        abort(pool, download)
        raise
    yield from finish_download(pool, download)


class _BytesBuffer:
    """A buffer that becomes a bytes object without a copy."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._view: memoryview | None = None

    def make(self, length: int) -> memoryview:
        try:
            # The file has the only reference to these bytes: it makes them writable, and returns them without a copy.
            self._file = io.BytesIO(bytes(length))
        except (MemoryError, OverflowError):
            raise too_large_error(length) from None
        self._view = self._file.getbuffer()
        return self._view

    def take(self) -> bytes:
        if self._view is not None:
            self._view.release()
        return self._file.getvalue()


def range_parameters(offset: int, length: int | None) -> tuple[object, ...]:
    if offset == 0 and length is None:
        return NO_PARAMETER_VALUES
    return parameter_values(offset=offset or None, length=length)
