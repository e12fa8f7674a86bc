"""An open object: an owned descriptor with its size, and methods to read, map and save it."""

import mmap
import os
import stat
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from objmapper_client._files.atomic_file import open_output
from objmapper_client._files.copy import copy_memory_to, copy_to
from objmapper_client._runtime.descriptors import close_descriptor
from objmapper_client.errors import RemoteProtocolError, ServerReply, error_for
from objmapper_client.protocol.v1 import Mode, Status

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Before Python 3.12 an enum member look-up calls a function, ten times as slow as a global.
_FDPASS = Mode.FDPASS
#: Bytes that one read asks for without checking the file's size first.
_CHUNK = 1 << 20
# As stat.S_ISREG, without the call.
_TYPE, _REGULAR = 0o170000, stat.S_IFREG


class Object:
    """An open object. It owns its descriptor: close it, or use it as a context manager.

    In mode fdpass the descriptor is an open file description of its own (only the caller moves its position); in the
    other modes it is a memory file. Not thread-safe, except `pread` and `view`.
    """

    # Defaults for `__del__` after a constructor that raised.
    _descriptor = -1
    uri = ""
    mode = _FDPASS
    etag: str | None = None
    mtime: int | None = None
    #: Size in bytes at the time of opening.
    size = 0

    def __init__(
        self,
        descriptor: int,
        uri: str,
        mode: Mode,
        size: int | None = None,
        etag: str | None = None,
        mtime: int | None = None,
    ) -> None:
        self.uri = uri
        #: The mode in which it was delivered.
        self.mode = mode
        #: The object's version; None if the server did not send it.
        self.etag = etag
        #: Modification time in seconds since 1970; None if the server did not send it.
        self.mtime = mtime
        self._descriptor = descriptor
        if mode is _FDPASS or size is None:
            self._read_size()
        else:
            self.size = size

    def _read_size(self) -> None:
        """Gets the size from the kernel. Closes the object and raises RemoteProtocolError if it is no regular file."""
        found = os.fstat(self._descriptor)
        self.size = found.st_size
        if found.st_mode & _TYPE != _REGULAR:
            self.close()
            raise RemoteProtocolError(f"{self.uri}: the server passed a descriptor that is not a regular file")

    def __repr__(self) -> str:
        state = "closed" if self._descriptor < 0 else f"fd={self._descriptor}"
        return f"<Object {self.uri!r} {self.size} bytes by {self.mode.name.lower()} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._descriptor >= 0:
            message = f"unclosed {self!r}"
            # Close first: if warnings are errors, the next line raises.
            self.close()
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def __reduce__(self) -> str:
        raise TypeError("an Object owns a descriptor and cannot be pickled; pickle its client and URI")

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed or detached."""
        return self._descriptor < 0

    def close(self) -> None:
        """Closes the descriptor. May be called twice; views stay valid."""
        close_descriptor(self)

    def fileno(self) -> int:
        """Returns the descriptor, which the object still owns and closes. Raises ValueError if it is closed."""
        if self._descriptor < 0:
            raise ValueError(f"{self.uri}: the object is closed")
        return self._descriptor

    def detach(self) -> int:
        """Returns the descriptor, which the caller owns from now on and must close. The object is closed then."""
        descriptor = self.fileno()
        self._descriptor = -1
        return descriptor

    def read(self, length: int = -1) -> bytes:
        """Reads the next `length` bytes at the position; all remaining ones if negative. Fewer only at the end."""
        descriptor = self.fileno()
        if not 0 <= length <= _CHUNK:
            left = max(0, os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR))
            length = left if length < 0 else min(length, left)
        return _read_all(lambda limit: os.read(descriptor, limit), length)

    def pread(self, length: int, offset: int) -> bytes:
        """Reads `length` bytes at `offset`, fewer only at the end. Does not move the position. Thread-safe."""
        descriptor = self.fileno()
        at = offset

        def read_some(limit: int) -> bytes:
            nonlocal at
            chunk = os.pread(descriptor, limit, at)
            at += len(chunk)
            return chunk

        left = max(0, os.fstat(descriptor).st_size - offset)
        return _read_all(read_some, min(length, left))

    def readinto(self, buffer: "WriteableBuffer", offset: int = 0) -> int:
        """Reads bytes at `offset` into `buffer`, until it is full or the object ends. Returns their number."""
        descriptor, view, at = self.fileno(), writable_bytes(buffer), 0
        while at < len(view):
            length = os.preadv(descriptor, [view[at:]], offset + at)
            if length == 0:
                break
            at += length
        return at

    def view(self) -> memoryview:
        """Maps the content read-only, without a copy: the kernel reads pages on first access.

        The view stays valid while it is referenced, also after `close`: ``numpy.frombuffer(found.view(), …)``. If
        another program truncates the file in place, access beyond its new end kills this process with SIGBUS. A put
        never truncates; if other programs write to the served directory, use `read` or `pread`, which return less.
        """
        if self.size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(self.fileno(), self.size, prot=mmap.PROT_READ))

    def save(self, path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> int:
        """Writes the content to a file, which appears under its name when it is complete. Returns its size in bytes.

        The kernel shares or copies the bytes (copy_file_range, sendfile) if it can. Holes stay holes; in memory files
        blocks of zeros become holes. Calls `progress` with the number of bytes of each step. An existing file's
        permissions are kept; devices and pipes are written to directly.

        Raises OSError, and Conflict if the object was truncated meanwhile. After an error, and also after SIGKILL, an
        existing file is unchanged and no temporary file is left.
        """
        descriptor = self.fileno()
        with open_output(path) as output:
            copy = copy_to if self.mode is _FDPASS else copy_memory_to
            copied = copy(descriptor, output, self.size, progress=progress)
            if copied < self.size:
                raise truncated_error(self.uri, copied, self.size)
            return copied


def writable_bytes(buffer: "WriteableBuffer") -> memoryview:
    """Returns a writable view of a buffer's bytes. Raises TypeError if the buffer is read-only or not contiguous."""
    view, kind = memoryview(buffer), type(buffer).__name__
    if view.readonly:
        raise TypeError(f"buffer: {kind} is read-only; take a bytearray, or an array that can be written to")
    if not view.c_contiguous:
        raise TypeError(f"buffer: {kind} is not contiguous in memory (C order); fill a copy")
    # An array with a dimension of length 0 cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def truncated_error(uri: str, received: int, size: int) -> ServerReply:
    """The error for an object whose file became shorter during a read. A put never shortens a file."""
    message = f"the object was truncated while it was read: {received} of {size} bytes arrived; read it again"
    return error_for(Status.CONFLICT, message, uri)


def _read_all(read_some: Callable[[int], bytes], length: int) -> bytes:
    first = read_some(length) if length else b""
    if len(first) == length or not first:
        return first
    # One read returns at most 2 GiB, and the file may have become shorter.
    pieces, left = [first], length - len(first)
    while left and (piece := read_some(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def too_large_error(size: int) -> RemoteProtocolError:
    """The error for a content that does not fit into this process's memory."""
    return RemoteProtocolError(f"not enough memory for the content of {size} bytes; use stream()")
