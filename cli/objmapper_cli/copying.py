"""Bytes to wherever the output is, all of them; ranges of files go by `objmapper_client.object.copy_to`."""

import os
from typing import Final

#: Zeros of a block of the file, or of what a piece has of one, become a hole of a new file.
ZEROS: Final = bytes(16 << 10)


def write_all(target: int, piece: bytes | memoryview) -> None:
    """Write the whole piece."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(target, rest) :]


def write_sparsely(target: int, piece: bytes) -> None:
    """Write the whole piece to a new file, but leave out long runs of zeros. `end_file` must follow the last piece."""
    position = os.lseek(target, 0, os.SEEK_CUR)
    view = memoryview(piece)
    written = at = 0
    while at < len(piece):
        end = min(at + len(ZEROS) - (position + at) % len(ZEROS), len(piece))
        if piece.startswith(ZEROS[: end - at], at):
            write_all(target, view[written:at])
            written = end
            os.lseek(target, position + end, os.SEEK_SET)
        at = end
    write_all(target, view[written:])


def end_file(target: int) -> None:
    """Let the file end where its writer is: what was left out at its end is a part of it."""
    os.ftruncate(target, os.lseek(target, 0, os.SEEK_CUR))
