"""The client for asyncio: the same verbs as `Client`, with ``await``."""

import os
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from objmapper_client._client_options import CHUNK, PAGE, ClientOptions, Results
from objmapper_client._connection.pending_request import Verb
from objmapper_client._connection.pool import Pool
from objmapper_client._operations.download import range_length
from objmapper_client._operations.requests import PageProgress, PutArguments, Stat
from objmapper_client._operations.stream import next_piece
from objmapper_client._runtime.effects import T
from objmapper_client._runtime.fork import forked, forks
from objmapper_client.address import Address
from objmapper_client.object import Object, writable_bytes
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_responses import Entry, LeftOut

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from objmapper_client._operations.upload_source import AsyncData


class AsyncClient(ClientOptions):
    """Objects from one server, for any number of tasks of one event loop at a time.

    Arguments and errors are those of `Client`. Close it, or use it in an ``async with`` statement. A cancelled request
    leaves nothing behind: its answer, if it still comes, is thrown away.
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

    # Where the constructor raises.
    _pool: Pool | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        pool = self._pool
        if pool is None or not len(pool) or self._forks != forks.made:
            return
        loop: Any = pool.waiting.loop
        if loop.is_running():
            # Perhaps in another thread, or in the middle of what this would change.
            loop.call_soon_threadsafe(pool.close)
        else:
            pool.close()
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    async def close(self) -> None:
        """Close the idle connections. The client can be used again; it connects anew."""
        self._leave()

    def _leave(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            if self._forks == forks.made:
                pool.close()
            else:
                pool.abandon()
        self._forks = forks.made

    @property
    def _current_pool(self) -> Pool:
        """The connections of the running loop, and of this process: with another one they begin anew."""
        # asyncio takes longer to be imported than all the rest, and who has a loop has it already.
        from objmapper_client._runtime.aio import AsyncioRuntime, running_loop

        pool = self._pool
        if pool is None or self._forks != forks.made or pool.waiting.loop is not running_loop():
            self._leave()
            self._pool = pool = self._make_pool(AsyncioRuntime())
        return pool

    async def _run(self, pool: Pool, operation: Verb[T]) -> T:
        from objmapper_client._runtime.aio import run

        return await run(pool, operation)

    async def open(self, uri: str, *, mode: Mode | str | None = None) -> Object:
        """The object, as an owned descriptor: close it, or use it in a ``with`` statement."""
        pool = self._current_pool
        return await self._run(pool, self._api.open_object(pool, uri, self._mode(mode)))

    async def open_many(self, uris: Iterable[str], *, mode: Mode | str | None = None) -> Results:
        """An object or an error for each URI, in their order, in as few round trips as the server allows.

        The objects are the caller's to close. Where this raises, none is left open.
        """
        pool = self._current_pool
        return await self._run(pool, self._api.open_many(pool, [*uris], self._mode(mode)))

    async def read(
        self, uri: str, *, offset: int = 0, length: int | None = None, mode: Mode | str | None = None
    ) -> bytes:
        """The object's bytes, or `length` of them from `offset` on (fewer at its end)."""
        pool = self._current_pool
        return await self._run(pool, self._api.read(pool, uri, self._mode(mode), offset, length))

    async def readinto(
        self, uri: str, buffer: "WriteableBuffer", *, offset: int = 0, mode: Mode | str | None = None
    ) -> int:
        """Fills `buffer` with the object's bytes from `offset` on. Returns how many that were.

        Fewer than the buffer takes only at the object's end; what is beyond its room is not read.
        """
        view = writable_bytes(buffer)
        pool = self._current_pool
        return await self._run(pool, self._api.readinto(pool, uri, self._mode(mode), view, offset))

    async def stream(
        self,
        uri: str,
        *,
        chunk_size: int = CHUNK,
        offset: int = 0,
        length: int | None = None,
        mode: Mode | str | None = None,
        announce: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The object's bytes, or a range of them, in pieces of at most `chunk_size`; memory is bounded by one piece.

        `announce` is called once, before the first of them, with the number of bytes that are to come. Leaving the loop
        early may cost the connection. `timeout` holds for each piece.
        """
        self._check_piece(chunk_size)
        pool = self._current_pool
        download = await self._run(pool, self._api.begin_stream(pool, uri, self._mode(mode), offset, length))
        if isinstance(download, Object):
            with download:
                if announce is not None:
                    announce(range_length(download.size, offset, length))
                end = offset + range_length(download.size, offset, length)
                while offset < end:
                    chunk = await self._run(pool, next_piece(download, chunk_size, offset, end))
                    offset += len(chunk)
                    yield chunk
            return
        made = forks.made
        try:
            if announce is not None:
                announce(download.left)
            while chunk := await self._run(pool, self._api.next_chunk(pool, download, chunk_size)):
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

    async def stat(self, uri: str) -> Stat:
        """What the server says of an object."""
        pool = self._current_pool
        return await self._run(pool, self._api.stat(pool, uri))

    async def list(
        self, prefix: str = "/", *, page_size: int = PAGE, left_out: Callable[[LeftOut], object] | None = None
    ) -> AsyncGenerator[Entry, None]:
        """The objects whose URIs begin with `prefix`, in the order of their URIs; memory is bounded by one page.

        `left_out` is called with each file or directory below the prefix that the server cannot list: one whose name is
        not UTF-8 has no URI, nor has one whose path is too long; and a directory may be closed to the server.
        """
        listed = PageProgress(prefix)
        while True:
            pool = self._current_pool
            page = await self._run(pool, self._api.list_page(pool, prefix, page_size, listed.cursor))
            for entry in listed.new_of(page):
                yield entry
            if left_out is not None:
                for each in page[2]:
                    left_out(each)
            if listed.cursor is None:
                return

    async def put(
        self,
        uri: str,
        data: "AsyncData",
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
        return await self._run(pool, self._api.put(pool, uri, wanted))

    async def delete(self, uri: str, *, if_match: str | None = None) -> None:
        """Removes an object; with `if_match` only this version (an etag), else Conflict is raised."""
        pool = self._current_pool
        return await self._run(pool, self._api.delete(pool, uri, if_match))
