"""An object in hand: an owned descriptor with size, read, view, save."""

import mmap
import os
import stat
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from objmapper_client._files.atomic import open_output
from objmapper_client._files.copy import copy_memory_to, copy_to
from objmapper_client._runtime.descriptors import close_descriptor
from objmapper_client.errors import RemoteProtocolError, ServerReply, error_for
from objmapper_client.protocol.v1 import Mode, Status

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Before Python 3.12 looking a member up in its enumeration calls a function, which costs ten times as much as this.
_FDPASS = Mode.FDPASS
#: Bytes that one call reads at once.
_CHUNK = 1 << 20
# What stat.S_ISREG compares, without the call.
_TYPE, _REGULAR = 0o170000, stat.S_IFREG


class Object:
    """An object that a server handed out. It owns its descriptor: close it, or use it as a context manager.

    Where the server passed a descriptor it is an open file of its own (only the caller moves its position); where bytes
    came over the wire it is a file in memory. Not safe for use by several threads at once, except `pread` and `view`.
    """

    # What there is where the constructor was called wrongly, or interrupted.
    _descriptor = -1
    uri = ""
    mode = _FDPASS
    etag: str | None = None
    mtime: int | None = None
    #: Bytes, when it came.
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
        #: How it really came.
        self.mode = mode
        #: The object's version, where the server said it.
        self.etag = etag
        #: When it was last modified, in seconds since 1970, where the server said it.
        self.mtime = mtime
        self._descriptor = descriptor
        if mode is _FDPASS or size is None:
            self._examine()
        else:
            self.size = size

    def _examine(self) -> None:
        """Asks the kernel for the size. Raises RemoteProtocolError, and closes, where it is no regular file."""
        found = os.fstat(self._descriptor)
        self.size = found.st_size
        if found.st_mode & _TYPE != _REGULAR:
            self.close()
            raise RemoteProtocolError(f"{self.uri}: the server passed a descriptor that is no regular file")

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
            words = f"unclosed {self!r}"
            # First: where warnings are errors, the next line raises.
            self.close()
            warnings.warn(words, ResourceWarning, stacklevel=2, source=self)

    def __reduce__(self) -> str:
        raise TypeError("an Object owns a descriptor and cannot be pickled; pickle its client and URI")

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed or given away."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close the descriptor. Can be called twice; views stay valid."""
        close_descriptor(self)

    def fileno(self) -> int:
        """The descriptor, lent: it stays the object's to close. Raises ValueError once closed."""
        if self._descriptor < 0:
            raise ValueError(f"{self.uri}: the object is closed")
        return self._descriptor

    def detach(self) -> int:
        """The descriptor, given away: it is the caller's to close. The object is closed then."""
        descriptor = self.fileno()
        self._descriptor = -1
        return descriptor

    def read(self, length: int = -1) -> bytes:
        """The next `length` bytes from the position, all that are left for a negative one; fewer only at the end."""
        descriptor = self.fileno()
        if not 0 <= length <= _CHUNK:
            left = max(0, os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR))
            length = left if length < 0 else min(length, left)
        return _gather(lambda most: os.read(descriptor, most), length)

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset` on, fewer only at the end; the position does not move."""
        descriptor = self.fileno()
        at = offset

        def some(most: int) -> bytes:
            nonlocal at
            chunk = os.pread(descriptor, most, at)
            at += len(chunk)
            return chunk

        left = max(0, os.fstat(descriptor).st_size - offset)
        return _gather(some, min(length, left))

    def readinto(self, buffer: "WriteableBuffer", offset: int = 0) -> int:
        """Fills `buffer` with what there is from `offset` on. Returns how many bytes that were."""
        descriptor, view, at = self.fileno(), writable_bytes(buffer), 0
        while at < len(view):
            length = os.preadv(descriptor, [view[at:]], offset + at)
            if length == 0:
                break
            at += length
        return at

    def view(self) -> memoryview:
        """The content, read-only and without a copy: pages are read when they are touched.

        Valid as long as it is referenced, also after the object is closed: ``numpy.frombuffer(found.view(), …)``.
        Where a program truncates the file in place, touching what is gone ends this process with SIGBUS. A put never
        does that; where other programs write to the served directory, `read` and `pread` are safe: they return less.
        """
        if self.size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(self.fileno(), self.size, prot=mmap.PROT_READ))

    def save(self, path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> int:
        """Writes the content to a file, which appears under its name only when it is whole. Returns its size.

        The bytes are shared or copied by the kernel (copy_file_range, sendfile) where it can. Holes stay holes; of
        bytes that came over the wire, long runs of zeros become holes. `progress` is called with the number of bytes of
        each step. A file that is there keeps its permissions; a device or a pipe is written to.
        Raises OSError, and Conflict where the object was truncated meanwhile; then, and also after a SIGKILL, the file
        is as it was, and nothing else is left.
        """
        descriptor = self.fileno()
        with open_output(path) as output:
            copy = copy_to if self.mode is _FDPASS else copy_memory_to
            copied = copy(descriptor, output, self.size, progress=progress)
            if copied < self.size:
                raise truncated(self.uri, copied, self.size)
            return copied


def writable_bytes(buffer: "WriteableBuffer") -> memoryview:
    """The bytes of a buffer that is to be filled. Raises TypeError where it cannot be."""
    view, kind = memoryview(buffer), type(buffer).__name__
    if view.readonly:
        raise TypeError(f"buffer: {kind} is read-only; take a bytearray, or an array that can be written to")
    if not view.c_contiguous:
        raise TypeError(f"buffer: {kind} is not contiguous in memory (C order); fill a copy")
    # An array with a dimension of 0 cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def truncated(uri: str, have: int, promised: int) -> ServerReply:
    """The error for an object whose file became shorter while it was read, which a put never does."""
    words = f"the object was truncated while it was read: {have} of {promised} bytes came; read it again"
    return error_for(Status.CONFLICT, words, uri)


def _gather(some: Callable[[int], bytes], length: int) -> bytes:
    first = some(length) if length else b""
    if len(first) == length or not first:
        return first
    # The kernel moves at most 2 GiB at once, and a file may have shrunk.
    pieces, left = [first], length - len(first)
    while left and (piece := some(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def too_large(size: int) -> RemoteProtocolError:
    """The error for a promised content that this process cannot hold."""
    return RemoteProtocolError(f"no room in memory for the promised content of {size} bytes; stream() needs none")
