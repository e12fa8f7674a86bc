"""An open object as a file of the fsspec file system."""

import io
import os
from collections.abc import Callable
from typing import Any

from objmapper_client.object import Object


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
        return _reopen_at, (self.tell(), reopen, *arguments)


def _reopen_at(position: int, reopen: Callable[..., ObjectReader], *arguments: object) -> ObjectReader:
    file = reopen(*arguments)
    file.seek(position)
    return file
