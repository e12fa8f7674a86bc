"""One generator for each verb: what is asked, and what is made of the answer."""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

from objmapper_client._ask import NO_DETAILS, PendingRequest, SimpleRequest, Verb, details
from objmapper_client._lines import require_version_2
from objmapper_client._owned import give_last
from objmapper_client._pool import Pool
from objmapper_client._steps import RunBlocking, Effects, Wait
from objmapper_client._transfer import Download, begin, fill, finish, abort, leave, next_chunk, range_length
from objmapper_client.address import Address, UnixAddress
from objmapper_client.errors import Conflict, LocalProtocolError, ObjmapperError, RemoteProtocolError, at_limit
from objmapper_client.object import MemoryFile, Object, too_large, truncated
from objmapper_client.protocol import Mode
from objmapper_client.protocol_v2 import Operation
from objmapper_client.protocol_v2_responses import (
    Entry,
    LeftOut,
    Metadata,
    check_size,
    decode_details,
    decode_entries,
    in_nanoseconds,
)

#: A content up to this length shares a connection with other answers; what is longer would hold them up.
MAX_SHARED = 1 << 18
#: Bytes of a list's page at most: servers end it at 1 MiB.
_MAX_PAGE = 1 << 24
#: The form of a list's entries that says nanoseconds, and what was left out.
_DETAILED = 1
#: Pages without an entry, one after the other, that a list may have.
_EMPTY_PAGES = 10_000
#: Reading more than this from a file is left to a thread by an event loop.
_QUICK = 1 << 18
#: Of a buffer that is filled by another thread this much is filled at once.
_PIECE = 8 << 20
# Looking members up in their enumerations costs more than one thinks: see `object`.
_FDPASS, _BY_DESCRIPTOR = Operation.FDPASS, Mode.FDPASS
_OPERATIONS = {mode: Operation.of(mode) for mode in Mode}

__all__ = [
    "begin_stream",
    "best_mode",
    "delete",
    "abort",
    "leave",
    "list_page",
    "make_pool",
    "next_chunk",
    "open_many",
    "open_object",
    "put",
    "read",
    "readinto",
    "stat",
]

Result = Object | ObjmapperError
make_pool = Pool


class _Stated(NamedTuple):
    uri: str
    size: int
    mtime: int
    etag: str


class Stat(_Stated):
    """What a server says of an object: size in bytes, modification time in seconds since 1970 (0 over UDP), version.

    Beside them, as in `os.stat_result`: `mtime_ns`, the time in nanoseconds, None where the server does not send it.
    """

    mtime_ns: int | None = None


def best_mode(address: Address) -> Mode:
    """The cheapest way that the transport has."""
    return Mode.FDPASS if isinstance(address, UnixAddress) else Mode.COPY


class OpenRequest(SimpleRequest[Object]):
    """An object by descriptor."""

    _found: Object | None = None

    def result(self) -> Object:
        """The object that came."""
        metadata = self.metadata
        # Spelled out: this is what programs do all the time, and each call counts.
        found = self._found = Object.__new__(Object)
        found.uri, found.mode, found.etag, found.mtime = self.uri, _BY_DESCRIPTOR, metadata[2], metadata[1]
        # Both have it for a moment: see `drop`.
        found._descriptor = self._descriptor
        self._descriptor = -1
        found._examine()
        return found

    def drop(self) -> None:
        """`discard`, for a caller that has the connection's lock."""
        if self._found is not None and self._found._descriptor == self._descriptor:
            self._descriptor = -1
        super().drop()

    def otherwise(self, pool: Pool) -> Effects[Object]:
        """The same on a connection of its own, in the version that the server speaks by then."""
        begun = yield from begin(pool, Operation.FDPASS, self.uri)
        connection, metadata = begun.connection, begun.metadata
        try:
            found = Object(-1, self.uri, Mode.COPY, 0, metadata.etag, metadata.mtime)
            found.mode = Mode.FDPASS
            give_last(connection.descriptors, found)
            pool.release(connection)
        except BaseException:
            pool.discard(connection)
            raise
        found._examine()
        return found


def open_object(pool: Pool, uri: str, mode: Mode) -> Verb[Object]:
    """An object: its own descriptor, or a memory file that holds the bytes."""
    return OpenRequest(_FDPASS, uri) if mode is _BY_DESCRIPTOR else _open_copy(pool, uri, mode)


def opened(pool: Pool, uri: str, mode: Mode) -> Effects[Object]:
    """`open_object` as a step of something else."""
    verb = open_object(pool, uri, mode)
    if not isinstance(verb, SimpleRequest):
        return (yield from verb)
    try:
        return verb.result() if (yield verb) else (yield from verb.fallback_v1(pool))
    except BaseException:
        verb.discard()
        raise


def _open_copy(pool: Pool, uri: str, mode: Mode) -> Effects[Object]:
    memory = MemoryFile()
    try:
        got = yield from _copy(pool, uri, mode, 0, None, memory.make_room)
        if got.content is not None:
            memory.write(got.content)
        return memory.become(uri, mode, got.length, etag=got.etag, mtime=got.mtime)
    except BaseException:
        memory.close()
        raise


def open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> Effects[list[Result]]:
    """An object or an error for each URI, in their order."""
    try:
        from objmapper_client import _many
    except OSError as error:
        raise at_limit(error) or error from error
    return _many.open_many(pool, uris, mode)


def read(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[bytes]:
    """An object's bytes, or a range of them."""
    _check_range(offset, length)
    if mode is Mode.FDPASS:
        with (yield from opened(pool, uri, mode)) as found:
            wanted = range_length(found.size, offset, length)
            if wanted <= _QUICK:
                data = found.pread(wanted, offset)
            else:
                data = yield RunBlocking(lambda: found.pread(wanted, offset))
            if len(data) < wanted:
                raise truncated(uri, len(data), wanted)
            return data
    room = _BytesRoom()
    got = yield from _copy(pool, uri, mode, offset, length, room.make)
    return room.take() if got.content is None else got.content


def readinto(pool: Pool, uri: str, mode: Mode, buffer: memoryview, offset: int) -> Effects[int]:
    """An object's bytes from `offset` on, into the front of `buffer`, as many as it takes."""
    _check_range(offset, None)
    if mode is Mode.FDPASS:
        with (yield from opened(pool, uri, mode)) as found:
            wanted = range_length(found.size, offset, len(buffer))
            if len(buffer) <= _QUICK:
                count = found.readinto(buffer, offset)
            else:
                count, came = 0, -1
                while count < wanted and came:
                    # In pieces: where the call is cancelled, the piece that is being read is waited for.
                    piece, at = buffer[count : count + _PIECE], offset + count
                    came = yield RunBlocking(lambda piece=piece, at=at: found.readinto(piece, at))  # type: ignore[misc]
                    count += came
            if count < wanted:
                raise truncated(uri, count, wanted)
            return count
    got = yield from _copy(pool, uri, mode, offset, len(buffer), lambda length: buffer[:length])
    if got.content is not None:
        buffer[: got.length] = got.content
    return got.length


def begin_stream(pool: Pool, uri: str, mode: Mode, offset: int, length: int | None) -> Effects[Download | Object]:
    """What a stream is taken from: an object by descriptor, or an answer that has begun."""
    _check_range(offset, length)
    if mode is Mode.FDPASS:
        return (yield from opened(pool, uri, mode))
    return (yield from begin(pool, _OPERATIONS[mode], uri, _range(offset, length)))


class StatRequest(SimpleRequest[Stat]):
    """What the server says of an object; also after a put."""

    def result(self) -> Stat:
        """What it said."""
        return stat_of(self.uri, self.metadata)

    def otherwise(self, pool: Pool) -> Effects[Stat]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "stat")
        return self.result()


def stat(_: Pool, uri: str) -> Verb[Stat]:
    """What the server says of an object."""
    return StatRequest(Operation.STAT, uri)


def stat_of(uri: str, metadata: Metadata) -> Stat:
    """What an answer says of its object."""
    size, mtime = metadata.size or 0, metadata.mtime or 0
    check_size(size)
    found = Stat(uri, size, mtime, metadata.etag or "")
    if metadata.nanoseconds is not None:
        found.mtime_ns = in_nanoseconds(mtime, metadata.nanoseconds)
    return found


class DeleteRequest(SimpleRequest[None]):
    """An object's removal."""

    repeatable = False

    def result(self) -> None:
        """Nothing."""

    def otherwise(self, pool: Pool) -> Effects[None]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "delete")
        return self.result()


def delete(_: Pool, uri: str, if_match: str | None) -> Verb[None]:
    """Removes an object."""
    ask = DeleteRequest(Operation.DELETE, uri)
    return ask if if_match is None else ask.with_parameters(details(if_match=if_match))


class PutArguments(NamedTuple):
    """What is to be stored, and on which conditions."""

    data: object
    length: int | None
    if_match: str | None
    if_none_match: str | None
    make_parents: bool
    progress: Callable[[int], None] | None


def put(pool: Pool, uri: str, wanted: PutArguments) -> Effects[Stat]:
    """Stores an object, whole or not at all."""
    try:
        from objmapper_client import _upload
    except OSError as error:
        raise at_limit(error) or error from error
    return _upload.put(pool, uri, wanted)


#: The entries, where the next page begins, and what was left out.
Page = tuple[list[Entry], bytes | None, list[LeftOut]]


class ListRequest(SimpleRequest[Page]):
    """A page of a list."""

    def result(self) -> Page:
        """The entries, where the next page begins (None where there is none), and what the server says it left out."""
        cursor = self.metadata.cursor or None
        try:
            if self.metadata.form == _DETAILED:
                listed, left_out = decode_details(self.content)
            else:
                listed, left_out = list(decode_entries(self.content)), []
            for uri, size, _ in listed:
                check_size(size)
                if not uri.startswith(self.uri):
                    raise RemoteProtocolError(f"the server listed {uri!r}, which does not begin with {self.uri!r}")
                # The first test costs little, and most URIs pass it.
                if ("/." in uri or "//" in uri or uri[0] == "." or uri[-1] == "/") and _strays(uri):
                    raise RemoteProtocolError(f"the server listed {uri!r}, which has a segment that no object can have")
        except RemoteProtocolError as error:
            raise violation_by(self, str(error)) from error
        return listed, cursor, left_out

    def otherwise(self, pool: Pool) -> Effects[Page]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "list")
        return self.result()


def _strays(uri: str) -> bool:
    """Whether a URI has a segment that is empty or leads elsewhere: as a path it could name any file of a client."""
    return not {"", ".", ".."}.isdisjoint(uri.removeprefix("/").split("/"))


class PageProgress:
    """What came of a list so far. Its pages must go on, or a server could keep a client listing for ever."""

    __slots__ = ("_cursors", "_last", "_prefix", "cursor")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._last = ""
        #: Where the next page begins; None before the first and after the last.
        self.cursor: bytes | None = None
        # Those since the last entry.
        self._cursors: set[bytes] = set()

    def new_of(self, page: Page) -> list[Entry]:
        """The entries that were not in an earlier page. Raises RemoteProtocolError where the list does not go on."""
        found, self.cursor, _ = page
        last, new = self._last, []
        for entry in found:
            if entry.uri > last:
                last = entry.uri
                new.append(entry)
            elif entry.uri < last:
                raise RemoteProtocolError(f"{self._prefix}: the server listed {entry.uri!r} behind {last!r}")
        if new:
            self._last = last
            self._cursors.clear()
        if self.cursor is not None:
            if self.cursor in self._cursors or len(self._cursors) > _EMPTY_PAGES:
                raise RemoteProtocolError(f"{self._prefix}: the server's list does not go on behind {last!r}")
            self._cursors.add(self.cursor)
        return new


def list_page(_: Pool, prefix: str, page_size: int, cursor: bytes | None) -> Verb[Page]:
    """A page of a list, where the next one begins (None where there is none), and what was left out."""
    if page_size < 1:
        raise LocalProtocolError(f"a page has at least 1 entry, not {page_size}")
    said = details(limit=min(page_size, 0xFFFFFFFF), cursor=cursor, form=_DETAILED)
    return ListRequest(Operation.LIST, prefix).with_parameters(said, most=_MAX_PAGE)


class FetchResult(NamedTuple):
    """How a copy ended: its length, what the server said of the object, and the bytes where no room was made."""

    length: int
    etag: str | None
    mtime: int | None
    content: bytes | None = None


def _copy(
    pool: Pool, uri: str, mode: Mode, offset: int, length: int | None, make_room: Callable[[int], memoryview]
) -> Effects[FetchResult]:
    """The bytes of an object, or of a range of it.

    The first part is asked for on the shared connection. What is longer goes on with a connection of its own, provided
    that the object is still the same; else all of it comes from there.
    """
    operation = _OPERATIONS[mode]
    if length is None or length <= MAX_SHARED:
        said = _range(offset, MAX_SHARED if length is None else length)
        first = PendingRequest(operation, uri).with_parameters(said, most=MAX_SHARED)
        if (yield first):
            _, mtime, etag = first.metadata[:3]
            if is_complete(first, offset, length):
                return FetchResult(len(first.content), etag, mtime, first.content)
            got = yield from fetch_remainder(pool, first, offset, make_room)
            if got is not None:
                return got
    begun = yield from begin(pool, operation, uri, _range(offset, length))
    yield from _receive(pool, begun, make_room, b"")
    return FetchResult(begun.length, begun.metadata.etag, begun.metadata.mtime)


def is_complete(first: PendingRequest, offset: int, length: int | None) -> bool:
    """Whether a first part is all that was asked for. Raises RemoteProtocolError where it is not as long as it must."""
    have, size = len(first.content), first.metadata.size
    if size is None:
        return have < MAX_SHARED or have == length
    wanted = range_length(size, offset, length)
    if have != min(wanted, MAX_SHARED):
        what = "of" if have < wanted else "bytes, more than"
        raise violation_by(first, f"{first.uri}: the server sent {have} {what} the {wanted} bytes that it has")
    return have == wanted


def violation_by(ask: PendingRequest, words: str) -> RemoteProtocolError:
    """The error for an answer that cannot be true. No further requests are sent on its connection."""
    if ask.multiplex is not None:
        ask.multiplex.retire()
    return RemoteProtocolError(words)


def fetch_remainder(pool: Pool, first: PendingRequest, offset: int, make_room: Callable[[int], memoryview]) -> Effects[FetchResult | None]:
    """All that a first part is the beginning of. None where the object has changed since."""
    size, mtime, etag = first.metadata[:3]
    if size is None or etag is None:
        return None
    start, have = offset + len(first.content), first.content
    asked = details(offset=start, length=size - start, if_match=etag)
    try:
        begun = yield from begin(pool, first.operation, first.uri, asked)
    except Conflict:
        return None
    if begun.metadata.etag not in (None, etag) or begun.length != size - start:
        abort(pool, begun)
        return None
    yield from _receive(pool, begun, make_room, have)
    return FetchResult(size - offset, etag, mtime)


def _receive(pool: Pool, begun: Download, make_room: Callable[[int], memoryview], have: bytes) -> Effects[None]:
    try:
        room = make_room(len(have) + begun.length)
        room[: len(have)] = have
        yield from fill(begun, room[len(have) :])
    except BaseException:
        abort(pool, begun)
        raise
    yield from finish(pool, begun)


class _BytesRoom:
    """Room for bytes that are received in place and never copied."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._view: memoryview | None = None

    def make(self, length: int) -> memoryview:
        try:
            # The only reference to these bytes is the file's: it lets them be written to, and gives them out as they
            # are.
            self._file = io.BytesIO(bytes(length))
        except (MemoryError, OverflowError):
            raise too_large(length) from None
        self._view = self._file.getbuffer()
        return self._view

    def take(self) -> bytes:
        if self._view is not None:
            self._view.release()
        return self._file.getvalue()


def _range(offset: int, length: int | None) -> tuple[object, ...]:
    if offset == 0 and length is None:
        return NO_DETAILS
    return details(offset=offset or None, length=length)


def _check_range(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise LocalProtocolError(f"a range has an offset and a length from 0 on, not {offset} and {length}")


def next_piece(found: Object, chunk_size: int, offset: int, end: int) -> Effects[bytes]:
    """The bytes of an object from `offset` on, at most `chunk_size` of them. Raises Conflict where they are gone."""
    if min(chunk_size, end - offset) > _QUICK:
        chunk: bytes = yield RunBlocking(lambda: piece_at(found, chunk_size, offset, end))
        return chunk
    chunk = piece_at(found, chunk_size, offset, end)
    if offset // _QUICK < (offset + len(chunk)) // _QUICK:
        # An event loop does its other work now.
        yield Wait(seconds=0)
    return chunk


def piece_at(found: Object, chunk_size: int, offset: int, end: int) -> bytes:
    """`next_piece` in this thread."""
    wanted = min(chunk_size, end - offset)
    chunk = found.pread(wanted, offset)
    if len(chunk) < wanted:
        raise truncated(found.uri, offset + len(chunk), found.size)
    return chunk
