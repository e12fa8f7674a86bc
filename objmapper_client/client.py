"""The client for threads: one line a verb; the verbs are in `_exchange`."""

import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from objmapper_client import _exchange, _waiting
from objmapper_client._transport import Connection, Steps
from objmapper_client.address import Address, UdpAddress, default_address, parse
from objmapper_client.object import Object
from objmapper_client.protocol import Mode, encode_request

CHUNK = 1 << 20


def _verbs_for(address: Address) -> Any:
    """The module of the verbs: over UDP there are no connections, and all of them are done in other ways."""
    if not isinstance(address, UdpAddress):
        return _exchange
    from objmapper_client import _udp_exchange

    return _udp_exchange


class Settings:
    """What both clients are made of: an address, time limits, a pool of connections."""

    def __init__(
        self,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        max_connections: int = 8,
        attempts: int = 3,
        mode: Mode | str | None = None,
    ) -> None:
        if max_connections < 1 or attempts < 1:
            raise ValueError("max_connections and attempts must be at least 1")
        self.address = default_address() if address is None else parse(address)
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.max_connections = max_connections
        self.attempts = attempts
        self.mode = _exchange.best_mode(self.address) if mode is None else Mode.of(mode)
        self._verbs = _verbs_for(self.address)
        self._pool = self._verbs.Pool()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.address)!r}, timeout={self.timeout}, mode={self.mode.name.lower()!r})"

    def __getstate__(self) -> dict[str, Any]:
        names = ("address", "timeout", "connect_timeout", "max_connections", "attempts", "mode")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _mode(self, mode: Mode | str | None) -> Mode:
        return self.mode if mode is None else Mode.of(mode)

    def _attempt(self, verb: Any) -> Steps[Any]:
        return self._verbs.attempt(  # type: ignore[no-any-return]
            self._pool, self.address, verb, self.attempts, self.connect_timeout, self._prepare_connection
        )

    #: What is done to a new connection; None where it never waits by itself.
    _prepare_connection: Callable[[Connection], None] | None = None


class Client(Settings):
    """Objects from one server, for any number of threads.

    `address` is ``unix:/path``, ``tcp://host:port`` or ``udp://host:port`` (where objects have 64 MiB at most), by
    default the server of this user. `timeout` is for one request with all its tries, `connect_timeout` for one
    connection, both in seconds. At most `max_connections` are in use at once; further requests wait for one, `timeout`
    seconds at most. A request is tried `attempts` times at most, again only before the first byte of an answer. Safe
    after a fork; pickled by its address.

    Raises, from every verb: ObjectNotFound, PermissionDenied, InvalidRequest, UnsupportedMode, ServerBusy, ServerFailed
    (what the server answered), ConnectionFailed, RequestTimeout, RemoteProtocolError, LocalProtocolError.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._process = os.getpid()
        self._places = _waiting.Places(self.max_connections)
        self._prepare_connection = lambda connection: _waiting.sleep_in_socket(connection, self.timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client can be used again; it connects anew."""
        self._pool.close()
        self._pool = self._verbs.Pool()

    def _run(self, verb: Any) -> Any:
        if self._process != os.getpid():
            # Places that the parent's threads took would never come free here.
            self._process, self._places = os.getpid(), _waiting.Places(self.max_connections)
        with self._places.place(self.timeout):
            return _waiting.run(self._attempt(verb), self.timeout)

    def open(self, uri: str, *, mode: Mode | str | None = None) -> Object:
        """The object, as an owned descriptor: close it, or use it in a ``with`` statement."""
        chosen = self._mode(mode)
        found: Object = self._run(lambda connection: self._verbs.open_object(connection, uri, chosen))
        return found

    def read(self, uri: str, *, offset: int = 0, length: int | None = None, mode: Mode | str | None = None) -> bytes:
        """The object's bytes, or `length` of them from `offset` on (fewer at its end).

        Over TCP the whole object travels and is held for a moment even where a range is asked for.
        """
        chosen = self._mode(mode)
        data: bytes = self._run(lambda connection: self._verbs.read(connection, uri, chosen, offset, length))
        return data

    def readinto(self, uri: str, buffer: bytearray | memoryview, *, mode: Mode | str | None = None) -> int:
        """Reads the object into the front of `buffer`. Returns its size. Raises ValueError where it does not fit."""
        chosen, view = self._mode(mode), memoryview(buffer).cast("B")
        size: int = self._run(lambda connection: self._verbs.readinto(connection, uri, chosen, view))
        return size

    def stream(self, uri: str, *, chunk_size: int = CHUNK, mode: Mode | str | None = None) -> Iterator[bytes]:
        """The object's bytes in pieces of at most `chunk_size`; memory is bounded by one piece.

        Leaving the loop early closes the connection. `timeout` holds for each piece.
        """
        chosen = self._mode(mode)
        request = encode_request(chosen, uri)
        with self._places.place(self.timeout):
            verb = lambda connection: self._verbs.begin(connection, request, uri, chosen)  # noqa: E731
            begun: _exchange.Begun = _waiting.run(self._attempt(verb), self.timeout)
            if begun.descriptor is not None:
                with Object(begun.descriptor, uri, chosen, begun.length) as found:
                    while chunk := found.read(chunk_size):
                        yield chunk
                return
            if begun.left == 0:
                return
            try:
                while chunk := _waiting.run(self._verbs.next_chunk(begun, chunk_size), self.timeout):
                    yield chunk
            except BaseException:
                begun.connection.close()
                raise
            self._pool.give(begun.connection)
