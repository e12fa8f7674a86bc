"""The operations over UDP, in the place of those over stream sockets. What needs a stream is refused."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NoReturn

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.dispatch import with_exclusive
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.socket_io import timeout_error
from objmapper_client._files.memory import MemoryFile
from objmapper_client._operations.requests import PutArguments, Stat
from objmapper_client._runtime.effects import STRIDE, Effects, ResetDeadline, T, Wait
from objmapper_client._udp.connection import UdpConnection, UdpPool
from objmapper_client._udp.transfer import ObjectChanged, Transfer
from objmapper_client.address import Address
from objmapper_client.errors import LocalProtocolError, UnsupportedMode, UnsupportedOperation, error_for
from objmapper_client.object import Object, too_large
from objmapper_client.protocol.v1 import Mode, Status

#: Datagrams that are read before others are asked for.
_BATCH = 16
#: How often a transfer begins again because the object was changed.
_MAX_CHANGES = 2
#: Bytes of a stream that are fetched at once.
_SEGMENT = 1 << 20
make_pool = UdpPool


def best_mode(_: Address) -> Mode:
    """The only way that the transport has."""
    return Mode.COPY


def _drive(connection: UdpConnection, transfer: Transfer, is_enough: Callable[[], bool]) -> Effects[None]:
    """Runs a transfer until it is far enough."""
    view = memoryview(connection.buffer)
    next_stride = transfer.arrived + STRIDE
    while not is_enough():
        if connection.has_turned:
            connection.has_turned = False
            transfer.ask_again()
        for datagram in transfer.poll_outgoing(monotonic()):
            connection.send(datagram)
        wait = connection.readable
        wait.most = max(0.0, transfer.next_timeout() - monotonic())
        came = yield wait
        # The transfer's own time was up, or that of the whole request.
        if not came and not (yield Wait(seconds=0)):
            raise timeout_error(connection.address)
        for _ in range(_BATCH if came else 0):
            length = connection.receive()
            if length is None:
                break
            transfer.feed(view[:length], monotonic())
            if is_enough():
                break
        if transfer.arrived >= next_stride:
            next_stride = transfer.arrived + STRIDE
            yield ResetDeadline()


def _begin(
    connection: UdpConnection, uri: str, offset: int = 0, length: int | None = None, version: int | None = None
) -> Effects[Transfer]:
    """A transfer of which the size is known."""
    transfer = Transfer(connection.path, uri, offset, length, version)
    yield from _drive(connection, transfer, lambda: transfer.total is not None)
    return transfer


def _fill(connection: UdpConnection, transfer: Transfer, room: memoryview) -> Effects[None]:
    """The rest of it, into `room`. Raises Changed where the object is another at the end.

    The server itself looks at the file before and after it reads for one PULL.
    """
    transfer.attach(room)
    yield from _drive(connection, transfer, lambda: transfer.is_done)
    if transfer.is_from_several:
        yield from _begin(connection, transfer.uri, 0, 0, transfer.version)


def _fetch(
    connection: UdpConnection, uri: str, offset: int, length: int | None, version: int | None = None
) -> Effects[tuple[Transfer, bytearray]]:
    """A range, in memory of its own."""
    transfer = yield from _begin(connection, uri, offset, length, version)
    try:
        buffer = bytearray(transfer.size)
    except (MemoryError, OverflowError):
        raise too_large(transfer.size) from None
    yield from _fill(connection, transfer, memoryview(buffer))
    return transfer, buffer


def _retry_on_change(
    pool: Pool, uri: str, exchange: Callable[[UdpConnection], Effects[T]], *, keep: bool = False
) -> Effects[T]:
    """Runs an exchange on a socket of its own, which goes back to the pool then unless it is to be kept.

    Begins again where the object was changed meanwhile. Raises Conflict where that does not end.
    """

    def whole(connection: Connection) -> Effects[T]:
        assert isinstance(connection, UdpConnection)
        for _ in range(_MAX_CHANGES + 1):
            try:
                result = yield from exchange(connection)
            except ObjectChanged:
                continue
            if not keep:
                pool.release(connection)
            return result
        raise error_for(Status.CONFLICT, f"it changed {_MAX_CHANGES + 1} times while it was fetched; try again", uri)

    return (yield from with_exclusive(pool, whole))


def _check(uri: str, mode: Mode, offset: int = 0, length: int | None = None) -> None:
    if mode is not Mode.COPY:
        words = f"over UDP objects come by copy, not by {mode.name.lower()}, which needs a stream"
        raise UnsupportedMode(Status.INVALID_MODE, words, uri)
    if offset < 0 or (length is not None and length < 0):
        raise LocalProtocolError(f"a range has an offset and a length from 0 on, not {offset} and {length}")


def _etag(transfer: Transfer) -> str:
    """The version in the words of the other transports."""
    return f"{transfer.version or 0:016x}"


def open_object(pool: Pool, uri: str, mode: Mode) -> Effects[Object]:
    """An object: a memory file that holds the bytes."""
    _check(uri, mode)
    memory = MemoryFile()

    def once(connection: UdpConnection) -> Effects[Transfer]:
        transfer = yield from _begin(connection, uri)
        yield from _fill(connection, transfer, memory.make_room(transfer.size))
        return transfer

    try:
        transfer = yield from _retry_on_change(pool, uri, once)
        return memory.become(uri, mode, transfer.size, etag=_etag(transfer))
    except BaseException:
        memory.close()
        raise


def read(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[bytes]:
    """An object's bytes, or a range of them: nothing else travels."""
    _check(uri, mode, offset, length)
    _, content = yield from _retry_on_change(pool, uri, lambda each: _fetch(each, uri, offset, length))
    return bytes(content)


def readinto(pool: Pool, uri: str, mode: Mode, buffer: memoryview, offset: int) -> Effects[int]:
    """An object's bytes from `offset` on, into the front of `buffer`, as many as it takes."""
    _check(uri, mode, offset)

    def once(connection: UdpConnection) -> Effects[int]:
        transfer = yield from _begin(connection, uri, offset, len(buffer))
        yield from _fill(connection, transfer, buffer[: transfer.size])
        return transfer.size

    return (yield from _retry_on_change(pool, uri, once))


class UdpDownload:
    """A stream under way. Its segments are fetched one after the other, all of one state of the object."""

    __slots__ = ("connection", "left", "offset", "segment", "uri", "version")

    def __init__(self, connection: UdpConnection, transfer: Transfer, length: int | None, segment: bytearray) -> None:
        self.connection = connection
        self.uri = transfer.uri
        self.version = transfer.version
        #: Where the next chunk begins, and the bytes that have not been handed out.
        self.offset = transfer.offset
        rest = max(0, (transfer.total or 0) - transfer.offset)
        self.left = rest if length is None else min(rest, length)
        #: What was fetched and not yet handed out.
        self.segment = memoryview(segment)


def begin_stream(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[UdpDownload]:
    """Fetches the first segment of a stream. The socket stays with what has begun: see `leave` and `give_up`."""
    _check(uri, mode, offset, length)

    def once(connection: UdpConnection) -> Effects[UdpDownload]:
        most = _SEGMENT if length is None else min(length, _SEGMENT)
        transfer, segment = yield from _fetch(connection, uri, offset, most)
        return UdpDownload(connection, transfer, length, segment)

    return (yield from _retry_on_change(pool, uri, once, keep=True))


def next_chunk(pool: Pool, download: UdpDownload, most: int) -> Effects[bytes]:  # noqa: ARG001 - other transports need it
    """The next 1 to `most` bytes of a content; nothing at its end.

    Raises Conflict where the object was changed: what was handed out cannot be taken back.
    """
    if download.left and not download.segment:
        length = min(download.left, _SEGMENT)
        try:
            _, segment = yield from _fetch(download.connection, download.uri, download.offset, length, download.version)
        except ObjectChanged:
            words = "it was changed while it was streamed; open() and read() begin again by themselves"
            raise error_for(Status.CONFLICT, words, download.uri) from None
        download.segment = memoryview(segment)
    chunk = bytes(download.segment[:most])
    download.segment = download.segment[most:]
    download.offset += len(chunk)
    download.left -= len(chunk)
    return chunk


def leave(pool: Pool, download: UdpDownload) -> None:
    """Gives the socket back, also where something is left."""
    pool.release(download.connection)


def abort(pool: Pool, download: UdpDownload) -> None:
    """Has the socket closed."""
    pool.discard(download.connection)


def stat(pool: Pool, uri: str) -> Effects[Stat]:
    """What a range of nothing tells of the object. The modification time is not among that: it is 0."""
    transfer = yield from _retry_on_change(pool, uri, lambda each: _begin(each, uri, 0, 0))
    return Stat(uri, transfer.total or 0, 0, _etag(transfer))


def open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> NoReturn:  # noqa: ARG001
    """Refused: there are no requests ahead, and one transfer after the other is what `open` does."""
    raise _lacking(pool, "open_many", "call open() for each, or use unix: or tcp://")


def list_page(pool: Pool, prefix: str, page_size: int, cursor: bytes | None) -> NoReturn:  # noqa: ARG001
    """Refused: the pull form has no pages."""
    raise _lacking(pool, "list")


def put(pool: Pool, uri: str, wanted: PutArguments) -> NoReturn:  # noqa: ARG001
    """Refused: a datagram that is lost would leave the outcome of a write unknown."""
    raise _lacking(pool, "put")


def delete(pool: Pool, uri: str, if_match: str | None) -> NoReturn:  # noqa: ARG001
    """Refused, for the same reason."""
    raise _lacking(pool, "delete")


def _lacking(pool: Pool, operation: str, advice: str = "use unix: or tcp://") -> UnsupportedOperation:
    return UnsupportedOperation(f"{pool.address}: no {operation} over UDP: {advice}")
