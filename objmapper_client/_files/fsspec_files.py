"""The file objects of the fsspec file system: an open object, and a writer that stores an object on close."""

import io
import os
import sys
import tempfile
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from objmapper_client.object import Object

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer

#: Bytes of written data that are kept in memory; more go to a temporary file.
_IN_MEMORY = 8 << 20


class ObjectReader(io.BufferedReader):
    """An object opened by descriptor, as a local file: `fileno` and mmap work. It owns the descriptor.

    Unpickling calls `reopen`. It has the attributes of fsspec's own files, which fsspec's caches use.
    """

    #: fsspec's caches set this. Reads use the kernel's page cache.
    cache: Any = None
    autocommit = True

    def __init__(
        self, fs: Any, found: Object, block_size: int, reopen: Callable[..., "ObjectReader"], *arguments: object
    ) -> None:
        self.fs = fs
        self.path = found.uri
        self.size = found.size
        self.etag = found.etag
        self.mtime = found.mtime
        self.blocksize = block_size
        self.kwargs: dict[str, Any] = {}
        self._reopen = (reopen, arguments)
        super().__init__(io.FileIO(found.detach(), "rb"))

    def __repr__(self) -> str:
        return f"<ObjectReader {self.path!r} {self.size} bytes{' closed' if self.closed else ''}>"

    def __del__(self) -> None:
        # Without a ResourceWarning: Arrow and others leave open files to the garbage collector.
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return super().closed

    @closed.setter
    def closed(self, value: bool) -> None:
        """Does nothing: fsspec's block cache sets it on the files that it has closed."""

    @property
    def loc(self) -> int:
        """The position."""
        return self.tell()

    @loc.setter
    def loc(self, position: int) -> None:
        self.seek(position)

    @property
    def full_name(self) -> str:
        """The path with its protocol."""
        return str(self.fs.unstrip_protocol(self.path))

    @property
    def details(self) -> dict[str, Any]:
        """The object's `info`."""
        return {"name": self.path, "size": self.size, "type": "file", "mtime": self.mtime, "etag": self.etag}

    def info(self) -> dict[str, Any]:
        """Returns `details`."""
        return self.details

    def commit(self) -> None:
        """Nothing: the file is read."""

    def discard(self) -> None:
        """Nothing: the file is read."""

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """Reads up to and including the next `char`, in blocks of `blocks` bytes."""
        start, data = self.tell(), bytearray()
        while piece := self.read(blocks or self.blocksize):
            # The match may begin in the previous block.
            searched = max(0, len(data) - len(char) + 1)
            data += piece
            end = data.find(char, searched) + len(char)
            if end >= len(char):
                self.seek(start + end)
                return bytes(data[:end])
        return bytes(data)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return os.pread(self.fileno(), end - start, start)

    def __reduce__(self) -> tuple[Callable[..., "ObjectReader"], tuple[object, ...]]:
        reopen, arguments = self._reopen
        return _at, (self.tell(), reopen, *arguments)


def _at(position: int, reopen: Callable[..., ObjectReader], *arguments: object) -> ObjectReader:
    file = reopen(*arguments)
    file.seek(position)
    return file


class ObjectWriter(io.BufferedIOBase):
    """A file that stores its bytes as an object, atomically, when it is closed.

    It calls `store` with the bytes, or with a temporary file at its start if there are many. Without `autocommit`,
    `close` keeps the bytes until `commit` or `discard`. If an exception leaves a ``with`` block, nothing is stored;
    this holds for the blocks of fsspec, pandas and pyarrow too, which only call `close`.
    """

    mode = "wb"

    def __init__(
        self,
        fs: Any,
        path: str,
        store: Callable[[bytes | IO[bytes]], object],
        *,
        autocommit: bool = True,
        begin: bytes = b"",
    ) -> None:
        self.fs = fs
        self.path = path
        self.autocommit = autocommit
        self.blocksize: int = fs.blocksize
        self.kwargs: dict[str, Any] = {}
        self._is_discarded = False
        # An exception that is being handled now is not one that leaves the block.
        self._error_before = sys.exc_info()[1]
        self._store = store
        self._bytes: IO[bytes] | None = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed with this
        self._bytes.write(begin)

    def __repr__(self) -> str:
        return f"<ObjectWriter {self.path!r}{' closed' if self.closed else ''}>"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def readable(self) -> bool:
        """Returns False."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """Returns True: the data is sent on close."""
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Writes all of `data`. Returns the number of bytes."""
        view = memoryview(data)
        # An array with a dimension of length 0 cannot be cast.
        return self._held().write(view.cast("B")) if view.nbytes else 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position. Bytes between the end and a later position become zeros."""
        return self._held().seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._held().tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Truncates the data to `size` bytes, by default to the position."""
        held = self._held()
        size = held.tell() if size is None else size
        held.truncate(size)
        return size

    def close(self) -> None:
        """Stores the object if `autocommit`. Raises the errors of `Client.put`."""
        if self.closed:
            return
        try:
            if _is_left_by_another(self._error_before):
                self.discard()
            if self.autocommit or self._is_discarded:
                self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        """Stores the object. Does nothing on the second call."""
        held, self._bytes = self._bytes, None
        if held is None:
            return
        with held:
            if self._is_discarded:
                return
            length = held.seek(0, os.SEEK_END)
            held.seek(0)
            self._store(held.read() if length <= _IN_MEMORY else held)

    def discard(self) -> None:
        """Drops the written data, and data that is written later, such as the end of a compressed file."""
        held, self._bytes = self._bytes, None if self.closed else io.BytesIO()
        self._is_discarded = True
        if held is not None:
            held.close()

    def flush(self, force: bool = False) -> None:  # noqa: ARG002 - fsspec's files have it
        """Does nothing: an object is stored as a whole. Raises ValueError if the file is closed."""
        if self.closed:
            raise ValueError(f"{self.path}: the file is closed")

    @property
    def loc(self) -> int:
        """The position."""
        return self.tell()

    @property
    def full_name(self) -> str:
        """The path with its protocol."""
        return str(self.fs.unstrip_protocol(self.path))

    def _held(self) -> IO[bytes]:
        if self.closed or self._bytes is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._bytes


class CompressedWriter(io.BufferedIOBase):
    """A compressor that writes to an `ObjectWriter`. Closing it ends the compressed data and stores the object."""

    def __init__(self, stored: ObjectWriter, compressor: Any) -> None:
        self._stored = stored
        self._compressor = compressor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Compresses all of `data`. Returns its number of bytes."""
        self._compressor.write(data)
        return memoryview(data).nbytes

    def discard(self) -> None:
        """Has nothing stored."""
        self._stored.discard()

    def close(self) -> None:
        """Stores the object. Raises the errors of `Client.put`."""
        if self.closed:
            return
        try:
            self._compressor.close()
        except BaseException:
            self.discard()
            raise
        finally:
            super().close()
            self._stored.close()


class TextWriter(io.TextIOWrapper):
    """A text file that writes to an `ObjectWriter` or `CompressedWriter`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def discard(self) -> None:
        """Has nothing stored."""
        self.buffer.discard()  # type: ignore[attr-defined] # it is one of ours


def _is_left_by_another(before: BaseException | None) -> bool:
    """Whether a library closes the file because an exception leaves its block: these call `close` only."""
    error = sys.exc_info()[1]
    if error is None or error is before:
        return False
    frame = sys._getframe(2)
    for _ in range(_FRAMES):
        module = str(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_name == "__exit__" and module.startswith(_CLOSING_BLOCKS):
            return True
        if module.startswith(_CLOSING_ALWAYS):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


#: Libraries whose `__exit__` calls only `close` after an exception; libraries that do so anywhere.
_CLOSING_BLOCKS = ("fsspec.", "contextlib", "pandas.", "pyarrow.")
_CLOSING_ALWAYS = ("pandas.io.",)
#: Maximum number of stack frames to search.
_FRAMES = 20
