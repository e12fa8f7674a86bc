"""Writes files atomically: a file appears under its name when it is complete. Writes to devices and pipes directly."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Errors of file systems and kernels without O_TMPFILE.
_NO_TMPFILE_ERRNOS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
_TMPFILE = getattr(os, "O_TMPFILE", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_WRITE = os.O_WRONLY | _CLOEXEC
# An O_TMPFILE file gets its name through its link in this directory.
_PROCESS_DESCRIPTORS = "/proc/self/fd"


@contextmanager
def open_output(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[int]:
    """Yields a descriptor to write to during the block. If the block fails, an existing file is unchanged.

    The new file keeps an existing file's permissions; for a symbolic link, its target is replaced. Devices, pipes and
    descriptors of a process (/dev/stdout, /proc/self/fd/N) are written to directly: at their position, or appended.
    `sync` is that of `atomic_file`. Raises OSError.
    """
    process_descriptor = _open_process_descriptor(path)
    if process_descriptor >= 0:
        try:
            yield process_descriptor
        finally:
            os.close(process_descriptor)
        return
    name = os.fspath(path)
    if not name or (os.path.basename(name) == name[:0] and not os.path.isdir(name)):
        # The path ends in a slash, which realpath would drop.
        raise FileNotFoundError(errno.ENOENT, "No such directory" if name else "A file without a name", name)
    try:
        existing = os.stat(path)
    except FileNotFoundError:
        existing = None
    if existing is None or stat.S_ISREG(existing.st_mode):
        permissions = None if existing is None else stat.S_IMODE(existing.st_mode)
        with atomic_file(os.path.realpath(path), permissions, sync=sync) as descriptor:
            yield descriptor
        return
    descriptor = os.open(path, _WRITE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_process_descriptor(path: str | os.PathLike[str]) -> int:
    """Opens the file of a path below /proc/PID/fd. Returns a new descriptor; -1 for any other path."""
    name = os.fspath(path)
    # The kernel follows at most 40 links, too.
    for _ in range(40):
        directory, last = os.path.split(name)
        if not last:
            return -1
        directory = os.path.realpath(directory or ".")
        parts = directory.split("/")
        if last.isdigit() and parts[1:2] == ["proc"] and parts[-1] == "fd" and len(parts) in (4, 6):
            return _duplicate_writable(path, int(last)) if os.getpid() == int(parts[2]) else os.open(path, _WRITE)
        try:
            target = os.readlink(os.path.join(directory, last))
        except OSError:
            return -1
        name = os.path.join(directory, target)
    return -1


def _duplicate_writable(path: str | os.PathLike[str], number: int) -> int:
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
    partial_files: set[str] | None = None,
    *,
    sync: bool = False,
) -> Iterator[int]:
    """Yields a descriptor of a new file, which gets its name when the block ends. If the block fails, it is removed.

    Until then the file has no name (O_TMPFILE of open(2)), so that even SIGKILL leaves nothing behind. Where the file
    system lacks O_TMPFILE it has a name that ends in ``.part``. `partial_files` holds that name meanwhile, so that a
    signal handler can remove the file.

    With `sync` the content is on the disk before the name is, and the name before the block ends: a power failure
    leaves the old file or the new one. Without it the result depends on the file system. Raises OSError.
    """
    target = os.fspath(path)
    directory, name = os.path.split(target)
    # 40 characters are at most 160 bytes: the whole name must fit the file system's 255.
    temporary_path = os.path.join(directory, f".{name[:40]}.{os.urandom(6).hex()}.part")
    registry = set[str]() if partial_files is None else partial_files
    registry.add(temporary_path)
    try:
        descriptor, has_name = _create_file(temporary_path, target)
        try:
            try:
                if permissions is not None:
                    os.fchmod(descriptor, permissions)
                yield descriptor
                if sync:
                    os.fsync(descriptor)
                is_linked = not has_name and _link_file(descriptor, target, temporary_path)
            finally:
                os.close(descriptor)
            if not is_linked:
                os.replace(temporary_path, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary_path)
            raise
    finally:
        registry.discard(temporary_path)
    if sync:
        sync_directory(directory)


def _create_file(temporary_path: str, target: str) -> tuple[int, bool]:
    """Creates a file. Returns its descriptor, and whether it has the temporary name `temporary_path`."""
    try:
        if _TMPFILE and os.path.exists(_PROCESS_DESCRIPTORS):
            try:
                return os.open(os.path.dirname(target) or ".", _WRITE | _TMPFILE, 0o666), False
            except OSError as error:
                if error.errno not in _NO_TMPFILE_ERRNOS:
                    raise
        return os.open(temporary_path, _WRITE | os.O_CREAT | os.O_EXCL, 0o666), True
    except OSError as error:
        error.filename = target
        raise


def _link_file(descriptor: int, target: str, temporary_path: str) -> bool:
    """Links an unnamed file to `target`, or to `temporary_path` if `target` exists: linkat(2) does not replace files.

    Returns whether it got the name `target`.
    """
    for name in (target, temporary_path):
        with suppress(FileExistsError):
            # `src_dir_fd` makes Python call linkat(2), which follows the link in /proc to the file.
            os.link(f"{_PROCESS_DESCRIPTORS}/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
            return name is target
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), temporary_path)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Writes a directory's entries to the disk."""
    descriptor = os.open(os.fspath(path) or ".", os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
