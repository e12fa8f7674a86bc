"""A memory file for an object whose bytes were copied."""

import mmap
import os

from objmapper_client._runtime.descriptors import call_into, close_and_clear, move_last
from objmapper_client.errors import RemoteProtocolError, descriptor_limit_error
from objmapper_client.object import Object, too_large_error
from objmapper_client.protocol.v1 import MAX_CONTENT, Mode

_CHUNK = 1 << 20


class MemoryFile:
    """A memory file to be filled. It owns its descriptor until `to_object` moves it to an object."""

    def __init__(self) -> None:
        #: Its descriptor; empty before the first `allocate` or `write`.
        self._descriptors: list[int] = []

    def __del__(self) -> None:
        self.close()

    def allocate(self, size: int) -> memoryview:
        """Creates a file of `size` bytes and returns a writable view of it. A second call replaces the file.

        Raises RemoteProtocolError, DescriptorLimit.
        """
        if size > MAX_CONTENT:
            raise RemoteProtocolError(f"the content is larger than any file can be (got {size} bytes)")
        self._begin()
        if size == 0:
            return memoryview(bytearray())
        try:
            os.truncate(self._descriptors[0], size)
            # Never closed explicitly: the traceback of an error may still refer to the view.
            return memoryview(mmap.mmap(self._descriptors[0], size))
        except (OSError, OverflowError, ValueError) as error:
            raise descriptor_limit_error(error) or too_large_error(size) from error

    def write(self, content: bytes) -> None:
        """Creates a file with this content. A second call replaces the file. Raises DescriptorLimit."""
        self._begin()
        left = memoryview(content)
        while left:
            left = left[os.pwrite(self._descriptors[0], left, len(content) - len(left)) :]

    def to_object(
        self, uri: str, mode: Mode, size: int | None = None, *, etag: str | None = None, mtime: int | None = None
    ) -> Object:
        """Makes an object of the file. The object owns the descriptor."""
        found = Object(-1, uri, mode, size or 0, etag, mtime)
        move_last(self._descriptors, found)
        if size is None:
            found._read_size()
        return found

    def close(self) -> None:
        """Closes the file, if any."""
        close_and_clear(self._descriptors)

    def _begin(self) -> None:
        self.close()
        try:
            _make_memory_file(self._descriptors)
        except OSError as error:
            raise descriptor_limit_error(error) or error from error


def _make_memory_file(descriptors: list[int]) -> None:
    if hasattr(os, "memfd_create"):
        call_into(descriptors, os.memfd_create, "objmapper", os.MFD_CLOEXEC)
        return
    import tempfile

    with tempfile.TemporaryFile() as file:
        call_into(descriptors, os.dup, file.fileno())
