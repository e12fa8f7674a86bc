"""The operations over UDP. Those that need a stream raise UnsupportedOperation."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NoReturn

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.request_runner import with_exclusive
from objmapper_client._connection.socket_io import timeout_error
from objmapper_client._files.memory_file import MemoryFile
from objmapper_client._operations.metadata_operations import PutArguments, Stat, check_range
from objmapper_client._runtime.effects import PROGRESS_STRIDE, Effects, ResetDeadline, T, Wait
from objmapper_client._udp.connection import UdpConnection, UdpPool
from objmapper_client._udp.transfer import ObjectChanged, Transfer
from objmapper_client.address import Address
from objmapper_client.errors import UnsupportedMode, UnsupportedOperation, error_for
from objmapper_client.object import Object, too_large_error
from objmapper_client.protocol.v1 import Mode, Status

#: Datagrams to receive before the transfer sends again.
_MAX_BATCH = 16
#: Restarts of a transfer because the object changed.
_MAX_CHANGES = 2
#: Bytes of a stream that one transfer fetches.
_SEGMENT_SIZE = 1 << 20
make_pool = UdpPool


def best_mode(_: Address) -> Mode:
    """The transport's only mode."""
    return Mode.COPY


def _drive(connection: UdpConnection, transfer: Transfer, is_finished: Callable[[], bool]) -> Effects[None]:
    """Runs a transfer until `is_finished` returns True. Raises RequestTimeout and the transfer's errors."""
    view = memoryview(connection.buffer)
    next_stride = transfer.arrived + PROGRESS_STRIDE
    while not is_finished():
        if connection.has_changed_address:
            connection.has_changed_address = False
            transfer.resend_all()
        for datagram in transfer.poll_outgoing(monotonic()):
            connection.send(datagram)
        wait = connection.readable
        wait.timeout = max(0.0, transfer.next_timeout() - monotonic())
        is_ready = yield wait
        # Either the transfer's timer or the deadline of the request has passed.
        if not is_ready and not (yield Wait(seconds=0)):
            raise timeout_error(connection.address)
        for _ in range(_MAX_BATCH if is_ready else 0):
            length = connection.receive()
            if length is None:
                break
            transfer.feed(view[:length], monotonic())
            if is_finished():
                break
        if transfer.arrived >= next_stride:
            next_stride = transfer.arrived + PROGRESS_STRIDE
            yield ResetDeadline()


def _begin(
    connection: UdpConnection, uri: str, offset: int = 0, length: int | None = None, version: int | None = None
) -> Effects[Transfer]:
    """Starts a transfer and waits until its size is known."""
    transfer = Transfer(connection.path, uri, offset, length, version)
    yield from _drive(connection, transfer, lambda: transfer.total is not None)
    return transfer


def _fill(connection: UdpConnection, transfer: Transfer, target: memoryview) -> Effects[None]:
    """Receives the content into `target`. Raises ObjectChanged if the object's version is another at the end.

    Within one PULL the server itself checks that the file did not change.
    """
    transfer.attach(target)
    yield from _drive(connection, transfer, lambda: transfer.is_done)
    if transfer.has_several_requests:
        yield from _begin(connection, transfer.uri, 0, 0, transfer.version)


def _fetch(
    connection: UdpConnection, uri: str, offset: int, length: int | None, version: int | None = None
) -> Effects[tuple[Transfer, bytearray]]:
    """Fetches a range into a new buffer."""
    transfer = yield from _begin(connection, uri, offset, length, version)
    try:
        buffer = bytearray(transfer.size)
    except (MemoryError, OverflowError):
        raise too_large_error(transfer.size) from None
    yield from _fill(connection, transfer, memoryview(buffer))
    return transfer, buffer


def _retry_on_change(
    pool: Pool, uri: str, exchange: Callable[[UdpConnection], Effects[T]], *, keep_connection: bool = False
) -> Effects[T]:
    """Runs an exchange on an exclusive socket, which returns to the pool unless `keep_connection`.

    Restarts the exchange if the object changed meanwhile. Raises Conflict after `_MAX_CHANGES` restarts.
    """

    def attempt(connection: Connection) -> Effects[T]:
        assert isinstance(connection, UdpConnection)
        for _ in range(_MAX_CHANGES + 1):
            try:
                result = yield from exchange(connection)
            except ObjectChanged:
                continue
            if not keep_connection:
                pool.release(connection)
            return result
        raise error_for(Status.CONFLICT, f"it changed {_MAX_CHANGES + 1} times while it was fetched; try again", uri)

    return (yield from with_exclusive(pool, attempt))


def _check_arguments(uri: str, mode: Mode, offset: int = 0, length: int | None = None) -> None:
    if mode is not Mode.COPY:
        message = f"over UDP only copy is supported (got {mode.name.lower()}); use unix: or tcp://"
        raise UnsupportedMode(Status.INVALID_MODE, message, uri)
    check_range(offset, length)


def _etag(transfer: Transfer) -> str:
    """The version in the form of the other transports."""
    return f"{transfer.version or 0:016x}"


def open_object(pool: Pool, uri: str, mode: Mode) -> Effects[Object]:
    """Opens an object: a memory file with its bytes."""
    _check_arguments(uri, mode)
    memory = MemoryFile()

    def exchange_once(connection: UdpConnection) -> Effects[Transfer]:
        transfer = yield from _begin(connection, uri)
        yield from _fill(connection, transfer, memory.allocate(transfer.size))
        return transfer

    try:
        transfer = yield from _retry_on_change(pool, uri, exchange_once)
        return memory.to_object(uri, mode, transfer.size, etag=_etag(transfer))
    except BaseException:
        memory.close()
        raise


def read(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[bytes]:
    """Reads an object's bytes, or a range of them."""
    _check_arguments(uri, mode, offset, length)
    _, content = yield from _retry_on_change(pool, uri, lambda connection: _fetch(connection, uri, offset, length))
    return bytes(content)


def readinto(pool: Pool, uri: str, mode: Mode, buffer: memoryview, offset: int) -> Effects[int]:
    """Reads an object's bytes from `offset` into `buffer`. Returns their number."""
    _check_arguments(uri, mode, offset)

    def exchange_once(connection: UdpConnection) -> Effects[int]:
        transfer = yield from _begin(connection, uri, offset, len(buffer))
        yield from _fill(connection, transfer, buffer[: transfer.size])
        return transfer.size

    return (yield from _retry_on_change(pool, uri, exchange_once))


class UdpDownload:
    """An open stream. It fetches one segment after the other, all of one version of the object."""

    __slots__ = ("connection", "left", "offset", "segment", "uri", "version")

    def __init__(self, connection: UdpConnection, transfer: Transfer, length: int | None, segment: bytearray) -> None:
        self.connection = connection
        self.uri = transfer.uri
        self.version = transfer.version
        #: The offset of the next chunk, and the bytes from there to the end of the stream.
        self.offset = transfer.offset
        rest = max(0, (transfer.total or 0) - transfer.offset)
        self.left = rest if length is None else min(rest, length)
        #: Fetched bytes that `next_chunk` has not returned yet.
        self.segment = memoryview(segment)


def begin_stream(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[UdpDownload]:
    """Opens a stream and fetches its first segment. The stream owns the socket until `end_stream` or `abort`."""
    _check_arguments(uri, mode, offset, length)

    def exchange_once(connection: UdpConnection) -> Effects[UdpDownload]:
        max_bytes = _SEGMENT_SIZE if length is None else min(length, _SEGMENT_SIZE)
        transfer, segment = yield from _fetch(connection, uri, offset, max_bytes)
        return UdpDownload(connection, transfer, length, segment)

    return (yield from _retry_on_change(pool, uri, exchange_once, keep_connection=True))


def next_chunk(pool: Pool, download: UdpDownload, max_bytes: int) -> Effects[bytes]:  # noqa: ARG001 - other transports need it
    """Returns the next 1 to `max_bytes` bytes of a stream; b"" at its end.

    Raises Conflict if the object changed, because the caller already has bytes of the old version.
    """
    if download.left and not download.segment:
        length = min(download.left, _SEGMENT_SIZE)
        try:
            _, segment = yield from _fetch(download.connection, download.uri, download.offset, length, download.version)
        except ObjectChanged:
            message = "it changed while it was streamed; try again, or use open() or read(), which try again themselves"
            raise error_for(Status.CONFLICT, message, download.uri) from None
        download.segment = memoryview(segment)
    chunk = bytes(download.segment[:max_bytes])
    download.segment = download.segment[max_bytes:]
    download.offset += len(chunk)
    download.left -= len(chunk)
    return chunk


def end_stream(pool: Pool, download: UdpDownload) -> None:
    """Ends a stream and returns the socket to the pool."""
    pool.release(download.connection)


def abort(pool: Pool, download: UdpDownload) -> None:
    """Ends a stream and closes its socket."""
    pool.discard(download.connection)


def stat(pool: Pool, uri: str) -> Effects[Stat]:
    """Gets an object's size and version with an empty range. The modification time is always 0."""
    transfer = yield from _retry_on_change(pool, uri, lambda connection: _begin(connection, uri, 0, 0))
    return Stat(uri, transfer.total or 0, 0, _etag(transfer))


def open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> NoReturn:  # noqa: ARG001
    """Not supported: UDP has no pipelining; `open` runs one transfer after the other."""
    raise _unsupported(pool, "open_many", "call open() for each, or use unix: or tcp://")


def list_page(pool: Pool, prefix: str, page_size: int, cursor: bytes | None) -> NoReturn:  # noqa: ARG001
    """Not supported: the UDP protocol has no lists."""
    raise _unsupported(pool, "list")


def put(pool: Pool, uri: str, arguments: PutArguments) -> NoReturn:  # noqa: ARG001
    """Not supported: a lost datagram would leave the outcome of a write unknown."""
    raise _unsupported(pool, "put")


def delete(pool: Pool, uri: str, if_match: str | None) -> NoReturn:  # noqa: ARG001
    """Not supported, for the same reason as `put`."""
    raise _unsupported(pool, "delete")


def _unsupported(pool: Pool, operation: str, advice: str = "use unix: or tcp://") -> UnsupportedOperation:
    return UnsupportedOperation(f"{pool.address}: {operation} is not supported over UDP; {advice}")
