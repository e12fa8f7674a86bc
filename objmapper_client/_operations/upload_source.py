"""What a caller may hand over to be stored: bytes, a path, a file, or pieces one by one."""

import io
import os
import stat
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

from objmapper_client._runtime.effects import Effects, NextChunk, Pieces, RunBlocking
from objmapper_client.errors import LocalProtocolError

#: Pieces of unknown length are kept in memory up to this, and beyond in a temporary file.
_IN_MEMORY = 1 << 23
#: What is read of a file at once.
_PIECE = 1 << 20
_BUFFERS = (io.BufferedReader, io.BufferedRandom)


class Readable(Protocol):
    """A binary file."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to `size` bytes, nothing at the end."""
        raise NotImplementedError


if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
else:
    ReadableBuffer = bytes | bytearray | memoryview

Data = ReadableBuffer | str | os.PathLike[str] | Readable | Iterable[ReadableBuffer]
AsyncData = Data | AsyncIterable[ReadableBuffer]


class Source:
    """Bytes of a known length, from one of three places. `close` closes what was opened here."""

    __slots__ = ("descriptor", "length", "memory", "offset", "pull", "to_close")

    def __init__(
        self,
        length: int,
        *,
        memory: memoryview | None = None,
        descriptor: int | None = None,
        offset: int = 0,
        pull: NextChunk | None = None,
        to_close: IO[bytes] | None = None,
    ) -> None:
        self.length = length
        self.memory = memory
        #: A regular file, lent, and where in it the bytes begin.
        self.descriptor = descriptor
        self.offset = offset
        #: Yields the next piece. They can be had once only.
        self.pull = pull
        self.to_close = to_close

    def close(self) -> None:
        """Closes what was opened for it."""
        if self.to_close is not None:
            self.to_close.close()

    @property
    def is_whole_file(self) -> bool:
        """Whether it is all that a file holds."""
        return self.descriptor is not None and self.offset == 0 and os.fstat(self.descriptor).st_size == self.length


def open_source(data: object, length: int | None) -> Effects[Source]:
    """What `data` holds; of pieces without a length all are taken first, since the wire wants to know it beforehand.

    Raises LocalProtocolError where there are fewer or more bytes than `length`, OSError, TypeError.
    """
    if length is not None and length < 0:
        raise LocalProtocolError(f"length must be >= 0, got {length}")
    if isinstance(data, str | os.PathLike):
        file: IO[bytes] = yield RunBlocking(lambda: open(data, "rb", buffering=0))  # noqa: SIM115 - closed with the source
        try:
            source = yield from _of_readable(file, length)
        except BaseException:
            file.close()
            raise
        if source.to_close is None:
            source.to_close = file
        else:
            file.close()
        return source
    memory = _memory_of(data)
    if memory is not None:
        return Source(_agreed(len(memory), length), memory=memory)
    if hasattr(data, "read"):
        return (yield from _of_readable(data, length))
    pieces: Pieces
    if isinstance(data, AsyncIterable):
        pieces = _checked(data)
    elif isinstance(data, Iterable):
        pieces = map(piece_of, data)
    else:
        raise TypeError(f"data must be bytes, a path, a binary file or an iterable of bytes, got {_kind(data)}")
    pull = NextChunk(pieces)
    return Source(length, pull=pull) if length is not None else (yield from _spool(pull))


def _memory_of(data: object) -> memoryview | None:
    """The bytes of whatever has the buffer protocol (bytes, array.array, mmap, numpy arrays), or None."""
    try:
        view = memoryview(data)  # type: ignore[arg-type] # this is the test
    except TypeError:
        return None
    except (ValueError, BufferError) as error:
        raise TypeError(f"data: the bytes of {_kind(data)} cannot be read ({error}); convert it to bytes") from error
    if "O" in view.format:
        raise TypeError(f"data: {_kind(data)} holds Python objects, which are no bytes; convert it to bytes")
    if not view.contiguous:
        raise TypeError(f"data: {_kind(data)} is not contiguous in memory; copy it first")
    # An array with a dimension of 0 cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def piece_of(data: object) -> bytes | memoryview:
    """The bytes of one piece of several. Raises TypeError."""
    if isinstance(data, bytes):
        return data
    memory = None if isinstance(data, str) else _memory_of(data)
    if memory is None:
        raise TypeError(f"data: each piece must be bytes, got {_kind(data)}")
    return memory


def _kind(data: object) -> str:
    return type(data).__name__


def _agreed(there: int, said: int | None) -> int:
    if said is not None and said != there:
        raise LocalProtocolError(f"length: the data has {there} bytes, not {said}")
    return there


def _raw_file(file: Any) -> io.FileIO | None:
    """The file of the system whose bytes `file` hands out unchanged. None for all others.

    A file that decompresses, decrypts or counts has a descriptor, too, and other bytes than those behind it.
    """
    # What tempfile makes wraps a file, without a change.
    while isinstance(file, tempfile._TemporaryFileWrapper | tempfile.SpooledTemporaryFile):
        if isinstance(file, tempfile.SpooledTemporaryFile):
            if not file._rolled:  # type: ignore[attr-defined] # typeshed leaves it out
                return None
            file = file._file
        else:
            file = file.file
    if isinstance(file, _BUFFERS) and _reads_as(file, *_BUFFERS):
        file = file.raw
    return file if isinstance(file, io.FileIO) and _reads_as(file, io.FileIO) else None


def _reads_as(file: object, *kinds: type) -> bool:
    """Whether the class of `file` reads as one of these does, and not in a way of its own."""
    kind = type(file)
    return any(all(getattr(kind, name) is getattr(each, name) for name in ("read", "readinto")) for each in kinds)


def _of_file(file: Any, length: int | None) -> Source | None:
    """A regular file, from its position to its end, or `length` bytes of it. None where only reading tells."""
    raw = _raw_file(file)
    if raw is None:
        return None
    descriptor = raw.fileno()
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return None
    at = file.tell()
    if found.st_size == 0 and os.pread(descriptor, 1, at):
        # A file that the kernel makes as it is read (/proc, /sys) has no size.
        return None
    return Source(_agreed(max(0, found.st_size - at), length), descriptor=descriptor, offset=at)


def _of_readable(file: Any, length: int | None) -> Effects[Source]:
    if isinstance(file, io.TextIOBase):
        raise TypeError("a text file has no bytes: open it in binary mode")
    if hasattr(file, "readable") and not file.readable():
        raise LocalProtocolError("the file is not open for reading")
    if hasattr(file, "flush") and hasattr(file, "writable") and file.writable():
        yield RunBlocking(file.flush)
    source = _of_file(file, length)
    if source is not None:
        return source
    if type(file) is io.BytesIO:
        memory = file.getbuffer()[file.tell() :]
        return Source(_agreed(len(memory), length), memory=memory)
    pull = NextChunk(_pieces(file), may_wait=True, descriptor=_awaited(file, may_end_early=length is not None))
    return Source(length, pull=pull) if length is not None else (yield from _spool(pull))


def _awaited(file: Any, *, may_end_early: bool) -> int:
    """The descriptor that is readable when the next piece is there, -1 where it does not tell."""
    raw = _raw_file(file)
    if raw is None or (raw is not file and may_end_early):
        # All that is wanted may be in the buffer already, with nothing behind it.
        return -1
    kind = os.fstat(raw.fileno()).st_mode
    return raw.fileno() if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or stat.S_ISCHR(kind) else -1


def _pieces(file: Any) -> Iterator[bytes | memoryview]:
    # A pipe gives what it has; `read` would wait until there is a whole piece.
    read = file.read1 if isinstance(file, _BUFFERS) and _reads_as(file, *_BUFFERS) else file.read
    while (piece := read(_PIECE)) is None or len(piece):
        if piece is None:
            raise LocalProtocolError("the file does not block and has no data yet: read it yourself, or have it block")
        yield piece_of(piece)


async def _checked(pieces: AsyncIterable[object]) -> AsyncIterator[bytes | memoryview]:
    async for piece in pieces:
        yield piece_of(piece)


def _spool(pull: NextChunk) -> Effects[Source]:
    spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed with the source
    try:
        length = 0
        while (piece := (yield pull)) is not None:
            length += spool.write(piece)
            if length > _IN_MEMORY:
                yield RunBlocking(spool.flush)
        if length <= _IN_MEMORY:
            spool.seek(0)
            memory = memoryview(spool.read())
            spool.close()
            return Source(length, memory=memory)
        return Source(length, descriptor=spool.fileno(), to_close=spool)
    except BaseException:
        spool.close()
        raise
