"""The client for asyncio: the same verbs as `Client`, with ``await``."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from objmapper_client import _exchange, _waiting
from objmapper_client.client import CHUNK, Settings
from objmapper_client.object import Object
from objmapper_client.protocol import Mode, encode_request


class AsyncClient(Settings):
    """Objects from one server, for any number of tasks of one event loop at a time.

    Arguments and errors are those of `Client`. A cancelled request closes its connection and leaves nothing behind.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._places = _waiting.AsyncPlaces(self.max_connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the idle connections. The client can be used again; it connects anew."""
        self._pool.close()
        self._pool = self._verbs.Pool()

    async def _run(self, verb: Any) -> Any:
        async with self._places.place(self.timeout):
            return await _waiting.run_async(self._attempt(verb), self.timeout)

    async def open(self, uri: str, *, mode: Mode | str | None = None) -> Object:
        """The object, as an owned descriptor: close it, or use it in a ``with`` statement."""
        chosen = self._mode(mode)
        found: Object = await self._run(lambda connection: self._verbs.open_object(connection, uri, chosen))
        return found

    async def read(
        self, uri: str, *, offset: int = 0, length: int | None = None, mode: Mode | str | None = None
    ) -> bytes:
        """The object's bytes, or `length` of them from `offset` on (fewer at its end).

        Over TCP the whole object travels and is held for a moment even where a range is asked for.
        """
        chosen = self._mode(mode)
        data: bytes = await self._run(lambda connection: self._verbs.read(connection, uri, chosen, offset, length))
        return data

    async def readinto(self, uri: str, buffer: bytearray | memoryview, *, mode: Mode | str | None = None) -> int:
        """Reads the object into the front of `buffer`. Returns its size. Raises ValueError where it does not fit."""
        chosen, view = self._mode(mode), memoryview(buffer).cast("B")
        size: int = await self._run(lambda connection: self._verbs.readinto(connection, uri, chosen, view))
        return size

    async def stream(
        self, uri: str, *, chunk_size: int = CHUNK, mode: Mode | str | None = None
    ) -> AsyncIterator[bytes]:
        """The object's bytes in pieces of at most `chunk_size`; memory is bounded by one piece.

        Leaving the loop early closes the connection. `timeout` holds for each piece.
        """
        chosen = self._mode(mode)
        request = encode_request(chosen, uri)
        async with self._places.place(self.timeout):
            verb = lambda connection: self._verbs.begin(connection, request, uri, chosen)  # noqa: E731
            begun: _exchange.Begun = await _waiting.run_async(self._attempt(verb), self.timeout)
            if begun.descriptor is not None:
                with Object(begun.descriptor, uri, chosen, begun.length) as found:
                    while chunk := found.read(chunk_size):
                        yield chunk
                return
            if begun.left == 0:
                return
            try:
                while chunk := await _waiting.run_async(self._verbs.next_chunk(begun, chunk_size), self.timeout):
                    yield chunk
            except BaseException:
                begun.connection.close()
                raise
            self._pool.give(begun.connection)
