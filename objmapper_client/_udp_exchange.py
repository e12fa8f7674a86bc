"""The verbs over UDP, one generator each. Names and arguments are those of `_exchange`, in whose place it stands."""

import random
from collections.abc import Callable
from time import monotonic
from typing import NoReturn

from objmapper_client._pull import Changed, Transfer
from objmapper_client._transport import Steps, T, Wait
from objmapper_client._udp_connection import Pool, UdpConnection, connect
from objmapper_client.address import Address
from objmapper_client.errors import (
    ConnectionFailed,
    LocalProtocolError,
    RequestTimeout,
    ServerBusy,
    ServerReply,
    UnsupportedMode,
    error_for,
)
from objmapper_client.object import Object, memory_file, no_room
from objmapper_client.protocol import Mode, Status

#: Datagrams that are read before others are asked for.
_BATCH = 16
#: How often a transfer begins again because the object was changed.
_MOST_CHANGES = 2
#: Bytes of a stream that are fetched at once.
_SEGMENT = 1 << 20
_FIRST_PAUSE = 0.01


def attempt(
    pool: Pool,
    address: Address,
    verb: Callable[[UdpConnection], Steps[T]],
    attempts: int,
    connect_timeout: float,  # noqa: ARG001 - there is nothing to connect to
    prepare: object,  # noqa: ARG001 - likewise
) -> Steps[T]:
    """Runs a verb on a connection of the pool; again where nobody was there yet, or the server had no room."""
    tried = 0
    while True:
        connection = pool.take() or (yield from connect(address))
        try:
            result = yield from verb(connection)
        except ServerReply as error:
            pool.give(connection)
            tried += 1
            if not isinstance(error, ServerBusy) or tried >= attempts:
                raise
        except LocalProtocolError:
            # Nothing was sent.
            pool.give(connection)
            raise
        except ConnectionFailed:
            connection.close()
            tried += 1
            if connection.answered or tried >= attempts:
                raise
        except BaseException:
            connection.close()
            raise
        else:
            if not isinstance(result, Begun) or result.left == 0:
                pool.give(connection)
            return result
        if not (yield Wait(seconds=random.uniform(0, _FIRST_PAUSE * 2**tried))):  # noqa: S311 - jitter
            raise ConnectionFailed(f"{address}: no time left for another try")


def _advance(connection: UdpConnection, transfer: Transfer, is_enough: Callable[[], bool]) -> Steps[None]:
    """Runs a transfer until it is far enough."""
    view = memoryview(connection.buffer)
    while not is_enough():
        if connection.has_turned:
            connection.has_turned = False
            transfer.ask_again()
        for datagram in transfer.due(monotonic()):
            connection.send(datagram)
        wait = connection.readable
        wait.limit = max(0.0, transfer.next_look() - monotonic())
        came = yield wait
        if came is False:
            raise RequestTimeout(f"{connection.address}: no answer in time")
        for _ in range(_BATCH if came else 0):
            length = connection.receive()
            if length is None:
                break
            transfer.received(view[:length], monotonic())
            if is_enough():
                break


def _begin(
    connection: UdpConnection, uri: str, offset: int = 0, length: int | None = None, version: int | None = None
) -> Steps[Transfer]:
    """A transfer of which the size is known."""
    transfer = Transfer(connection.path, uri, offset, length, version)
    yield from _advance(connection, transfer, lambda: transfer.total is not None)
    return transfer


def _fill(connection: UdpConnection, transfer: Transfer, room: memoryview) -> Steps[None]:
    """The rest of it, into `room`."""
    transfer.attach(room)
    yield from _advance(connection, transfer, lambda: transfer.is_done)


def _fetch(connection: UdpConnection, uri: str, offset: int, length: int | None) -> Steps[bytearray]:
    """A range, in memory of its own."""
    transfer = yield from _begin(connection, uri, offset, length)
    try:
        buffer = bytearray(transfer.size)
    except (MemoryError, OverflowError):
        raise no_room(transfer.size) from None
    yield from _fill(connection, transfer, memoryview(buffer))
    return buffer


def _unless_changed(uri: str, steps: Callable[[], Steps[T]]) -> Steps[T]:
    """Runs the steps; again where the object was changed meanwhile. Raises Conflict where that does not end."""
    for _ in range(_MOST_CHANGES + 1):
        try:
            return (yield from steps())
        except Changed:
            continue
    raise error_for(Status.CONFLICT, f"it changed {_MOST_CHANGES + 1} times while it was fetched; try again", uri)


def _check_mode(uri: str, mode: Mode) -> None:
    if mode is not Mode.COPY:
        words = f"over UDP objects come by copy, not by {mode.name.lower()}, which needs a stream"
        raise UnsupportedMode(Status.INVALID_MODE, words, uri)


def open_object(connection: UdpConnection, uri: str, mode: Mode) -> Steps[Object]:
    """An object: a memory file that holds the bytes."""
    _check_mode(uri, mode)

    def once() -> Steps[Object]:
        transfer = yield from _begin(connection, uri)
        with memory_file(transfer.size) as (descriptor, room):
            yield from _fill(connection, transfer, room)
        return Object(descriptor, uri, mode, transfer.size)

    return (yield from _unless_changed(uri, once))


def read(connection: UdpConnection, uri: str, mode: Mode, offset: int, length: int | None) -> Steps[bytes]:
    """An object's bytes, or a range of them: nothing else travels."""
    _check_mode(uri, mode)
    if offset < 0 or (length is not None and length < 0):
        raise LocalProtocolError(f"{uri}: a range has no negative offset or length")
    return bytes((yield from _unless_changed(uri, lambda: _fetch(connection, uri, offset, length))))


def readinto(connection: UdpConnection, uri: str, mode: Mode, buffer: memoryview) -> Steps[int]:
    """An object's bytes, into the front of `buffer`. Raises ValueError where it is too small."""
    _check_mode(uri, mode)

    def once() -> Steps[int]:
        transfer = yield from _begin(connection, uri)
        if transfer.size > len(buffer):
            raise ValueError(f"{uri}: the object has {transfer.size} bytes, the buffer {len(buffer)}")
        yield from _fill(connection, transfer, buffer[: transfer.size])
        return transfer.size

    return (yield from _unless_changed(uri, once))


class Begun:
    """A stream under way. Its segments are fetched one after the other, all of one state of the object."""

    descriptor = None

    def __init__(self, connection: UdpConnection, uri: str, total: int, version: int | None) -> None:
        self.connection = connection
        self.uri = uri
        self.length = total
        #: Bytes that have not been handed out.
        self.left = total
        self.version = version
        #: What was fetched and not yet handed out.
        self.segment = memoryview(b"")


def begin(connection: UdpConnection, request: bytes, uri: str, mode: Mode) -> Steps[Begun]:  # noqa: ARG001
    """Fetches the first segment of a stream. `request`, which is that of other transports, is not used."""
    _check_mode(uri, mode)

    def once() -> Steps[Begun]:
        transfer = yield from _begin(connection, uri, 0, _SEGMENT)
        assert transfer.total is not None
        begun = Begun(connection, uri, transfer.total, transfer.version)
        begun.segment = memoryview(bytearray(transfer.size))
        yield from _fill(connection, transfer, begun.segment)
        return begun

    return (yield from _unless_changed(uri, once))


def next_chunk(begun: Begun, most: int) -> Steps[bytes]:
    """The next 1 to `most` bytes of a content; nothing at its end.

    Raises Conflict where the object was changed: what was handed out cannot be taken back.
    """
    if begun.left and not begun.segment:
        try:
            begun.segment = memoryview((yield from _next_segment(begun)))
        except Changed:
            words = "it was changed while it was streamed; open() and read() begin again by themselves"
            raise error_for(Status.CONFLICT, words, begun.uri) from None
    chunk = bytes(begun.segment[:most])
    begun.segment = begun.segment[most:]
    begun.left -= len(chunk)
    return chunk


def _next_segment(begun: Begun) -> Steps[bytearray]:
    offset = begun.length - begun.left
    transfer = yield from _begin(begun.connection, begun.uri, offset, _SEGMENT, begun.version)
    buffer = bytearray(transfer.size)
    yield from _fill(begun.connection, transfer, memoryview(buffer))
    return buffer


def put(connection: UdpConnection, uri: str, *_: object) -> NoReturn:  # noqa: ARG001
    """Refused: a datagram that is lost would be a write that nobody knows of."""
    raise UnsupportedMode(Status.UNSUPPORTED_OP, "nothing is stored over UDP: use a Unix socket or tcp://", uri)
