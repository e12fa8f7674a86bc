"""The client for threads. `_operations/transport_operations.py` chooses the operations of an address."""

import os
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from objmapper_client._client_options import CHUNK, PAGE, ClientOptions, Results
from objmapper_client._connection.pool import Pool
from objmapper_client._operations.metadata_operations import PageProgress, PutArguments, Stat
from objmapper_client._operations.receive_content import range_length
from objmapper_client._operations.stream import read_piece_blocking
from objmapper_client._runtime.fork import forked_error, forks
from objmapper_client._runtime.threads import ThreadRuntime, run
from objmapper_client.address import Address
from objmapper_client.object import Object, writable_bytes
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_responses import Entry, LeftOut

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from objmapper_client._operations.upload_source import Data


class Client(ClientOptions):
    """A client of one server. Thread-safe.

    `address`: ``unix:/path``, ``tcp://host:port`` or ``udp://host:port`` (read only, objects of at most 64 MiB); by
    default this user's server. `timeout`: seconds for one request with all its attempts, and for each MiB of a content.
    `connect_timeout`: seconds for one connection. `max_connections`: one of them is shared by all requests; each of the
    others carries one large content at a time. A request waits at most `timeout` seconds for a connection.

    `attempts`: maximum attempts of a request. The client retries only before the first byte of an answer; a put or
    delete only if the server cannot have executed it, else it raises OutcomeUnknown. `wait`: seconds to retry while the
    server is not running, in addition to all other limits. The client may be used after a fork. Pickling keeps its
    arguments.

    All operations raise ObjectNotFound, PermissionDenied, InvalidRequest, UnsupportedMode, Conflict, ServerBusy,
    ServerFailed (the server's error replies), UnsupportedOperation (it speaks an older version), ConnectionFailed,
    RequestTimeout, RemoteProtocolError, LocalProtocolError.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        max_connections: int = 8,
        attempts: int = 3,
        mode: Mode | str | None = None,
        wait: float = 0.0,
    ) -> None:
        super().__init__(
            address,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_connections=max_connections,
            attempts=attempts,
            mode=mode,
            wait=wait,
        )
        self._forks = forks.generation
        self._pool = self._make_pool(ThreadRuntime())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the idle connections at once, others when their requests are done. A later request reconnects."""
        if self._forks == forks.generation:
            self._pool.close()
        self._renew_pool()

    def _renew_pool(self) -> Pool:
        if self._forks != forks.generation:
            self._pool.abandon()
            self._forks = forks.generation
        self._pool = pool = self._make_pool(ThreadRuntime())
        return pool

    @property
    def _current_pool(self) -> Pool:
        """The pool of this process. A forked child makes a new one."""
        return self._pool if self._forks == forks.generation else self._renew_pool()

    def open(self, uri: str, *, mode: Mode | str | None = None) -> Object:
        """Opens an object. It owns a descriptor: close it, or use it in a ``with`` statement."""
        # `_current_pool` and `_mode` inlined: this is the hot path.
        pool = self._pool if self._forks == forks.generation else self._renew_pool()
        return run(pool, self._operations.open_object(pool, uri, self.mode if mode is None else Mode.from_name(mode)))

    def open_many(self, uris: Iterable[str], *, mode: Mode | str | None = None) -> Results:
        """Opens many objects with few round trips. Returns an object or an error for each URI, in their order.

        The caller owns the objects and must close them. If this raises, it has closed all of them.
        """
        pool = self._current_pool
        return run(pool, self._operations.open_many(pool, [*uris], self._mode(mode)))

    def read(self, uri: str, *, offset: int = 0, length: int | None = None, mode: Mode | str | None = None) -> bytes:
        """Reads an object's bytes, or `length` bytes at `offset` (fewer at its end)."""
        pool = self._current_pool
        return run(pool, self._operations.read(pool, uri, self._mode(mode), offset, length))

    def readinto(self, uri: str, buffer: "WriteableBuffer", *, offset: int = 0, mode: Mode | str | None = None) -> int:
        """Reads an object's bytes at `offset` into `buffer`, until it is full or the object ends.

        Returns the number of bytes read.
        """
        view = writable_bytes(buffer)
        pool = self._current_pool
        return run(pool, self._operations.readinto(pool, uri, self._mode(mode), view, offset))

    def stream(
        self,
        uri: str,
        *,
        chunk_size: int = CHUNK,
        offset: int = 0,
        length: int | None = None,
        mode: Mode | str | None = None,
        announce: Callable[[int], None] | None = None,
    ) -> Generator[bytes, None, None]:
        """Yields an object's bytes, or a range of them, in chunks of 1 to `chunk_size` bytes; one is in memory.

        Calls `announce` once, before the first chunk, with the number of bytes to come. `timeout` applies to each
        chunk. Leaving the loop early may close the connection.
        """
        self._check_chunk_size(chunk_size)
        pool = self._current_pool
        download = run(pool, self._operations.begin_stream(pool, uri, self._mode(mode), offset, length))
        if isinstance(download, Object):
            with download:
                if announce is not None:
                    announce(range_length(download.size, offset, length))
                end = offset + range_length(download.size, offset, length)
                while offset < end:
                    chunk = read_piece_blocking(download, chunk_size, offset, end)
                    offset += len(chunk)
                    yield chunk
            return
        generation = forks.generation

        try:
            if announce is not None:
                announce(download.left)
            while chunk := run(pool, self._operations.next_chunk(pool, download, chunk_size)):
                yield chunk
                if forks.generation != generation:
                    raise forked_error(uri)
        except GeneratorExit:
            if forks.generation != generation:
                download.connection.close()
            else:
                self._operations.end_stream(pool, download)
            raise
        except BaseException:
            if forks.generation != generation:
                # Closes the child's copy of the connection; the parent keeps its own.
                download.connection.close()
                raise
            self._operations.abort(pool, download)
            raise
        self._operations.end_stream(pool, download)

    def stat(self, uri: str) -> Stat:
        """Gets an object's size, modification time and version."""
        pool = self._current_pool
        return run(pool, self._operations.stat(pool, uri))

    def list(
        self, prefix: str = "/", *, page_size: int = PAGE, left_out: Callable[[LeftOut], object] | None = None
    ) -> Generator[Entry, None, None]:
        """Yields the objects whose URIs begin with `prefix`, in the order of their URIs; one page is in memory.

        Calls `left_out` with each file or directory below the prefix that the server cannot list: its name is not
        UTF-8, its path is too long, or the server may not read the directory.
        """
        pages = PageProgress(prefix)
        while True:
            pool = self._current_pool
            page = run(pool, self._operations.list_page(pool, prefix, page_size, pages.cursor))
            yield from pages.add_page(page)
            if left_out is not None:
                for omitted in page[2]:
                    left_out(omitted)
            if pages.cursor is None:
                return

    def put(
        self,
        uri: str,
        data: "Data",
        *,
        length: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        make_parents: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Stat:
        """Stores an object atomically. Returns its new size, modification time and version.

        `data`: bytes or another buffer, a path, a binary file (from its position to its end), or an iterable of bytes.
        `length`: the bytes that `data` must have; otherwise LocalProtocolError is raised and nothing is stored. An
        iterable without `length` is read to its end first. Over a Unix socket a file is passed by descriptor, and this
        process copies nothing. `if_match`: replace only this version (an etag). `if_none_match="*"`: only create.
        Otherwise Conflict is raised. `make_parents`: make missing directories. `progress`: called with the bytes sent
        so far.
        """
        pool = self._current_pool
        arguments = PutArguments(data, length, if_match, if_none_match, make_parents, progress)
        return run(pool, self._operations.put(pool, uri, arguments))

    def delete(self, uri: str, *, if_match: str | None = None) -> None:
        """Removes an object. With `if_match` (an etag) raises Conflict if it is another version."""
        pool = self._current_pool
        return run(pool, self._operations.delete(pool, uri, if_match))
