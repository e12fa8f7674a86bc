"""Exclusive use of a Unix socket's path: the server holds a lock file beside the socket while it serves it.

The server removes only its own files: another process may have removed them, and another server made new ones.
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
    """The path and its lock. Keep the socket open until `release`, so that no other file gets its inode number."""

    def __init__(self, path: str, lock: int) -> None:
        self._path = path
        self._lock_path = f"{path}.lock"
        self._lock: int | None = lock
        self._bound_identity: Identity | None = None

    @classmethod
    def claim(cls, path: str) -> Self:
        """Lock the path, and remove a stale socket.

        Raises OSError (EADDRINUSE) if another server holds the lock. bind(2) reports any other file at the path.
        """
        claim = cls(path, _lock_file(f"{path}.lock"))
        try:
            _remove_stale(path)
        except BaseException:
            claim.release()
            raise
        return claim

    def record_identity(self) -> None:
        """Record the identity of the bound socket."""
        self._bound_identity = _identity(os.lstat(self._path))

    def release(self) -> None:
        """Remove the socket and the lock file, if they are still this server's. May be called twice."""
        if self._lock is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._bound_identity is not None and _identity(os.lstat(self._path)) == self._bound_identity:
                Path(self._path).unlink()
        with contextlib.suppress(FileNotFoundError):
            # After the socket, so that the path is free for the next holder of the lock.
            if _identity(os.lstat(self._lock_path)) == _identity(os.fstat(self._lock)):
                Path(self._lock_path).unlink()
        os.close(self._lock)
        self._lock = None


def _lock_file(path: str) -> int:
    """Open and lock the file. Try again if its previous holder removed it meanwhile."""
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
            # Non-blocking: a server with a full backlog (EAGAIN) must not block this one.
            probe.setblocking(False)
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino
