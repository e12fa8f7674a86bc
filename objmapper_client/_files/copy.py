"""Copies bytes from a file to an output, inside the kernel if possible. Keeps holes in a new file."""

import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

#: A block of zeros. In a new file such a block becomes a hole.
ZEROS: Final = bytes(16 << 10)
_CHUNK = 1 << 20
# As stat.S_ISREG, without the call.
_TYPE, _REGULAR = 0o170000, stat.S_IFREG
# Maximum bytes of one copy_file_range or sendfile call.
_MAX_CALL_LENGTH = 1 << 30


def copy_to(
    source: int, output: int, length: int, offset: int = 0, progress: Callable[[int], None] | None = None
) -> int:
    """Copies `length` bytes of `source` from `offset` to the position of `output`, inside the kernel if possible.

    Both descriptors stay the caller's; the position of `source` does not change. Keeps holes of `source` in a new file.
    Calls `progress` with the bytes copied since its last call. Returns the number of bytes copied.
    """
    if is_new_file(output) and _has_holes(source):
        return _copy_data(source, output, length, offset, progress)
    return _copy_all(source, output, length, offset, progress)


def copy_memory_to(source: int, output: int, length: int, progress: Callable[[int], None] | None = None) -> int:
    """Does as `copy_to` for a memory file that only this process has. Blocks of zeros become holes too."""
    if not is_new_file(output) or length < len(ZEROS):
        return _copy_all(source, output, length, 0, progress)
    with mmap.mmap(source, length, prot=mmap.PROT_READ) as memory:
        at = 0
        for start, end in _data_ranges(memory, length):
            if progress is not None and start > at:
                progress(start - at)
            os.lseek(output, start, os.SEEK_SET)
            _copy_all(source, output, end - start, start, progress)
            at = end
    if progress is not None and length > at:
        progress(length - at)
    os.ftruncate(output, length)
    os.lseek(output, length, os.SEEK_SET)
    return length


def _data_ranges(memory: mmap.mmap, length: int) -> Iterator[tuple[int, int]]:
    """Yields start and end of each run of blocks that are not all zeros."""
    start = -1
    for at in range(0, length, len(ZEROS)):
        end = min(at + len(ZEROS), length)
        # Check both ends first: most blocks of data have a byte there that is not zero.
        if memory[at] or memory[end - 1] or memory[at:end] != ZEROS[: end - at]:
            start = at if start < 0 else start
        elif start >= 0:
            yield start, at
            start = -1
    if start >= 0:
        yield start, length


def write_pieces(target: int, pieces: Iterable[bytes], progress: Callable[[int], None]) -> int:
    """Writes all pieces. Blocks of zeros become holes in a new file. Returns the number of bytes.

    Raises OSError, and the errors of `pieces`.
    """
    is_new = is_new_file(target)
    write = _write_sparsely if is_new else _write_all
    count = 0
    for piece in pieces:
        write(target, piece)
        progress(len(piece))
        count += len(piece)
    if is_new:
        # Extends the file by a hole at its end.
        os.ftruncate(target, os.lseek(target, 0, os.SEEK_CUR))
    return count


def _write_all(target: int, piece: bytes | memoryview) -> None:
    """Writes the whole piece."""
    remaining = memoryview(piece)
    while remaining:
        remaining = remaining[os.write(target, remaining) :]


def _write_sparsely(target: int, piece: bytes) -> None:
    """Writes the whole piece to a new file, with holes for blocks of zeros."""
    position = os.lseek(target, 0, os.SEEK_CUR)
    view = memoryview(piece)
    written = at = 0
    while at < len(piece):
        end = min(at + len(ZEROS) - (position + at) % len(ZEROS), len(piece))
        if piece.startswith(ZEROS[: end - at], at):
            _write_all(target, view[written:at])
            written = end
            os.lseek(target, position + end, os.SEEK_SET)
        at = end
    _write_all(target, view[written:])


def is_new_file(descriptor: int) -> bool:
    """Whether a descriptor is at the start of an empty regular file, where unwritten bytes become holes."""
    found = os.fstat(descriptor)
    return found.st_mode & _TYPE == _REGULAR and found.st_size == 0 and os.lseek(descriptor, 0, os.SEEK_CUR) == 0


def _has_holes(descriptor: int) -> bool:
    found = os.fstat(descriptor)
    blocks: int = getattr(found, "st_blocks", found.st_size)
    return found.st_mode & _TYPE == _REGULAR and blocks * 512 < found.st_size and hasattr(os, "SEEK_DATA")


def _copy_data(source: int, output: int, length: int, offset: int, progress: Callable[[int], None] | None) -> int:
    position = os.lseek(source, 0, os.SEEK_CUR)
    try:
        at, end = offset, min(offset + length, os.fstat(source).st_size)
        while at < end:
            data = min(_next_data(source, at, end), end)
            if progress is not None and data > at:
                progress(data - at)
            if data < end:
                hole = min(os.lseek(source, data, os.SEEK_HOLE), end)
                os.lseek(output, data - offset, os.SEEK_SET)
                moved = _copy_all(source, output, hole - data, data, progress)
                if moved < hole - data:
                    end = data + moved
                data = hole
            at = data
        done = max(0, end - offset)
        os.ftruncate(output, done)
        os.lseek(output, done, os.SEEK_SET)
        return done
    finally:
        os.lseek(source, position, os.SEEK_SET)


def _next_data(source: int, at: int, end: int) -> int:
    import errno

    try:
        return os.lseek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end


def _copy_all(source: int, output: int, length: int, offset: int, progress: Callable[[int], None] | None) -> int:
    methods = [_copy_file_range, _sendfile, _read_and_write]
    at, end = offset, offset + length
    # Short enough to show progress, long enough to cost little.
    step = _MAX_CALL_LENGTH if progress is None else 8 * _CHUNK
    while at < end:
        try:
            moved = methods[0](source, output, at, min(end - at, step))
        except (OSError, AttributeError):
            if len(methods) == 1 or not _may_fall_back():
                raise
            methods.pop(0)
            continue
        if moved == 0:
            break
        at += moved
        if progress is not None:
            progress(moved)
    return at - offset


def _may_fall_back() -> bool:
    import errno
    import sys

    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        return True
    # This pair of descriptors, file systems, or this kernel lacks the call; other errors are failures of the copy.
    return error.errno in (
        errno.EINVAL,
        errno.EXDEV,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EBADF,
        errno.EPERM,
    )


def _copy_file_range(source: int, output: int, offset: int, length: int) -> int:
    return os.copy_file_range(source, output, length, offset_src=offset)


def _sendfile(source: int, output: int, offset: int, length: int) -> int:
    return os.sendfile(output, source, offset, length)


def _read_and_write(source: int, output: int, offset: int, length: int) -> int:
    chunk = os.pread(source, min(length, _CHUNK), offset)
    written = 0
    while written < len(chunk):
        written += os.write(output, memoryview(chunk)[written:])
    return written
