"""The data of a put: bytes, a path, a binary file, or an iterable of bytes."""

import io
import os
import stat
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

from objmapper_client._runtime.effects import Effects, NextChunk, Pieces, RunBlocking
from objmapper_client.errors import LocalProtocolError

#: Bytes of an iterable without a length that are kept in memory; more go to a temporary file.
_MAX_IN_MEMORY = 1 << 23
#: Bytes that one call reads of a file.
_PIECE = 1 << 20
_BUFFERS = (io.BufferedReader, io.BufferedRandom)


class Readable(Protocol):
    """A binary file."""

    def read(self, size: int = ..., /) -> bytes:
        """Reads up to `size` bytes; b"" at the end."""
        raise NotImplementedError


if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
else:
    ReadableBuffer = bytes | bytearray | memoryview

Data = ReadableBuffer | str | os.PathLike[str] | Readable | Iterable[ReadableBuffer]
AsyncData = Data | AsyncIterable[ReadableBuffer]


class Source:
    """Data of a known length: in memory, in a regular file, or from an iterator. It owns only `to_close`."""

    __slots__ = ("chunks", "descriptor", "length", "memory", "offset", "to_close")

    def __init__(
        self,
        length: int,
        *,
        memory: memoryview | None = None,
        descriptor: int | None = None,
        offset: int = 0,
        chunks: NextChunk | None = None,
        to_close: IO[bytes] | None = None,
    ) -> None:
        self.length = length
        self.memory = memory
        #: The descriptor of a regular file, which stays the caller's, and the offset of the data in it.
        self.descriptor = descriptor
        self.offset = offset
        #: The effect that takes the next chunk. An iterator can be read once only.
        self.chunks = chunks
        self.to_close = to_close

    def close(self) -> None:
        """Closes the file that `open_source` opened, if any."""
        if self.to_close is not None:
            self.to_close.close()

    @property
    def is_whole_file(self) -> bool:
        """Whether the data is the whole content of a file."""
        return self.descriptor is not None and self.offset == 0 and os.fstat(self.descriptor).st_size == self.length


def open_source(data: object, length: int | None) -> Effects[Source]:
    """Makes a source of `data`. Reads an iterable without a length to its end, because a request declares the length.

    Raises LocalProtocolError if the data does not have `length` bytes, OSError, TypeError.
    """
    if length is not None and length < 0:
        raise LocalProtocolError(f"length must be >= 0, got {length}")
    if isinstance(data, str | os.PathLike):
        file: IO[bytes] = yield RunBlocking(lambda: open(data, "rb", buffering=0))  # noqa: SIM115 - closed with the source
        try:
            source = yield from _source_from_readable(file, length)
        except BaseException:
            file.close()
            raise
        if source.to_close is None:
            source.to_close = file
        else:
            file.close()
        return source
    memory = _buffer_view_of(data)
    if memory is not None:
        return Source(_check_length(len(memory), length), memory=memory)
    if hasattr(data, "read"):
        return (yield from _source_from_readable(data, length))
    pieces: Pieces
    if isinstance(data, AsyncIterable):
        pieces = _convert_async(data)
    elif isinstance(data, Iterable):
        pieces = map(to_bytes_view, data)
    else:
        raise TypeError(f"data must be bytes, a path, a binary file or an iterable of bytes, got {_type_name(data)}")
    chunks = NextChunk(pieces)
    return Source(length, chunks=chunks) if length is not None else (yield from _spool(chunks))


def _buffer_view_of(data: object) -> memoryview | None:
    """The bytes of an object with the buffer protocol (bytes, array.array, mmap, numpy arrays), else None."""
    try:
        view = memoryview(data)  # type: ignore[arg-type] # this is the test
    except TypeError:
        return None
    except (ValueError, BufferError) as error:
        raise TypeError(
            f"data: the bytes of {_type_name(data)} cannot be read ({error}); convert it to bytes"
        ) from error
    if "O" in view.format:
        raise TypeError(f"data: {_type_name(data)} holds Python objects instead of bytes; convert it to bytes")
    if not view.contiguous:
        raise TypeError(f"data: {_type_name(data)} is not contiguous in memory; copy it first")
    # An array with a dimension of length 0 cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def to_bytes_view(data: object) -> bytes | memoryview:
    """The bytes of one piece of an iterable. Raises TypeError."""
    if isinstance(data, bytes):
        return data
    memory = None if isinstance(data, str) else _buffer_view_of(data)
    if memory is None:
        raise TypeError(f"data: each piece must be bytes, got {_type_name(data)}")
    return memory


def _type_name(data: object) -> str:
    return type(data).__name__


def _check_length(actual: int, declared: int | None) -> int:
    if declared is not None and declared != actual:
        raise LocalProtocolError(f"length: the data has {actual} bytes (got {declared})")
    return actual


def _raw_file(file: Any) -> io.FileIO | None:
    """The operating system's file whose bytes `file` returns unchanged; None if there is none.

    A file that decompresses, decrypts or counts has a descriptor too, but returns other bytes.
    """
    # The wrappers of `tempfile` return the bytes unchanged.
    while isinstance(file, tempfile._TemporaryFileWrapper | tempfile.SpooledTemporaryFile):
        if isinstance(file, tempfile.SpooledTemporaryFile):
            if not file._rolled:  # type: ignore[attr-defined] # typeshed leaves it out
                return None
            file = file._file
        else:
            file = file.file
    if isinstance(file, _BUFFERS) and _has_read_methods_of(file, *_BUFFERS):
        file = file.raw
    return file if isinstance(file, io.FileIO) and _has_read_methods_of(file, io.FileIO) else None


def _has_read_methods_of(file: object, *kinds: type) -> bool:
    """Whether the class of `file` has the read methods of one of `kinds`, not overridden."""
    kind = type(file)
    return any(all(getattr(kind, name) is getattr(other, name) for name in ("read", "readinto")) for other in kinds)


def _source_from_file(file: Any, length: int | None) -> Source | None:
    """The source of a regular file from its position to its end. None if only reading gives its length."""
    raw = _raw_file(file)
    if raw is None:
        return None
    descriptor = raw.fileno()
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return None
    position = file.tell()
    if found.st_size == 0 and os.pread(descriptor, 1, position):
        # Files that the kernel generates on reading (/proc, /sys) report the size 0.
        return None
    return Source(_check_length(max(0, found.st_size - position), length), descriptor=descriptor, offset=position)


def _source_from_readable(file: Any, length: int | None) -> Effects[Source]:
    if isinstance(file, io.TextIOBase):
        raise TypeError("data: expected a binary file (got a text file); open it in binary mode")
    if hasattr(file, "readable") and not file.readable():
        raise LocalProtocolError("data: the file is not open for reading")
    if hasattr(file, "flush") and hasattr(file, "writable") and file.writable():
        yield RunBlocking(file.flush)
    source = _source_from_file(file, length)
    if source is not None:
        return source
    if type(file) is io.BytesIO:
        memory = file.getbuffer()[file.tell() :]
        return Source(_check_length(len(memory), length), memory=memory)
    chunks = NextChunk(
        _read_pieces(file), may_wait=True, descriptor=_readable_descriptor(file, may_end_early=length is not None)
    )
    return Source(length, chunks=chunks) if length is not None else (yield from _spool(chunks))


def _readable_descriptor(file: Any, *, may_end_early: bool) -> int:
    """The descriptor that is readable when the next piece is available; -1 if there is none."""
    raw = _raw_file(file)
    if raw is None or (raw is not file and may_end_early):
        # The buffer may hold the rest of the data, so that the descriptor never becomes readable.
        return -1
    kind = os.fstat(raw.fileno()).st_mode
    return raw.fileno() if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or stat.S_ISCHR(kind) else -1


def _read_pieces(file: Any) -> Iterator[bytes | memoryview]:
    # `read1` returns the bytes that a pipe has; `read` would wait for a whole piece.
    read = file.read1 if isinstance(file, _BUFFERS) and _has_read_methods_of(file, *_BUFFERS) else file.read
    while (piece := read(_PIECE)) is None or len(piece):
        if piece is None:
            raise LocalProtocolError(
                "data: the file is non-blocking and has no data yet; make it blocking, or read it first"
            )
        yield to_bytes_view(piece)


async def _convert_async(pieces: AsyncIterable[object]) -> AsyncIterator[bytes | memoryview]:
    async for piece in pieces:
        yield to_bytes_view(piece)


def _spool(chunks: NextChunk) -> Effects[Source]:
    spool = tempfile.SpooledTemporaryFile(max_size=_MAX_IN_MEMORY)  # noqa: SIM115 - closed with the source
    try:
        length = 0
        while (piece := (yield chunks)) is not None:
            length += spool.write(piece)
            if length > _MAX_IN_MEMORY:
                yield RunBlocking(spool.flush)
        if length <= _MAX_IN_MEMORY:
            spool.seek(0)
            memory = memoryview(spool.read())
            spool.close()
            return Source(length, memory=memory)
        return Source(length, descriptor=spool.fileno(), to_close=spool)
    except BaseException:
        spool.close()
        raise
