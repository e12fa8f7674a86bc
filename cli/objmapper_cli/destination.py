"""Where an object is written to: standard output, or a file that appears under its name only when it is whole."""

import errno
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STDOUT = 1
#: What file systems say that have no files without a name, or kernels that do not know them.
_NO_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


@contextmanager
def destination(name: str | None, *, sync: bool = False) -> Iterator[int]:
    """Yield a descriptor to write to, for the time of the block; after a failure the file is as it was before.

    ``None`` and ``-`` are standard output. A device or a pipe is written to as it is: a rename would put a file in its
    place. With `sync` a file is on the disk when the block has ended. Raises OSError with the name.
    """
    if name in (None, "-"):
        with named("standard output"):
            yield STDOUT
        return
    assert name is not None
    try:
        kept = Path(name).stat()
    except FileNotFoundError:
        kept = None
    if kept is not None and not stat.S_ISREG(kept.st_mode):
        descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with named(name):
                yield descriptor
        finally:
            os.close(descriptor)
        return
    permissions = None if kept is None else stat.S_IMODE(kept.st_mode)
    with named(name), unless_terminated(), whole(Path(name).resolve(), permissions, sync=sync) as descriptor:
        yield descriptor


@contextmanager
def named(name: str) -> Iterator[None]:
    """Give the system's errors within the block the name of what is written to."""
    try:
        yield
    except OSError as error:
        if error.filename is None and type(error).__module__ == "builtins":
            error.filename = name
        raise


@contextmanager
def whole(
    path: Path, permissions: int | None = None, under_way: set[Path] | None = None, *, sync: bool = False
) -> Iterator[int]:
    """Yield a descriptor of a file that gets its name when the block ends, and is gone when the block fails.

    Until then it has no name at all (O_TMPFILE), so that not even SIGKILL leaves anything behind; or, where the file
    system has no such files, another name that is in `under_way`, for those who may have to leave in a hurry. With
    `sync` the content is on the disk before the name is, and the name before the block is left: a power failure then
    leaves the old file or the new one. Without it that is up to the file system.
    """
    beside = path.with_name(f".{path.name[:60]}.{os.urandom(6).hex()}.part")
    names = set[Path]() if under_way is None else under_way
    names.add(beside)
    try:
        descriptor, name = _made(beside, path)
        try:
            try:
                if permissions is not None:
                    os.fchmod(descriptor, permissions)
                yield descriptor
                if sync:
                    os.fsync(descriptor)
                if name is None:
                    name = _name(descriptor, beside, path)
            finally:
                os.close(descriptor)
            if name != path:
                name.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    finally:
        names.discard(beside)
    if sync:
        sync_directory(path.parent)


def _made(beside: Path, path: Path) -> tuple[int, Path | None]:
    """A new file, and its name if it has one."""
    try:
        try:
            return os.open(path.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o666), None
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
        return os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), beside
    except OSError as error:
        error.filename = str(path)
        raise


def _name(descriptor: int, beside: Path, path: Path) -> Path:
    """Gives a file its name; where that is another's, one to be renamed from: linkat(2) replaces nothing."""
    for name in (path, beside):
        try:
            # With a directory's descriptor Python calls linkat(2), which follows the link in /proc to the file.
            os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            continue
        return name
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(beside))


def make_directories(path: Path, *, sync: bool = False) -> None:
    """Make a directory and those above it, where they are missing; with `sync` their names are on the disk then."""
    missing = [each for each in (path, *path.parents) if not each.exists()] if sync else []
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def unless_terminated() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an orderly way out within the block."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
