"""Bytes to wherever the output is, all of them; ranges of files go by `objmapper_client.object.copy_to`."""

import os
from typing import Final

#: What becomes a hole of a new file where it is all zeros.
ZEROS: Final = bytes(64 << 10)


def write_all(target: int, piece: bytes | memoryview) -> None:
    """Write the whole piece."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(target, rest) :]


def write_sparsely(target: int, piece: bytes) -> None:
    """Write the whole piece to a new file, but leave out long runs of zeros. `end_file` must follow the last piece."""
    start = 0
    for at in range(0, len(piece), len(ZEROS)):
        end = min(at + len(ZEROS), len(piece))
        if piece.startswith(ZEROS, at) if end - at == len(ZEROS) else False:
            write_all(target, memoryview(piece)[start:at])
            os.lseek(target, len(ZEROS), os.SEEK_CUR)
            start = end
    write_all(target, memoryview(piece)[start:])


def end_file(target: int) -> None:
    """Let the file end where its writer is: what was left out at its end is a part of it."""
    os.ftruncate(target, os.lseek(target, 0, os.SEEK_CUR))
