"""The download of one object: the kernel copies from a descriptor; other content comes in chunks. Memory is bounded."""

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from objmapper_cli.errors import CommandError
from objmapper_client._files.copy import copy_to, write_pieces
from objmapper_client.client import Client
from objmapper_client.protocol import Mode

if TYPE_CHECKING:
    from objmapper_client.object import Object


class Download:
    """An object, or a range of it, whose response has begun: `size` bytes, if known.

    Make it before the output file, so that a missing object creates no file. The caller closes it.
    """

    def __init__(self, client: Client, uri: str, offset: int = 0, length: int | None = None) -> None:
        self._uri = uri
        self._offset = offset
        self.object: Object | None = None
        self.size: int | None = None
        if client.mode is Mode.FDPASS:
            self.object = client.open(uri)
            self.size = max(0, self.object.size - offset)
            if length is not None:
                self.size = min(self.size, length)
        else:
            self._chunks = client.stream(uri, offset=offset, length=length, announce=self._set_size)
            self._first = next(self._chunks, b"")

    def _set_size(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> "Download":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.object is not None:
            self.object.close()
        elif error is not None:
            # Closing a stream waits for the rest of its content; an interrupted command does not wait.
            with suppress(type(error)):
                self._chunks.throw(error)

    def write(self, target: int, progress: Callable[[int], None]) -> int:
        """Write the content to a descriptor. Returns its number of bytes.

        Raises the errors of `Client.stream`, OSError, CommandError.
        """
        if self.object is None:
            return write_pieces(target, chain((self._first,), self._chunks), progress)
        assert self.size is not None
        written = copy_to(self.object.fileno(), target, self.size, self._offset, progress)
        if written < self.size:
            raise CommandError(
                f"{self._uri}: the object shrank while it was copied ({written} of {self.size} bytes); try again"
            )
        return written
