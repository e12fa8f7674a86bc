"""The client for threads. `registry` has the operations of an address."""

import os
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from objmapper_client._client_options import CHUNK, PAGE, ClientOptions, Results
from objmapper_client._connection.pool import Pool
from objmapper_client._operations.download import range_length
from objmapper_client._operations.requests import PageProgress, PutArguments, Stat
from objmapper_client._operations.stream import piece_at
from objmapper_client._runtime.fork import forked, forks
from objmapper_client._runtime.threads import ThreadRuntime, run
from objmapper_client.address import Address
from objmapper_client.object import Object, writable_bytes
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_responses import Entry, LeftOut

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from objmapper_client._operations.upload_source import Data


class Client(ClientOptions):
    """Objects from one server, for any number of threads.

    `address` is ``unix:/path``, ``tcp://host:port`` or ``udp://host:port`` (which only fetches, objects of 64 MiB at
    most), by default the server of this user. `timeout` is for one request with all its tries, and for each MiB of a
    content; `connect_timeout` for one connection; both in seconds. Of at most `max_connections` one is shared by all
    requests, each of the others carries one large content at a time; who needs one waits for it, `timeout` seconds at
    most. A request is tried `attempts` times at most, again only before the first byte of an answer; a put or a delete
    only where the first try cannot have been executed, else OutcomeUnknown is raised. With `wait` a request to a
    server that is not reached is tried for `wait` seconds more, beside all other limits: the server may be about to
    start. Safe
    after a fork; pickled by its arguments.

    Raises, from every verb: ObjectNotFound, PermissionDenied, InvalidRequest, UnsupportedMode, Conflict, ServerBusy,
    ServerFailed (what the server answered), UnsupportedOperation (it speaks an older version), ConnectionFailed,
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
        self._forks = forks.made
        self._pool = self._make_pool(ThreadRuntime())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client can be used again; it connects anew."""
        if self._forks == forks.made:
            self._pool.close()
        self._begin_anew()

    def _begin_anew(self) -> Pool:
        if self._forks != forks.made:
            self._pool.abandon()
            self._forks = forks.made
        self._pool = pool = self._make_pool(ThreadRuntime())
        return pool

    @property
    def _current_pool(self) -> Pool:
        """The connections of this process: a child after a fork begins anew."""
        return self._pool if self._forks == forks.made else self._begin_anew()

    def open(self, uri: str, *, mode: Mode | str | None = None) -> Object:
        """The object, as an owned descriptor: close it, or use it in a ``with`` statement."""
        # Spelled out: this is what programs do all the time, and each call counts.
        pool = self._pool if self._forks == forks.made else self._begin_anew()
        return run(pool, self._api.open_object(pool, uri, self.mode if mode is None else Mode.from_name(mode)))

    def open_many(self, uris: Iterable[str], *, mode: Mode | str | None = None) -> Results:
        """An object or an error for each URI, in their order, in as few round trips as the server allows.

        The objects are the caller's to close. Where this raises, none is left open.
        """
        pool = self._current_pool
        return run(pool, self._api.open_many(pool, [*uris], self._mode(mode)))

    def read(self, uri: str, *, offset: int = 0, length: int | None = None, mode: Mode | str | None = None) -> bytes:
        """The object's bytes, or `length` of them from `offset` on (fewer at its end)."""
        pool = self._current_pool
        return run(pool, self._api.read(pool, uri, self._mode(mode), offset, length))

    def readinto(self, uri: str, buffer: "WriteableBuffer", *, offset: int = 0, mode: Mode | str | None = None) -> int:
        """Fills `buffer` with the object's bytes from `offset` on. Returns how many that were.

        Fewer than the buffer takes only at the object's end; what is beyond its room is not read.
        """
        view = writable_bytes(buffer)
        pool = self._current_pool
        return run(pool, self._api.readinto(pool, uri, self._mode(mode), view, offset))

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
        """The object's bytes, or a range of them, in pieces of at most `chunk_size`; memory is bounded by one piece.

        `announce` is called once, before the first of them, with the number of bytes that are to come. Leaving the loop
        early may cost the connection. `timeout` holds for each piece.
        """
        self._check_piece(chunk_size)
        pool = self._current_pool
        download = run(pool, self._api.begin_stream(pool, uri, self._mode(mode), offset, length))
        if isinstance(download, Object):
            with download:
                if announce is not None:
                    announce(range_length(download.size, offset, length))
                end = offset + range_length(download.size, offset, length)
                while offset < end:
                    chunk = piece_at(download, chunk_size, offset, end)
                    offset += len(chunk)
                    yield chunk
            return
        made = forks.made
        try:
            if announce is not None:
                announce(download.left)
            while chunk := run(pool, self._api.next_chunk(pool, download, chunk_size)):
                yield chunk
                if forks.made != made:
                    raise forked(uri)
        except GeneratorExit:
            if forks.made != made:
                download.connection.close()
            else:
                self._api.leave(pool, download)
            raise
        except BaseException:
            if forks.made != made:
                # This process's copy: the parent goes on with its own.
                download.connection.close()
                raise
            self._api.abort(pool, download)
            raise
        self._api.leave(pool, download)

    def stat(self, uri: str) -> Stat:
        """What the server says of an object."""
        pool = self._current_pool
        return run(pool, self._api.stat(pool, uri))

    def list(
        self, prefix: str = "/", *, page_size: int = PAGE, left_out: Callable[[LeftOut], object] | None = None
    ) -> Generator[Entry, None, None]:
        """The objects whose URIs begin with `prefix`, in the order of their URIs; memory is bounded by one page.

        `left_out` is called with each file or directory below the prefix that the server cannot list: one whose name is
        not UTF-8 has no URI, nor has one whose path is too long; and a directory may be closed to the server.
        """
        listed = PageProgress(prefix)
        while True:
            pool = self._current_pool
            page = run(pool, self._api.list_page(pool, prefix, page_size, listed.cursor))
            yield from listed.new_of(page)
            if left_out is not None:
                for each in page[2]:
                    left_out(each)
            if listed.cursor is None:
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
        """Stores an object, whole or not at all, and returns what the server says of it then.

        `data`: bytes or another buffer, a path, a binary file (from its position to its end), or an iterable of bytes.
        `length` says how many bytes that is; more or fewer are an error, and nothing is stored. Pieces without a
        `length` are collected first. Over a Unix socket a file goes by descriptor: nothing is copied here. `if_match`:
        only over this version (an etag). `if_none_match="*"`: only where there is no object yet. Else Conflict is
        raised. `make_parents` makes directories that are missing. `progress` is called with the bytes so far.
        """
        pool = self._current_pool
        wanted = PutArguments(data, length, if_match, if_none_match, make_parents, progress)
        return run(pool, self._api.put(pool, uri, wanted))

    def delete(self, uri: str, *, if_match: str | None = None) -> None:
        """Removes an object; with `if_match` only this version (an etag), else Conflict is raised."""
        pool = self._current_pool
        return run(pool, self._api.delete(pool, uri, if_match))
