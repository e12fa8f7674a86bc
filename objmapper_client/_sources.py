"""What a caller may hand over to be stored: bytes, a path, a file, or pieces one by one."""

import io
import os
import stat
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import IO, Any, Protocol

from objmapper_client._steps import Call, Pull, Steps
from objmapper_client.errors import LocalProtocolError

#: Pieces of unknown length are kept in memory up to this, and beyond in a temporary file.
_IN_MEMORY = 1 << 23


class Readable(Protocol):
    """A binary file."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to `size` bytes, nothing at the end."""
        raise NotImplementedError


Data = bytes | bytearray | memoryview | str | os.PathLike[str] | Readable | Iterable[bytes]
AsyncData = Data | AsyncIterable[bytes]


class Source:
    """Bytes of a known length, from one of three places. `close` closes what was opened here."""

    __slots__ = ("descriptor", "length", "memory", "offset", "pieces", "to_close")

    def __init__(
        self,
        length: int,
        *,
        memory: memoryview | None = None,
        descriptor: int | None = None,
        offset: int = 0,
        pieces: Iterator[bytes] | AsyncIterator[bytes] | None = None,
        to_close: IO[bytes] | None = None,
    ) -> None:
        self.length = length
        self.memory = memory
        #: A regular file, lent, and where in it the bytes begin.
        self.descriptor = descriptor
        self.offset = offset
        #: They can be had once only.
        self.pieces = pieces
        self.to_close = to_close

    def close(self) -> None:
        """Closes what was opened for it."""
        if self.to_close is not None:
            self.to_close.close()

    @property
    def is_whole_file(self) -> bool:
        """Whether it is all that a file holds."""
        return self.descriptor is not None and self.offset == 0 and os.fstat(self.descriptor).st_size == self.length


def source_of(data: object, length: int | None) -> Steps[Source]:
    """What `data` holds; of pieces without a length all are taken first, since the wire wants to know it beforehand.

    Raises LocalProtocolError where `length` is not what there is, OSError, TypeError.
    """
    if length is not None and length < 0:
        raise LocalProtocolError(f"a length is from 0 on, not {length}")
    if isinstance(data, bytes | bytearray | memoryview):
        memory = memoryview(data).cast("B")
        return Source(_agreed(len(memory), length), memory=memory)
    if isinstance(data, str | os.PathLike):
        file: IO[bytes] = yield Call(lambda: open(data, "rb", buffering=0))  # noqa: SIM115 - closed with the source
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
    if hasattr(data, "read"):
        return (yield from _of_readable(data, length))
    pieces: Iterator[bytes] | AsyncIterator[bytes]
    if isinstance(data, AsyncIterable):
        pieces = aiter(data)
    elif isinstance(data, Iterable):
        pieces = iter(data)
    else:
        raise TypeError(
            f"bytes, a path, a binary file or an iterable of bytes can be stored, not {type(data).__name__}"
        )
    if length is not None:
        return Source(length, pieces=pieces)
    return (yield from _gathered(pieces))


def _agreed(there: int, said: int | None) -> int:
    if said is not None and said != there:
        raise LocalProtocolError(f"the data has {there} bytes, and not {said}")
    return there


def _of_file(file: Any, length: int | None) -> Source:
    """A regular file, from its position to its end, or `length` bytes of it."""
    if hasattr(file, "readable") and not file.readable():
        raise LocalProtocolError("the file is not open for reading")
    descriptor = file.fileno()
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise io.UnsupportedOperation("not a regular file")
    at = file.tell() if hasattr(file, "tell") else os.lseek(descriptor, 0, os.SEEK_CUR)
    if found.st_size == 0 and os.pread(descriptor, 1, at):
        raise io.UnsupportedOperation("a file that is made as it is read (/proc, /sys) has no size")
    left = max(0, found.st_size - at)
    if length is not None and length > left:
        raise LocalProtocolError(f"the file has {left} bytes from its position on, and not {length}")
    return Source(left if length is None else length, descriptor=descriptor, offset=at)


def _of_readable(file: Any, length: int | None) -> Steps[Source]:
    if isinstance(file, io.TextIOBase):
        raise TypeError("a text file has no bytes: open it in binary mode")
    if hasattr(file, "flush") and hasattr(file, "writable") and file.writable():
        yield Call(file.flush)
    try:
        return _of_file(file, length)
    except (AttributeError, io.UnsupportedOperation):
        # No file of the system's, or one without a size.
        pass
    if length is None and hasattr(file, "seekable") and file.seekable():
        length = _length_by_seeking(file)
    pieces = _pieces(file)
    return Source(length, pieces=pieces) if length is not None else (yield from _gathered(pieces))


def _length_by_seeking(file: Any) -> int | None:
    """How much is left; None where only reading tells, as with devices and what the kernel makes up."""
    at = file.tell()
    try:
        end = file.seek(0, os.SEEK_END)
    except OSError:
        return None
    file.seek(at)
    return (end - at) or None


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(1 << 20):
        yield piece


def _gathered(pieces: Iterator[bytes] | AsyncIterator[bytes]) -> Steps[Source]:
    spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed with the source
    try:
        length = 0
        while (piece := (yield Pull(pieces))) is not None:
            length += spool.write(piece)
            if length > _IN_MEMORY:
                yield Call(spool.flush)
        if length <= _IN_MEMORY:
            spool.seek(0)
            memory = memoryview(spool.read())
            spool.close()
            return Source(length, memory=memory)
        return Source(length, descriptor=spool.fileno(), to_close=spool)
    except BaseException:
        spool.close()
        raise
