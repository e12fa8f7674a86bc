"""The fsspec file system: ``fsspec.open("objmapper:///a.parquet")``. Only this module imports fsspec.

``objmapper:///a`` is on the default server, or on that of the option `server`; ``objmapper://host:port/a`` is on a TCP
server. A directory exists while objects are below it; for the process that made it, from `mkdir` on. Nothing is cached.
"""

import errno
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import isfilelike, other_paths

from objmapper_client._files.atomic_file import open_output
from objmapper_client._files.copy import write_pieces
from objmapper_client._files.fsspec_directories import MadeDirectories
from objmapper_client._files.fsspec_info import already_exists, is_pattern, not_found, raising_is_a_directory
from objmapper_client._files.fsspec_reader import ObjectReader
from objmapper_client._files.fsspec_trees import TreeOperations
from objmapper_client._files.fsspec_writer import CompressedWriter, ObjectWriter, TextWriter
from objmapper_client.address import TcpAddress, parse
from objmapper_client.client import Client
from objmapper_client.errors import (
    AddressError,
    Conflict,
)
from objmapper_client.object import Object
from objmapper_client.protocol.v1 import Mode

#: Parallel requests of `cat_ranges` in modes other than fdpass.
_MAX_PARALLEL_READS = 8
#: The options that fsspec itself handles.
_FSSPEC_OPTIONS = {
    "asynchronous",
    "batch_size",
    "dir_cache",
    "listings_expiry_time",
    "loop",
    "max_paths",
    "skip_instance_cache",
    "use_listings_cache",
}


class ObjmapperFileSystem(TreeOperations, AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """The objects of one server as files.

    `server` is an address (``unix:/path``, ``tcp://host:port``), by default this user's server; the other options are
    those of `Client`. Over a Unix socket a file opened for reading is a local file (`fileno` works). Closing a written
    file stores it as an object, atomically, and makes missing directories. Raises the errors of `Client`, and
    FileNotFoundError, FileExistsError and IsADirectoryError as for files.
    """

    protocol = "objmapper"
    root_marker = "/"
    _other_paths = staticmethod(other_paths)

    def __init__(
        self,
        server: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        max_connections: int = 8,
        attempts: int = 3,
        mode: Mode | str | None = None,
        **options: Any,
    ) -> None:
        if unknown := options.keys() - _FSSPEC_OPTIONS:
            raise TypeError(f"unknown options of the file system: {', '.join(sorted(unknown))}")
        super().__init__(**options)
        self._made_directories = MadeDirectories()
        self.client: Client = Client(
            server,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_connections=max_connections,
            attempts=attempts,
            mode=mode,
        )
        # fsspec's file systems have no `close`.
        weakref.finalize(self, self.client.close)

    @property
    def fsid(self) -> str:
        """Identifies the file system by its server."""
        return f"objmapper {self.client.address}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text_options = os.fspath(path)
        prefix = f"{cls.protocol}://"
        if text_options.startswith(prefix):
            _, slash, text_options = text_options.removeprefix(prefix).partition("/")
            text_options = slash + text_options
        else:
            text_options = text_options.removeprefix(f"{cls.protocol}::")
        text_options = text_options.rstrip("/")
        return "/" + text_options.lstrip("/")

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path, with the host for a TCP server."""
        address = self.client.address
        host = str(address).removeprefix("tcp://") if isinstance(address, TcpAddress) else ""
        return f"{self.protocol}://{host}{self._strip_protocol(name)}"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        try:
            parts = urlsplit(path)
        except ValueError as error:
            raise AddressError(
                f"invalid URL {path!r}: {error}; fsspec splits URLs at '::', so an IPv6 address with '::' is written "
                "out, or given as the option server='tcp://[::1]:9999'"
            ) from error
        if parts.scheme != "objmapper" or not parts.netloc:
            return {}
        server = parse(f"tcp://{parts.netloc}")
        if not parts.path and ":" not in parts.netloc:
            raise AddressError(
                f"invalid URL {path!r}: {parts.netloc!r} is the host here; write objmapper:///{parts.netloc} for an "
                f"object of the default server, objmapper://{parts.netloc}/ for the host"
            )
        return {"server": str(server)}

    def created(self, path: str) -> datetime:
        """Returns the time of modification: a put makes a new file."""
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """Returns the time of an object's modification, in UTC; over UDP and with old servers in whole seconds."""
        found = self._stat(path)
        mtime, nanoseconds = found.mtime, (found.mtime_ns or 0) % 1_000_000_000
        try:
            return datetime.fromtimestamp(mtime, UTC).replace(microsecond=nanoseconds // 1000)
        except (OverflowError, ValueError, OSError) as error:
            raise ValueError(
                f"{path}: the modification time is out of range of datetime (got {mtime} seconds since 1970)"
            ) from error

    def ukey(self, path: str) -> str:
        """Returns an object's version: its etag."""
        etag: str = self._stat(path).etag
        return etag

    def checksum(self, path: str) -> int:
        """Returns an object's version as a number."""
        return int.from_bytes(self.ukey(path).encode())

    def _stat(self, path: str) -> Any:
        path = self._strip_protocol(path)
        with raising_is_a_directory(path, self):
            return self.client.stat(path)

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **options: Any,
    ) -> Any:
        """Opens a file: see fsspec. If an exception leaves a ``with`` block, nothing is stored."""
        if "r" in mode:
            return super().open(path, mode, block_size, cache_options, compression, **options)
        path = self._strip_protocol(path)
        text_options = {name: options.pop(name) for name in ("encoding", "errors", "newline") if name in options}
        binary = mode.replace("t", "").replace("b", "") + "b"
        file: Any = super().open(path, binary, block_size, cache_options, **options)
        if compression is not None and (name := get_compression(path, compression)) is not None:
            file = CompressedWriter(file, compr[name](file, mode=binary[0]))
        return file if "b" in mode else TextWriter(file, **text_options)

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
                return ObjectReader(self, self._open_object(path), block_size or self.blocksize, reopen, path)
            return RemoteFile(self, path, block_size=block_size, cache_options=cache_options, **options)
        if mode == "wb":
            return ObjectWriter(self, path, lambda data: self._put(path, data), autocommit=autocommit)
        if mode == "xb":
            if self.exists(path):
                raise already_exists(path)
            return ObjectWriter(
                self, path, lambda data: self._put(path, data, if_none_match="*"), autocommit=autocommit
            )
        if mode == "ab":
            try:
                with self._open_object(path) as found:
                    initial, condition = found.read(), {"if_match": found.etag}
            except FileNotFoundError:
                initial, condition = b"", {"if_none_match": "*"}
            return ObjectWriter(
                self, path, lambda data: self._put(path, data, **condition), autocommit=autocommit, initial=initial
            )
        raise ValueError(f"mode: expected rb to read, or wb, xb or ab to store (got {mode!r})")

    def _open_object(self, path: str) -> Object:
        with raising_is_a_directory(path, self):
            return self.client.open(path)

    def _put(self, path: str, data: Any, **options: Any) -> None:
        try:
            self.client.put(path, data, make_parents=True, **options)
        except Conflict as error:
            if options.get("if_none_match"):
                raise already_exists(path) from error
            raise

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Reads an object's bytes, or those from `start` up to `end`; negative ones count from its end."""
        path = self._strip_protocol(path)
        with raising_is_a_directory(path, self):
            if (start or 0) < 0 or (end or 0) < 0:
                size = self.client.stat(path).size
                start, end, _step = slice(start, end).indices(size)
            offset = start or 0
            return self.client.read(path, offset=offset, length=None if end is None else max(0, end - offset))

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        """Reads an object's bytes, or a dictionary of bytes by name for several; `recursive`: all objects below.

        `on_error`: "raise", "omit" or "return" (the error in place of the bytes).
        """
        if recursive:
            names = sorted({name for each in self.expand_path(path) for name in self.find(each)})
            if not names:
                raise not_found(str(path))
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
        """Reads many ranges, in parallel except in mode fdpass. `on_error` "return": errors in place of bytes."""
        if max_gap is not None:
            raise NotImplementedError("max_gap: not supported; leave it None")
        if not isinstance(paths, list):
            raise TypeError(f"paths must be a list, got {type(paths).__name__}")
        count = len(paths)
        starts = starts if isinstance(starts, list) else [starts] * count
        ends = ends if isinstance(ends, list) else [ends] * count
        if len(starts) != count or len(ends) != count:
            raise ValueError(f"paths, starts and ends must have one length, got {count}, {len(starts)} and {len(ends)}")

        def read_range(path: str, start: int | None, end: int | None) -> bytes | Exception:
            try:
                return self.cat_file(path, start, end)
            except Exception as error:
                if on_error != "return":
                    raise
                return error

        if self.client.mode is Mode.FDPASS:
            return list(map(read_range, paths, starts, ends))
        with ThreadPoolExecutor(_MAX_PARALLEL_READS) as executor:
            return list(executor.map(read_range, paths, starts, ends))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Stores bytes as an object. `mode` "create": raises FileExistsError if it exists."""
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
        """Copies an object to a local file, which appears when it is complete. For a directory, makes one."""
        rpath = self._strip_protocol(rpath)
        if outfile is not None or isfilelike(lpath):
            super().get_file(rpath, lpath, callback=callback, outfile=outfile, **options)
            return
        if self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        directory = os.path.dirname(os.path.abspath(lpath))
        if self.client.mode is Mode.FDPASS:
            with self._open_object(rpath) as found:
                os.makedirs(directory, exist_ok=True)
                callback.set_size(found.size)
                found.save(lpath, callback.relative_update)
            return
        with closing(self.client.stream(rpath, announce=callback.set_size)) as stream:
            # Read first, so that a missing object makes no directory.
            first = next(stream, b"")
            os.makedirs(directory, exist_ok=True)
            with open_output(lpath) as target:
                write_pieces(target, chain((first,), stream), callback.relative_update)

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **options: Any,
    ) -> Any:
        """Copies objects to local files: see fsspec. An existing object's name is not treated as a pattern."""
        if isinstance(rpath, str) and is_pattern(rpath) and isinstance(lpath, str | os.PathLike):
            rpath = self._strip_protocol(rpath)
            if self.isfile(rpath):
                local = os.fspath(lpath)
                if local.endswith(os.sep) or os.path.isdir(local):
                    local = os.path.join(local, rpath.rsplit("/", 1)[-1])
                rpath, lpath = [rpath], [local]
        return super().get(rpath, lpath, recursive=recursive, callback=callback, maxdepth=maxdepth, **options)

    def put_file(
        self, lpath: Any, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **options: Any
    ) -> None:
        """Stores a local file as an object. For a directory, makes one as `makedirs` does."""
        if self._intrans:
            super().put_file(lpath, rpath, callback=callback, mode=mode, **options)
        elif os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
        else:
            condition = {"if_none_match": "*"} if mode == "create" else {}
            callback.set_size(os.path.getsize(lpath))
            self._put(self._strip_protocol(rpath), lpath, progress=callback.absolute_update, **condition)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Stores an empty object. Without `truncate` an existing object is stored again with the same content."""
        path = self._strip_protocol(path)
        if truncate:
            self._put(path, b"")
            return
        try:
            with self._open_object(path) as found:
                self._put(path, found.read(), if_match=found.etag)
        except FileNotFoundError:
            self._put(path, b"", if_none_match="*")

    def rm_file(self, path: str) -> None:
        """Deletes an object. Raises FileNotFoundError, IsADirectoryError."""
        path = self._strip_protocol(path)
        with raising_is_a_directory(path, self):
            self.client.delete(path)


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc] # fsspec has no types
    """An object that is read in blocks from the server. Raises OSError if it changes during the reads."""

    def __init__(self, fs: ObjmapperFileSystem, path: str, **options: Any) -> None:
        # fsspec's `__del__` runs also after a constructor that raised.
        self.closed = True
        found = fs._stat(path)
        #: The version of the object.
        self.etag = found.etag
        super().__init__(fs, path, "rb", **{**options, "size": found.size})

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.client.read(self.path, offset=start, length=end - start)
        # A version never returns: if the object has this one now, it had it during the read.
        if self.fs.client.stat(self.path).etag != self.etag:
            raise OSError(errno.ESTALE, "the object changed while it was read; open it again", self.path)
        return data
