"""What fsspec expects of a path: its `info`, the errors of the operating system, and whether it is a pattern."""

import errno
import os
import re
from typing import Any

from objmapper_client.errors import ObjectNotFound, PermissionDenied

Info = dict[str, Any]


def is_pattern(path: str) -> bool:
    """Whether fsspec treats the path as a pattern."""
    return re.search(r"[*?\[]", path) is not None


def not_found(path: str) -> FileNotFoundError:
    """The error for a path that does not exist."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def already_exists(path: str) -> FileExistsError:
    """The error for a path that exists."""
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def is_a_directory(path: str) -> IsADirectoryError:
    """The error for a directory where an object is expected."""
    return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


class raising_is_a_directory:  # noqa: N801 - reads as a word of its `with` statement
    """Raises IsADirectoryError if the block raises the server's error for a directory."""

    def __init__(self, path: str, system: Any) -> None:
        self._path = path
        self._system = system

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._path == "/" or (
            isinstance(error, ObjectNotFound | PermissionDenied) and self._system._has_objects(self._path)
        ):
            raise is_a_directory(self._path) from error


def file_info(name: str, size: int, mtime: int, etag: str | None = None) -> Info:
    """The `info` of an object."""
    info = {"name": name, "size": size, "type": "file", "mtime": mtime}
    return info if etag is None else {**info, "etag": etag}


def directory_info(name: str) -> Info:
    """The `info` of a directory."""
    return {"name": name, "size": 0, "type": "directory"}
