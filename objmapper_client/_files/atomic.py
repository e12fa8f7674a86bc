"""Files that appear under their name only when they are whole. A device or a pipe is written to as it is."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: What file systems say that have no files without a name, or kernels that do not know them.
_NO_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
_NAMELESS = getattr(os, "O_TMPFILE", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_WRITE = os.O_WRONLY | _CLOEXEC
# By its link there a file gets a name that has none.
_OPEN_FILES = "/proc/self/fd"


@contextmanager
def open_output(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[int]:
    """Yield a descriptor to write to, for the time of the block; after a failure a file is as it was before.

    A file that is there keeps its permissions, and a symbolic link its place: the file that it leads to is replaced. A
    device or a pipe is written to, and never replaced; so is a descriptor of this or another process, as /dev/stdout or
    /proc/self/fd/N name it: at its position, or appended. `sync` is that of `whole_file`. Raises OSError.
    """
    held = _held(path)
    if held >= 0:
        try:
            yield held
        finally:
            os.close(held)
        return
    name = os.fspath(path)
    if not name or (os.path.basename(name) == name[:0] and not os.path.isdir(name)):
        # Without a name for the file; the system would leave the slash out.
        raise FileNotFoundError(errno.ENOENT, "No such directory" if name else "A file without a name", name)
    try:
        kept = os.stat(path)
    except FileNotFoundError:
        kept = None
    if kept is None or stat.S_ISREG(kept.st_mode):
        permissions = None if kept is None else stat.S_IMODE(kept.st_mode)
        with atomic_file(os.path.realpath(path), permissions, sync=sync) as descriptor:
            yield descriptor
        return
    descriptor = os.open(path, _WRITE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _held(path: str | os.PathLike[str]) -> int:
    """A new descriptor for the open file that a path below /proc/PID/fd stands for; -1 for any other path."""
    name = os.fspath(path)
    # More links than this the kernel does not follow either.
    for _ in range(40):
        folder, last = os.path.split(name)
        if not last:
            return -1
        folder = os.path.realpath(folder or ".")
        parts = folder.split("/")
        if last.isdigit() and parts[1:2] == ["proc"] and parts[-1] == "fd" and len(parts) in (4, 6):
            return _reopened(path, int(last)) if os.getpid() == int(parts[2]) else os.open(path, _WRITE)
        try:
            target = os.readlink(os.path.join(folder, last))
        except OSError:
            return -1
        name = os.path.join(folder, target)
    return -1


def _reopened(path: str | os.PathLike[str], number: int) -> int:
    import fcntl

    try:
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "The descriptor is not open for writing", path)
        return os.dup(number)
    except OSError as error:
        error.filename = path
        raise


@contextmanager
def atomic_file(
    path: str | os.PathLike[str],
    permissions: int | None = None,
    under_way: set[str] | None = None,
    *,
    sync: bool = False,
) -> Iterator[int]:
    """Yield a descriptor of a file that gets its name when the block ends, and is gone when the block fails.

    Until then it has no name at all (O_TMPFILE of open(2)), so that not even SIGKILL leaves anything behind; or, where
    the file system has no such files, another name, which ends in ``.part`` and is in `under_way`, for those who may
    have to leave in a hurry. With `sync` the content is on the disk before the name is, and the name before the block
    is left: a power failure then leaves the old file or the new one. Without it that is up to the file system. Raises
    OSError.
    """
    target = os.fspath(path)
    folder, name = os.path.split(target)
    # At most 160 bytes of the name: with the rest it must fit the 255 of a file system.
    beside = os.path.join(folder, f".{name[:40]}.{os.urandom(6).hex()}.part")
    names = set[str]() if under_way is None else under_way
    names.add(beside)
    try:
        descriptor, has_name = _made(beside, target)
        try:
            try:
                if permissions is not None:
                    os.fchmod(descriptor, permissions)
                yield descriptor
                if sync:
                    os.fsync(descriptor)
                is_there = not has_name and _named(descriptor, target, beside)
            finally:
                os.close(descriptor)
            if not is_there:
                os.replace(beside, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            raise
    finally:
        names.discard(beside)
    if sync:
        sync_directory(folder)


def _made(beside: str, target: str) -> tuple[int, bool]:
    """A new file, and whether it has its other name."""
    try:
        if _NAMELESS and os.path.exists(_OPEN_FILES):
            try:
                return os.open(os.path.dirname(target) or ".", _WRITE | _NAMELESS, 0o666), False
            except OSError as error:
                if error.errno not in _NO_NAMELESS:
                    raise
        return os.open(beside, _WRITE | os.O_CREAT | os.O_EXCL, 0o666), True
    except OSError as error:
        error.filename = target
        raise


def _named(descriptor: int, target: str, beside: str) -> bool:
    """Gives a file its name; where there is a file already, the other one: linkat(2) replaces nothing."""
    for name in (target, beside):
        with suppress(FileExistsError):
            # With a directory's descriptor Python calls linkat(2), which follows the link in /proc to the file.
            os.link(f"{_OPEN_FILES}/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
            return name is target
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), beside)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(os.fspath(path) or ".", os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
