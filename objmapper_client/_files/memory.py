"""An object whose bytes were copied: a file in memory that is written once and then sealed."""

import mmap
import os

from objmapper_client._runtime.descriptors import close_taken, give_last, take_in
from objmapper_client.errors import RemoteProtocolError, at_limit
from objmapper_client.object import Object, too_large
from objmapper_client.protocol.v1 import MAX_CONTENT, Mode

_CHUNK = 1 << 20


class MemoryFile:
    """A file in memory, to be filled. It owns its descriptor until `become` makes an object of it."""

    def __init__(self) -> None:
        #: Its descriptor, where it has been made.
        self._numbers: list[int] = []

    def __del__(self) -> None:
        self.close()

    def make_room(self, size: int) -> memoryview:
        """A writable view of `size` bytes. Can be called again, and begins anew then.

        Raises RemoteProtocolError, DescriptorLimit.
        """
        if size > MAX_CONTENT:
            raise RemoteProtocolError(f"a content of {size} bytes fits no file")
        self._begin()
        if size == 0:
            return memoryview(bytearray())
        try:
            os.truncate(self._numbers[0], size)
            # Not closed: an error that is on its way may still refer to a part of it. It goes with the last reference.
            return memoryview(mmap.mmap(self._numbers[0], size))
        except (OSError, OverflowError, ValueError) as error:
            raise at_limit(error) or too_large(size) from error

    def write(self, content: bytes) -> None:
        """Begins anew with this content. Raises DescriptorLimit."""
        self._begin()
        left = memoryview(content)
        while left:
            left = left[os.pwrite(self._numbers[0], left, len(content) - len(left)) :]

    def become(
        self, uri: str, mode: Mode, size: int | None = None, *, etag: str | None = None, mtime: int | None = None
    ) -> Object:
        """The object that this file holds; the descriptor is the object's then."""
        found = Object(-1, uri, mode, size or 0, etag, mtime)
        give_last(self._numbers, found)
        if size is None:
            found._examine()
        return found

    def close(self) -> None:
        """Closes the file, if there is one."""
        close_taken(self._numbers)

    def _begin(self) -> None:
        self.close()
        try:
            _make_memory_file(self._numbers)
        except OSError as error:
            raise at_limit(error) or error from error


def _make_memory_file(numbers: list[int]) -> None:
    if hasattr(os, "memfd_create"):
        take_in(numbers, os.memfd_create, "objmapper", os.MFD_CLOEXEC)
        return
    import tempfile

    with tempfile.TemporaryFile() as file:
        take_in(numbers, os.dup, file.fileno())
