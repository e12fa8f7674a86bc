"""The files of the fsspec file system that are open for writing: closing one stores an object."""

import io
import os
import sys
import tempfile
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer

#: Bytes of written data that are kept in memory; more go to a temporary file.
_MAX_IN_MEMORY = 8 << 20
#: Libraries whose `__exit__` calls only `close` after an exception; libraries that do so anywhere.
_CLOSE_IN_EXIT = ("fsspec.", "contextlib", "pandas.", "pyarrow.")
_CLOSE_ANYWHERE = ("pandas.io.",)
#: Maximum number of stack frames to search.
_MAX_FRAMES = 20


class _DiscardedOnError(io.IOBase):
    """A file that stores nothing if an exception leaves its ``with`` block."""

    def discard(self) -> None:
        """Drops the written data."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()


class ObjectWriter(_DiscardedOnError, io.BufferedIOBase):
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
        initial: bytes = b"",
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
        self._data_file: IO[bytes] | None = tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY)  # noqa: SIM115 - closed with this
        self._data_file.write(initial)

    def __repr__(self) -> str:
        return f"<ObjectWriter {self.path!r}{' closed' if self.closed else ''}>"

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
        return self._open_data().write(view.cast("B")) if view.nbytes else 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position. Bytes between the end and a later position become zeros."""
        return self._open_data().seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._open_data().tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Truncates the data to `size` bytes, by default to the position."""
        data_file = self._open_data()
        size = data_file.tell() if size is None else size
        data_file.truncate(size)
        return size

    def close(self) -> None:
        """Stores the object if `autocommit`. Raises the errors of `Client.put`."""
        if self.closed:
            return
        try:
            if _is_closed_after_error(self._error_before):
                self.discard()
            if self.autocommit or self._is_discarded:
                self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        """Stores the object. Does nothing on the second call."""
        data_file, self._data_file = self._data_file, None
        if data_file is None:
            return
        with data_file:
            if self._is_discarded:
                return
            length = data_file.seek(0, os.SEEK_END)
            data_file.seek(0)
            self._store(data_file.read() if length <= _MAX_IN_MEMORY else data_file)

    def discard(self) -> None:
        """Drops the written data, and data that is written later, such as the end of a compressed file."""
        data_file, self._data_file = self._data_file, None if self.closed else io.BytesIO()
        self._is_discarded = True
        if data_file is not None:
            data_file.close()

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

    def _open_data(self) -> IO[bytes]:
        if self.closed or self._data_file is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._data_file


class CompressedWriter(_DiscardedOnError, io.BufferedIOBase):
    """A compressor that writes to an `ObjectWriter`. Closing it ends the compressed data and stores the object."""

    def __init__(self, object_writer: ObjectWriter, compressor: Any) -> None:
        self._object_writer = object_writer
        self._compressor = compressor

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Compresses all of `data`. Returns its number of bytes."""
        self._compressor.write(data)
        return memoryview(data).nbytes

    def discard(self) -> None:
        """Has nothing stored."""
        self._object_writer.discard()

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
            self._object_writer.close()


class TextWriter(_DiscardedOnError, io.TextIOWrapper):
    """A text file that writes to an `ObjectWriter` or `CompressedWriter`."""

    def discard(self) -> None:
        """Has nothing stored."""
        self.buffer.discard()  # type: ignore[attr-defined] # it is one of ours


def _is_closed_after_error(error_before: BaseException | None) -> bool:
    """Whether a library closes the file because an exception leaves its block: these call `close` only."""
    error = sys.exc_info()[1]
    if error is None or error is error_before:
        return False
    frame = sys._getframe(2)
    for _ in range(_MAX_FRAMES):
        module = str(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_name == "__exit__" and module.startswith(_CLOSE_IN_EXIT):
            return True
        if module.startswith(_CLOSE_ANYWHERE):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
