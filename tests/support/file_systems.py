"""File systems for tests that need one of a kind: made in a file, mounted for the time of a block."""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Times in whole seconds: 128 bytes of an inode have no room for fractions.
EXT4_OF_SECONDS = ("mke2fs", "-q", "-F", "-t", "ext4", "-I", "128")
BTRFS = ("mkfs.btrfs", "-q")
#: The least that mkfs.btrfs takes is 109 MiB.
SIZE = 128 << 20


@functools.cache
def why_not(maker: Sequence[str] = EXT4_OF_SECONDS) -> str:
    """Why no such file system can be mounted here; empty where it can."""
    if os.geteuid() != 0:
        return "only root can mount a file system"
    if shutil.which(maker[0]) is None:
        return f"{maker[0]} is not installed"
    try:
        with mounted(maker):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{maker[0]}: cannot be mounted here: {error.stderr.strip()}"
    except subprocess.TimeoutExpired:
        return f"{maker[0]}: cannot be mounted here: mount(8) does not end"


@contextmanager
def mounted(maker: Sequence[str] = EXT4_OF_SECONDS) -> Iterator[Path]:
    """A fresh file system, which `maker` makes in a file, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="objmapper-mount-") as name:
        image, place = Path(name, "image"), Path(name, "mount")
        image.touch()
        os.truncate(image, SIZE)
        place.mkdir()
        _run(*maker, str(image))
        _run("mount", "-o", "loop,nodev,nosuid", str(image), str(place))
        try:
            root = place / "root"
            root.mkdir()
            yield root
        finally:
            # A lazy one: a test that failed may have left a descriptor open.
            _run("umount", "-l", str(place))


@contextmanager
def tmpfs() -> Iterator[Path]:
    """A fresh tmpfs."""
    with tempfile.TemporaryDirectory(prefix="objmapper-tmpfs-") as name:
        _run("mount", "-t", "tmpfs", "-o", "size=64m", "none", name)
        try:
            root = Path(name, "root")
            root.mkdir()
            yield root
        finally:
            _run("umount", "-l", name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
