"""Bytes from an open file to wherever the output is: in the kernel where it can, in bounded pieces where it cannot."""

import errno
import os
from collections.abc import Callable
from typing import Final

#: Bytes: short enough for a bar that moves, long enough to cost nothing.
STEP: Final = 8 << 20
PIECE: Final = 1 << 20
#: Not this pair of descriptors, or not this kernel. Everything else is the copy's own failure.
UNSUITABLE: Final = frozenset({errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM})


def copy_range(source: int, target: int, offset: int, length: int, progress: Callable[[int], None]) -> int:
    """Write `length` bytes of the file `source`, from `offset` on, to `target`; return how many there were.

    Files share or copy their blocks, pipes take the pages of the page cache; only what has neither goes through here.
    """
    ways = [_file_to_file, _file_to_any, _by_hand]
    done = 0
    while done < length:
        try:
            moved = ways[0](source, target, offset + done, min(length - done, STEP))
        except OSError as error:
            if len(ways) == 1 or error.errno not in UNSUITABLE:
                raise
            ways.pop(0)
            continue
        if moved == 0:
            break
        done += moved
        progress(moved)
    return done


def write_all(target: int, piece: bytes | memoryview) -> None:
    """Write the whole piece."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(target, rest) :]


def _file_to_file(source: int, target: int, offset: int, length: int) -> int:
    return os.copy_file_range(source, target, length, offset_src=offset)


def _file_to_any(source: int, target: int, offset: int, length: int) -> int:
    return os.sendfile(target, source, offset, length)


def _by_hand(source: int, target: int, offset: int, length: int) -> int:
    piece = os.pread(source, min(length, PIECE), offset)
    write_all(target, piece)
    return len(piece)
