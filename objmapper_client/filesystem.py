"""The fsspec file system: ``fsspec.open("objmapper:///a.parquet")``. The only module that knows fsspec.

``objmapper:///a`` is on the default server, or on the one of the option `server`; ``objmapper://host:port/a`` is on a
TCP server. Directories are there as long as objects are below them; making one does nothing. Nothing is cached: an
object is what the server has now.
"""

import errno
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import isfilelike

from objmapper_client._object_files import ObjectReader, ObjectWriter
from objmapper_client.address import TcpAddress
from objmapper_client.client import Client
from objmapper_client.errors import Conflict, InvalidRequest, LocalProtocolError, ObjectNotFound, PermissionDenied
from objmapper_client.object import Object
from objmapper_client.protocol import Mode

#: Ranges that are asked for at once where bytes come over a wire.
_AT_ONCE = 8
Info = dict[str, Any]


class ObjmapperFileSystem(AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """The objects of one server as files.

    `server` is an address (``unix:/path``, ``tcp://host:port``), by default the server of this user; the other options
    are those of `Client`. Over a Unix socket a file that is opened for reading is a local one (`fileno` works). What is
    written becomes an object when the file is closed, whole or not at all; missing directories are made. Errors are
    those of `Client`, and those of files where they fit: FileNotFoundError, FileExistsError, IsADirectoryError.
    """

    protocol = "objmapper"
    root_marker = "/"

    def __init__(
        self,
        server: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        max_connections: int = 8,
        mode: Mode | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.client: Client = Client(
            server, timeout=timeout, connect_timeout=connect_timeout, max_connections=max_connections, mode=mode
        )
        # A file system has no end but this.
        weakref.finalize(self, self.client.close)

    @property
    def fsid(self) -> str:
        """Tells file systems apart by their server."""
        return f"objmapper {self.client.address}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path)
        prefix = f"{cls.protocol}://"
        if text.startswith(prefix):
            _, slash, text = text.removeprefix(prefix).partition("/")
            text = slash + text
        else:
            text = text.removeprefix(f"{cls.protocol}::")
        text = text.rstrip("/")
        return text if text.startswith("/") else f"/{text}"

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path; it names the server where that is a TCP one."""
        address = self.client.address
        host = str(address).removeprefix("tcp://") if isinstance(address, TcpAddress) else ""
        return f"{self.protocol}://{host}{self._strip_protocol(name)}"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        parts = urlsplit(path)
        return {"server": f"tcp://{parts.netloc}"} if parts.scheme == "objmapper" and parts.netloc else {}

    def info(self, path: str, **_: Any) -> Info:
        """Name, size, type, and of an object mtime (seconds since 1970) and etag. Raises FileNotFoundError."""
        path = self._strip_protocol(path)
        if path != self.root_marker:
            try:
                found = self.client.stat(path)
                return _file(found.uri, found.size, found.mtime, found.etag)
            except (ObjectNotFound, PermissionDenied) as error:
                # What is not handed out is not listed either: an empty directory, a link, what the server may not read.
                if not self._has_objects(path):
                    raise _not_found(path) from error
        return _directory(path)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is an object, or one below."""
        try:
            self.info(path)
        except (FileNotFoundError, InvalidRequest, LocalProtocolError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Whether there are objects below it."""
        return bool(self._type(path) == "directory")

    def isfile(self, path: str) -> bool:
        """Whether it is an object."""
        return bool(self._type(path) == "file")

    def _type(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except (FileNotFoundError, InvalidRequest, LocalProtocolError, PermissionDenied):
            return None

    def _has_objects(self, path: str) -> bool:
        return next(self._below(path, page_size=1), None) is not None

    def _below(self, path: str, page_size: int = 1000) -> Iterator[Info]:
        for entry in self.client.list(path.rstrip("/") + "/", page_size=page_size):
            yield _file(entry.uri, entry.size, entry.mtime)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is directly in a directory, in order. It costs a listing of all that is below.

        Raises FileNotFoundError.
        """
        path = self._strip_protocol(path)
        found: dict[str, Info] = {}
        start = len(path.rstrip("/")) + 1
        for each in self._below(path):
            child, slash, _rest = each["name"][start:].partition("/")
            name = each["name"][:start] + child
            found.setdefault(name, _directory(name) if slash else each)
        if not found and path != self.root_marker:
            each = self.info(path)
            found[path] = each
        return [found[name] for name in sorted(found)] if detail else sorted(found)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """All objects below a path, with one listing; names in order, or with `detail` what `info` says of each."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        start = len(path.rstrip("/")) + 1
        found: dict[str, Info] = {}
        for each in self._below(path):
            parts = each["name"][start:].split("/")
            if withdirs:
                found.setdefault(path, _directory(path))
                for depth in range(1, min(len(parts), maxdepth + 1 if maxdepth else len(parts))):
                    name = each["name"][:start] + "/".join(parts[:depth])
                    found.setdefault(name, _directory(name))
            if maxdepth is None or len(parts) <= maxdepth:
                found[each["name"]] = each
        if not found and self.isfile(path):
            found[path] = self.info(path)
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)

    def created(self, path: str) -> datetime:
        """When this version of an object was stored: a put makes a new one, so it is when it was modified."""
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """When an object was modified, to the second, in UTC."""
        return datetime.fromtimestamp(self._stat(path).mtime, UTC)

    def ukey(self, path: str) -> str:
        """The version of an object: its etag."""
        etag: str = self._stat(path).etag
        return etag

    def checksum(self, path: str) -> int:
        """The version of an object, as a number."""
        return int.from_bytes(self.ukey(path).encode())

    def _stat(self, path: str) -> Any:
        path = self._strip_protocol(path)
        with _as_file(path, self):
            return self.client.stat(path)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        if mode == "rb":
            if self.client.mode is Mode.FDPASS:
                reopen: Any = self.open
                return ObjectReader(self._object(path), reopen, path)
            return RemoteFile(self, path, block_size=block_size, cache_options=cache_options, **options)
        if mode == "wb":
            return ObjectWriter(path, lambda data: self._put(path, data), autocommit=autocommit)
        if mode == "xb":
            if self.exists(path):
                raise _exists(path)
            return ObjectWriter(path, lambda data: self._put(path, data, if_none_match="*"), autocommit=autocommit)
        if mode == "ab":
            try:
                with self._object(path) as found:
                    begin, condition = found.read(), {"if_match": found.etag}
            except FileNotFoundError:
                begin, condition = b"", {"if_none_match": "*"}
            return ObjectWriter(
                path, lambda data: self._put(path, data, **condition), autocommit=autocommit, begin=begin
            )
        raise ValueError(f"mode {mode!r}: an object is opened to be read (rb) or to be stored (wb, xb, ab)")

    def _object(self, path: str) -> Object:
        with _as_file(path, self):
            return self.client.open(path)

    def _put(self, path: str, data: Any, **options: Any) -> None:
        try:
            self.client.put(path, data, make_parents=True, **options)
        except Conflict as error:
            if options.get("if_none_match"):
                raise _exists(path) from error
            raise

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """An object's bytes, or those from `start` to before `end`; negative ones count from its end."""
        path = self._strip_protocol(path)
        with _as_file(path, self):
            if (start or 0) < 0 or (end or 0) < 0:
                size = self.client.stat(path).size
                start, end, _step = slice(start, end).indices(size)
            offset = start or 0
            return self.client.read(path, offset=offset, length=None if end is None else max(0, end - offset))

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        """An object's bytes, or name → bytes for several; with `recursive` of all objects below.

        `on_error` may be "raise", "omit" or "return" (errors in the places of bytes).
        """
        if recursive:
            names = sorted({name for each in self.expand_path(path) for name in self.find(each)})
            if not names:
                raise _not_found(str(path))
            path = names
        return super().cat(path, on_error=on_error, **options)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[bytes | Exception]:
        """The bytes of many ranges, several at once over a wire; with "return" there are errors in their places."""
        if max_gap is not None:
            raise NotImplementedError("max_gap: ranges are read as they are")
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        count = len(paths)
        starts = starts if isinstance(starts, list) else [starts] * count
        ends = ends if isinstance(ends, list) else [ends] * count
        if len(starts) != count or len(ends) != count:
            raise ValueError("paths, starts and ends are of one length")

        def one(path: str, start: int | None, end: int | None) -> bytes | Exception:
            try:
                return self.cat_file(path, start, end)
            except Exception as error:
                if on_error != "return":
                    raise
                return error

        if self.client.mode is Mode.FDPASS:
            return list(map(one, paths, starts, ends))
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(one, paths, starts, ends))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Stores bytes as an object; with "create" only where there is none yet, else FileExistsError."""
        path = self._strip_protocol(path)
        if self._intrans:
            file: Any = self.open(path, "xb" if mode == "create" else "wb", **options)
            with file:
                file.write(value)
        elif mode == "create":
            self._put(path, value, if_none_match="*")
        else:
            self._put(path, value)

    def get_file(
        self, rpath: str, lpath: Any = None, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **options: Any
    ) -> None:
        """Copies an object into a file, which appears when it is whole; a directory is made."""
        rpath = self._strip_protocol(rpath)
        if outfile is not None or isfilelike(lpath) or self.client.mode is not Mode.FDPASS:
            super().get_file(rpath, lpath, callback=callback, outfile=outfile, **options)
            return
        try:
            found = self._object(rpath)
        except IsADirectoryError:
            os.makedirs(lpath, exist_ok=True)
            return
        with found:
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            callback.set_size(found.size)
            found.save(lpath, callback.relative_update)

    def put_file(
        self, lpath: Any, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **options: Any
    ) -> None:
        """Stores a file as an object. A directory is nothing by itself."""
        if self._intrans:
            super().put_file(lpath, rpath, callback=callback, mode=mode, **options)
        elif not os.path.isdir(lpath):
            condition = {"if_none_match": "*"} if mode == "create" else {}
            callback.set_size(os.path.getsize(lpath))
            self._put(self._strip_protocol(rpath), lpath, progress=callback.absolute_update, **condition)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies an object; over a Unix socket the bytes never come here. A directory is nothing by itself."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            with self._open(path1) as file:
                self._put(path2, file, length=file.size)
        except IsADirectoryError:
            return

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Stores an empty object; without `truncate` one that is there stays and is stored anew."""
        path = self._strip_protocol(path)
        if truncate:
            self._put(path, b"")
            return
        try:
            with self._object(path) as found:
                self._put(path, found.read(), if_match=found.etag)
        except FileNotFoundError:
            self._put(path, b"", if_none_match="*")

    def rm_file(self, path: str) -> None:
        """Deletes an object. Raises FileNotFoundError, IsADirectoryError."""
        path = self._strip_protocol(path)
        with _as_file(path, self):
            self.client.delete(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Deletes objects, with `recursive` all below a path. Raises FileNotFoundError, IsADirectoryError."""
        names = self.expand_path(path)
        if recursive:
            names = sorted({name for each in names for name in self.find(each, maxdepth=maxdepth)})
            if not names:
                raise _not_found(str(path))
        for name in names:
            self.rm_file(name)

    def rmdir(self, path: str) -> None:
        """Nothing, for an empty directory is none. Raises OSError where objects are below."""
        path = self._strip_protocol(path)
        if self._has_objects(path):
            raise OSError(errno.ENOTEMPTY, "there are objects in the directory", path)


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc] # fsspec has no types
    """An object that is read in blocks over the wire. Raises OSError where it changes while it is read."""

    def __init__(self, fs: ObjmapperFileSystem, path: str, **options: Any) -> None:
        # fsspec closes what was not made, too.
        self.closed = True
        found = fs._stat(path)
        self._version = found.etag
        super().__init__(fs, path, "rb", **{**options, "size": found.size})

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.client.read(self.path, offset=start, length=end - start)
        # What has this version now had it when it was read: versions do not come back.
        if self.fs.client.stat(self.path).etag != self._version:
            raise OSError(errno.ESTALE, "the object changed while it was read; open it again", self.path)
        return data


class _as_file:  # noqa: N801 - reads as a word of its `with` statement
    """Turns the server's words for a directory into the system's, within the block."""

    def __init__(self, path: str, system: ObjmapperFileSystem) -> None:
        self._path = path
        self._system = system

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._path == "/" or (
            isinstance(error, ObjectNotFound | PermissionDenied) and self._system._has_objects(self._path)
        ):
            raise _is_a_directory(self._path) from error


def _file(name: str, size: int, mtime: int, etag: str | None = None) -> Info:
    known = {"name": name, "size": size, "type": "file", "mtime": mtime}
    return known if etag is None else {**known, "etag": etag}


def _directory(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory"}


def _not_found(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _exists(path: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _is_a_directory(path: str) -> IsADirectoryError:
    return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
