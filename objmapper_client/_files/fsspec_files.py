"""File objects for programs that know files only: an object to read, and one that exists once it is closed."""

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

#: What is written is kept in memory up to this, and beyond in a temporary file.
_IN_MEMORY = 8 << 20


class ObjectReader(io.BufferedReader):
    """An object that came by descriptor, as the open file that it is: `fileno` works, and mmap with it.

    It owns the descriptor. `reopen` makes another of it where it is unpickled. It has what fsspec's own files have, for
    those that cache them.
    """

    #: fsspec's caches put theirs here. The kernel's is the one that is used.
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
        # Quietly: Arrow and others leave files to the collector.
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return super().closed

    @closed.setter
    def closed(self, value: bool) -> None:
        """Nothing: fsspec's block cache says so of each file that it has closed."""

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
        """What the file system says of the object."""
        return {"name": self.path, "size": self.size, "type": "file", "mtime": self.mtime, "etag": self.etag}

    def info(self) -> dict[str, Any]:
        """`details`."""
        return self.details

    def commit(self) -> None:
        """Nothing: the file is read."""

    def discard(self) -> None:
        """Nothing: the file is read."""

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """The bytes up to and with the next `char`; `blocks` are read at once."""
        start, came = self.tell(), bytearray()
        while piece := self.read(blocks or self.blocksize):
            # It may begin at the end of what came before.
            looked_at = max(0, len(came) - len(char) + 1)
            came += piece
            end = came.find(char, looked_at) + len(char)
            if end >= len(char):
                self.seek(start + end)
                return bytes(came[:end])
        return bytes(came)

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
    """Bytes that become an object, whole or not at all, when the file is closed.

    `store` gets the bytes, or where they are many a file at its beginning. Where `autocommit` is off, closing keeps the
    bytes until `commit` stores or `discard` forgets them. Left by an exception, a ``with`` block stores nothing; also
    one of fsspec's, pandas's or pyarrow's, which tell the file nothing but to close.
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
        # An exception that is handled at this moment is none that leaves the block.
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
        """False: what was written is an object when it is closed."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: nothing has been sent yet."""
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Takes all of `data`. Returns how many bytes that were."""
        view = memoryview(data)
        # An array with a dimension of 0 cannot be cast.
        return self._held().write(view.cast("B")) if view.nbytes else 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position; what lies between the end and a later one becomes zeros."""
        return self._held().seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._held().tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Cuts what was written, at the position where no size is given."""
        held = self._held()
        size = held.tell() if size is None else size
        held.truncate(size)
        return size

    def close(self) -> None:
        """Stores the object, unless a transaction will. Raises what `put` raises."""
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
        """Stores the object, once."""
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
        """Forgets what was written; what is written from now on, such as the end of a compressed file, too."""
        held, self._bytes = self._bytes, None if self.closed else io.BytesIO()
        self._is_discarded = True
        if held is not None:
            held.close()

    def flush(self, force: bool = False) -> None:  # noqa: ARG002 - fsspec's files have it
        """Nothing: an object is stored as a whole. For a closed file it raises ValueError."""
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
    """An `ObjectWriter` behind a compressor: closing it ends the compressed file and stores it."""

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
        """Takes all of `data`. Returns how many bytes that were."""
        self._compressor.write(data)
        return memoryview(data).nbytes

    def discard(self) -> None:
        """Has nothing stored."""
        self._stored.discard()

    def close(self) -> None:
        """Stores the object. Raises what `put` raises."""
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
    """Text on its way to one of the others."""

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
    """Whether a library closes the file because an exception leaves its block: it tells the file nothing of that."""
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


#: Libraries whose blocks close files without a word of the exception that leaves them; those that do so anywhere.
_CLOSING_BLOCKS = ("fsspec.", "contextlib", "pandas.", "pyarrow.")
_CLOSING_ALWAYS = ("pandas.io.",)
#: How far up the caller is looked for.
_FRAMES = 20
