"""File objects for programs that know files only: an object to read, and one that exists once it is closed."""

import io
import os
import tempfile
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from objmapper_client.object import Object

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer

#: What is written is kept in memory up to this, and beyond in a temporary file.
_IN_MEMORY = 8 << 20


class ObjectReader(io.BufferedReader):
    """An object that came by descriptor, as the open file that it is: `fileno` works, and mmap with it.

    It owns the descriptor. `reopen` makes another of it where it is unpickled.
    """

    def __init__(self, found: Object, reopen: Callable[..., "ObjectReader"], *arguments: object) -> None:
        self.path = found.uri
        self.size = found.size
        self._reopen = (reopen, arguments)
        super().__init__(io.FileIO(found.detach(), "rb"))

    def __repr__(self) -> str:
        return f"<ObjectReader {self.path!r} {self.size} bytes{' closed' if self.closed else ''}>"

    def __del__(self) -> None:
        # Quietly: Arrow and others leave files to the collector.
        self.close()

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
    bytes until `commit` stores or `discard` forgets them. Left by an exception, a ``with`` block stores nothing.
    """

    def __init__(
        self, path: str, store: Callable[[bytes | IO[bytes]], object], *, autocommit: bool = True, begin: bytes = b""
    ) -> None:
        self.path = path
        self.autocommit = autocommit
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
        view = memoryview(data).cast("B")
        self._held().write(view)
        return len(view)

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
            if self.autocommit:
                self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        """Stores the object, once."""
        held, self._bytes = self._bytes, None
        if held is None:
            return
        with held:
            length = held.seek(0, os.SEEK_END)
            held.seek(0)
            self._store(held.read() if length <= _IN_MEMORY else held)

    def discard(self) -> None:
        """Forgets what was written."""
        held, self._bytes = self._bytes, None
        if held is not None:
            held.close()

    def _held(self) -> IO[bytes]:
        if self.closed or self._bytes is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._bytes
