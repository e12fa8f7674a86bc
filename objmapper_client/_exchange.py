"""One generator for each verb: what is sent, what may come back, and when a second try is allowed."""

import os
import random
from collections.abc import Callable

from objmapper_client import _transport
from objmapper_client._pool import Pool
from objmapper_client._transport import Connection, Steps, T, Wait
from objmapper_client.address import Address, UnixAddress
from objmapper_client.errors import (
    ConnectionFailed,
    LocalProtocolError,
    RemoteProtocolError,
    ServerBusy,
    ServerReply,
    error_for,
)
from objmapper_client.object import Object, memory_file, no_room
from objmapper_client.protocol import ContentReply, DescriptorReply, ErrorReply, Mode, Status, encode_request

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0


class Begun:
    """An answer that has begun: a descriptor, or the length of a content that follows on the connection."""

    __slots__ = ("connection", "descriptor", "left", "length", "mode", "uri")

    def __init__(self, connection: Connection, uri: str, mode: Mode, descriptor: int | None, length: int) -> None:
        self.connection = connection
        self.uri = uri
        self.mode = mode
        self.descriptor = descriptor
        self.length = length
        self.left = length


def best_mode(address: Address) -> Mode:
    """The cheapest way that the transport has."""
    return Mode.FDPASS if isinstance(address, UnixAddress) else Mode.COPY


def attempt(
    pool: Pool,
    address: Address,
    verb: Callable[[Connection], Steps[T]],
    attempts: int,
    connect_timeout: float,
    prepare: Callable[[Connection], None] | None,
) -> Steps[T]:
    """Runs a verb on a connection of the pool. A second try is made only before the first byte of an answer.

    Pauses between tries are drawn from the whole range up to the bound, which doubles ("full jitter": Brooker,
    "Exponential Backoff And Jitter", 2015).
    """
    tried = 0
    while True:
        connection = pool.take()
        try:
            if connection is None:
                connection = yield from _within(_transport.connect(address), connect_timeout)
                if prepare is not None:
                    prepare(connection)
            result = yield from verb(connection)
        except ServerReply as error:
            # Answered in full: the connection is as good as before, unless the server gave it up.
            assert connection is not None
            if error.status == Status.PROTOCOL_ERROR:
                connection.close()
            else:
                pool.give(connection)
            tried += 1
            if not isinstance(error, ServerBusy) or tried >= attempts:
                raise
        except LocalProtocolError:
            # Nothing was sent.
            if connection is not None:
                pool.give(connection)
            raise
        except ConnectionFailed:
            answered = connection is not None and connection.answered
            stale = connection is not None and connection.is_reused
            if connection is not None:
                connection.close()
            if answered:
                raise
            # That a server closed an idle connection is no failure: the next one is new.
            tried += 0 if stale else 1
            if tried >= attempts:
                raise
            if stale:
                continue
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        else:
            if not isinstance(result, Begun) or result.descriptor is not None or result.left == 0:
                pool.give(connection)
            return result
        bound = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**tried)
        if not (yield Wait(seconds=random.uniform(0, bound))):  # noqa: S311 - jitter
            raise ConnectionFailed(f"{address}: no time left for another try")


def _within(steps: Steps[T], timeout: float) -> Steps[T]:
    """Steps with a time limit of their own."""
    import time

    deadline = time.monotonic() + timeout
    try:
        wait = next(steps)
        while True:
            came = yield wait
            wait = steps.send(came if time.monotonic() < deadline else False)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def begin(connection: Connection, request: bytes, uri: str, mode: Mode) -> Steps[Begun]:
    """Asks for an object and waits for the head of the answer. Raises what the server answered."""
    yield from _transport.send(connection, request)
    decoder = connection.decoder
    while True:
        yield from _transport.receive(connection)
        reply = decoder.next(mode)
        if reply is not None:
            break
    match reply:
        case DescriptorReply():
            if not decoder.is_empty:
                raise RemoteProtocolError(f"{connection.address}: the server sent more than it was asked for")
            descriptor = _transport.take_descriptor(connection)
            try:
                size = os.fstat(descriptor).st_size
            except BaseException:
                os.close(descriptor)
                raise
            return Begun(connection, uri, mode, descriptor, size)
        case ContentReply(length):
            _transport.refuse_descriptors(connection)
            return Begun(connection, uri, mode, None, length)
        case ErrorReply(status, message):
            _transport.refuse_descriptors(connection)
            raise error_for(status, message, uri)


def next_chunk(begun: Begun, most: int) -> Steps[bytes]:
    """The next 1 to `most` bytes of a content; nothing at its end."""
    most = min(most, begun.left)
    if most == 0:
        return b""
    chunk = begun.connection.decoder.take_content(most)
    if not chunk:
        chunk = yield from _transport.receive_some(begun.connection, most)
    _transport.refuse_descriptors(begun.connection)
    begun.left -= len(chunk)
    _at_end(begun)
    return chunk


def fill(begun: Begun, buffer: memoryview) -> Steps[None]:
    """The whole content, into `buffer`, which must have its length."""
    at = 0
    while begun.left:
        chunk = begun.connection.decoder.take_content(begun.left)
        if chunk:
            buffer[at : at + len(chunk)] = chunk
            length = len(chunk)
        else:
            length = yield from _transport.receive_into(begun.connection, buffer[at : at + begun.left])
        _transport.refuse_descriptors(begun.connection)
        at += length
        begun.left -= length
    _at_end(begun)


def _at_end(begun: Begun) -> None:
    if begun.left == 0 and not begun.connection.decoder.is_empty:
        raise RemoteProtocolError(f"{begun.connection.address}: the server sent more content than it promised")


def open_object(connection: Connection, uri: str, mode: Mode) -> Steps[Object]:
    """An object: its own descriptor, or a memory file that holds the bytes."""
    begun = yield from begin(connection, encode_request(mode, uri), uri, mode)
    if begun.descriptor is not None:
        return Object(begun.descriptor, uri, mode, begun.length)
    with memory_file(begun.length) as (descriptor, buffer):
        yield from fill(begun, buffer)
    return Object(descriptor, uri, mode, begun.length)


def read(connection: Connection, uri: str, mode: Mode, offset: int, length: int | None) -> Steps[bytes]:
    """An object's bytes, or a range of them. Without a descriptor what is before the range is received and dropped."""
    begun = yield from begin(connection, encode_request(mode, uri), uri, mode)
    if begun.descriptor is not None:
        with Object(begun.descriptor, uri, mode, begun.length) as found:
            return found.pread(found.size if length is None else length, offset)
    try:
        buffer = bytearray(begun.length)
    except (MemoryError, OverflowError):
        raise no_room(begun.length) from None
    yield from fill(begun, memoryview(buffer))
    end = len(buffer) if length is None else offset + length
    return bytes(buffer) if offset == 0 and end >= len(buffer) else bytes(buffer[offset:end])


def readinto(connection: Connection, uri: str, mode: Mode, buffer: memoryview) -> Steps[int]:
    """An object's bytes, into the front of `buffer`. Raises ValueError where it is too small."""
    begun = yield from begin(connection, encode_request(mode, uri), uri, mode)
    if begun.descriptor is not None:
        with Object(begun.descriptor, uri, mode, begun.length) as found:
            _check_room(uri, found.size, buffer)
            return found.readinto(buffer)
    _check_room(uri, begun.length, buffer)
    yield from fill(begun, buffer[: begun.length])
    return begun.length


def _check_room(uri: str, size: int, buffer: memoryview) -> None:
    if size > len(buffer):
        raise ValueError(f"{uri}: the object has {size} bytes, the buffer {len(buffer)}")
