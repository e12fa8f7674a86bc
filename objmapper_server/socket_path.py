"""The right to the path of a Unix socket: a locked file beside it, held as long as the socket is served.

Only what is this server's own is removed: both files may have been removed meanwhile and made anew by another server.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Self

Identity = tuple[int, int]


class SocketPath:
    """The path and its lock. The socket must stay open until `release`: so long its inode number is no other file's."""

    def __init__(self, path: str, lock: int) -> None:
        self._path = path
        self._lock_path = f"{path}.lock"
        self._lock: int | None = lock
        self._ours: Identity | None = None

    @classmethod
    def claim(cls, path: str) -> Self:
        """Lock the path, and remove a socket that is not served any more.

        Raises OSError (EADDRINUSE) where another server has it. Anything else that is there is left for bind(2) to
        complain about.
        """
        claim = cls(path, _locked(f"{path}.lock"))
        try:
            _remove_stale(path)
        except BaseException:
            claim.release()
            raise
        return claim

    def bound(self) -> None:
        """Remember the socket that was bound there."""
        self._ours = _identity(os.lstat(self._path))

    def release(self) -> None:
        """Remove the socket and the lock file, where they are still those of this server. Can be called twice."""
        if self._lock is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._ours is not None and _identity(os.lstat(self._path)) == self._ours:
                Path(self._path).unlink()
        with contextlib.suppress(FileNotFoundError):
            # Last, so that a server that waits for it finds the path free.
            if _identity(os.lstat(self._lock_path)) == _identity(os.fstat(self._lock)):
                Path(self._lock_path).unlink()
        os.close(self._lock)
        self._lock = None


def _locked(path: str) -> int:
    """Open and lock the file; again where its last holder removed it meanwhile."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if _identity(os.lstat(path)) == _identity(os.fstat(lock)):
                    return lock
        except BlockingIOError:
            os.close(lock)
            raise OSError(errno.EADDRINUSE, "another server holds this socket's lock", path) from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # A server whose backlog is full (EAGAIN) must not hold this one up.
            probe.setblocking(False)
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino
