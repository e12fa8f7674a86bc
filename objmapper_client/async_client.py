"""The client for asyncio: the operations of `Client`, with ``await``."""

import os
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from objmapper_client._client_options import CHUNK, PAGE, ClientOptions, Results
from objmapper_client._connection.pending_request import Runnable
from objmapper_client._connection.pool import Pool
from objmapper_client._operations.metadata_operations import PageProgress, PutArguments, Stat
from objmapper_client._operations.receive_content import range_length
from objmapper_client._operations.stream import read_piece
from objmapper_client._runtime.effects import T
from objmapper_client._runtime.fork import forked_error, forks
from objmapper_client.address import Address
from objmapper_client.object import Object, writable_bytes
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_responses import Entry, LeftOut

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from objmapper_client._operations.upload_source import AsyncData


class AsyncClient(ClientOptions):
    """A client of one server for asyncio: for any number of tasks, in one event loop at a time.

    Arguments and errors are those of `Client`. Close it, or use it in an ``async with`` statement. A cancelled request
    leaks nothing: the client discards its answer.
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

    # For `__del__` after a constructor that raised.
    _pool: Pool | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        pool = self._pool
        if pool is None or not len(pool) or self._forks != forks.generation:
            return
        loop: Any = pool.runtime.loop
        if loop.is_running():
            # The garbage collector may run in another thread, or inside a call that changes the pool.
            loop.call_soon_threadsafe(pool.close)
        else:
            pool.close()
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    async def close(self) -> None:
        """Closes the idle connections at once, others when their requests are done. A later request reconnects."""
        self._close_pool()

    def _close_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            if self._forks == forks.generation:
                pool.close()
            else:
                pool.abandon()
        self._forks = forks.generation

    @property
    def _current_pool(self) -> Pool:
        """The pool of the running event loop and this process. Another loop or process gets a new one."""
        # Imported here: importing asyncio takes longer than all the rest, and a program with a loop has imported it.
        from objmapper_client._runtime.aio import AsyncioRuntime, running_loop

        pool = self._pool
        if pool is None or self._forks != forks.generation or pool.runtime.loop is not running_loop():
            self._close_pool()
            self._pool = pool = self._make_pool(AsyncioRuntime())
        return pool

    async def _run(self, pool: Pool, operation: Runnable[T]) -> T:
        from objmapper_client._runtime.aio import run

        return await run(pool, operation)

    async def open(self, uri: str, *, mode: Mode | str | None = None) -> Object:
        """Opens an object. It owns a descriptor: close it, or use it in a ``with`` statement."""
        pool = self._current_pool
        return await self._run(pool, self._operations.open_object(pool, uri, self._mode(mode)))

    async def open_many(self, uris: Iterable[str], *, mode: Mode | str | None = None) -> Results:
        """Opens many objects with few round trips. Returns an object or an error for each URI, in their order.

        The caller owns the objects and must close them. If this raises, it has closed all of them.
        """
        pool = self._current_pool
        return await self._run(pool, self._operations.open_many(pool, [*uris], self._mode(mode)))

    async def read(
        self, uri: str, *, offset: int = 0, length: int | None = None, mode: Mode | str | None = None
    ) -> bytes:
        """Reads an object's bytes, or `length` bytes at `offset` (fewer at its end)."""
        pool = self._current_pool
        return await self._run(pool, self._operations.read(pool, uri, self._mode(mode), offset, length))

    async def readinto(
        self, uri: str, buffer: "WriteableBuffer", *, offset: int = 0, mode: Mode | str | None = None
    ) -> int:
        """Reads an object's bytes at `offset` into `buffer`, until it is full or the object ends.

        Returns the number of bytes read.
        """
        view = writable_bytes(buffer)
        pool = self._current_pool
        return await self._run(pool, self._operations.readinto(pool, uri, self._mode(mode), view, offset))

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
        """Yields an object's bytes, or a range of them, in chunks of 1 to `chunk_size` bytes; one is in memory.

        Calls `announce` once, before the first chunk, with the number of bytes to come. `timeout` applies to each
        chunk. Leaving the loop early may close the connection.
        """
        self._check_chunk_size(chunk_size)
        pool = self._current_pool
        download = await self._run(pool, self._operations.begin_stream(pool, uri, self._mode(mode), offset, length))
        if isinstance(download, Object):
            with download:
                if announce is not None:
                    announce(range_length(download.size, offset, length))
                end = offset + range_length(download.size, offset, length)
                while offset < end:
                    chunk = await self._run(pool, read_piece(download, chunk_size, offset, end))
                    offset += len(chunk)
                    yield chunk
            return
        generation = forks.generation
        try:
            if announce is not None:
                announce(download.left)
            while chunk := await self._run(pool, self._operations.next_chunk(pool, download, chunk_size)):
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

    async def stat(self, uri: str) -> Stat:
        """Gets an object's size, modification time and version."""
        pool = self._current_pool
        return await self._run(pool, self._operations.stat(pool, uri))

    async def list(
        self, prefix: str = "/", *, page_size: int = PAGE, left_out: Callable[[LeftOut], object] | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Yields the objects whose URIs begin with `prefix`, in the order of their URIs; one page is in memory.

        Calls `left_out` with each file or directory below the prefix that the server cannot list: its name is not
        UTF-8, its path is too long, or the server may not read the directory.
        """
        pages = PageProgress(prefix)
        while True:
            pool = self._current_pool
            page = await self._run(pool, self._operations.list_page(pool, prefix, page_size, pages.cursor))
            for entry in pages.add_page(page):
                yield entry
            if left_out is not None:
                for omitted in page[2]:
                    left_out(omitted)
            if pages.cursor is None:
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
        return await self._run(pool, self._operations.put(pool, uri, arguments))

    async def delete(self, uri: str, *, if_match: str | None = None) -> None:
        """Removes an object. With `if_match` (an etag) raises Conflict if it is another version."""
        pool = self._current_pool
        return await self._run(pool, self._operations.delete(pool, uri, if_match))
