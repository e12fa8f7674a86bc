"""Bytes to wherever the output is, all of them; ranges of files go by `objmapper_client.object.copy_to`."""

import os


def write_all(target: int, piece: bytes | memoryview) -> None:
    """Write the whole piece."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(target, rest) :]
