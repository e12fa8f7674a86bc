"""The responses of version 2, sans-IO: what a server says of an object, and how a client takes it apart.

A response is ``02 id(4) status(1) content_len(8) metadata_len(2) metadata`` and its content. In plain version 2 a
descriptor comes with a byte ``58`` behind the response; in the extended version it rides on the response's first byte,
and content_len is then the object's size.
"""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from objmapper_client.errors import LocalProtocolError, RemoteProtocolError
from objmapper_client.protocol.v1 import MAX_CONTENT, MAX_URI, encode_uri
from objmapper_client.protocol.v2_requests import (
    CLOSE,
    CLOSE_ACK,
    CLOSE_ACK_FRAME,
    I64,
    U8,
    U32,
    U64,
    CloseAck,
    CloseFrame,
    Operation,
    entries,
    entry,
    packed,
)

_RESPONSE, _MARKER = 0x02, 0x58
_RESPONSE_HEAD = struct.Struct(">BIBQH")
_HEAD_SIZE = _RESPONSE_HEAD.size
_U16 = struct.Struct(">H")
_SIZE_AND_MTIME = struct.Struct(">Qq")
_DETAILS = struct.Struct(">QqI")
_CURSOR = 0x87
_ENTRY_HEAD = struct.Struct(">BH")
_SECOND = 1_000_000_000
_NUMBERS = {
    0x01: ("size", U64),
    0x02: ("mtime", I64),
    0x05: ("backend", U8),
    0x06: ("latency", U32),
    0x8A: ("form", U8),
    0x8B: ("nanoseconds", U32),
}
_WORDS = {0x03: ("etag", "latin-1"), 0x04: ("mime", "latin-1"), 0xFF: ("message", "utf-8")}
#: Size, modification time and an etag of 16 digits, each behind its type and length: what this project's server says of
#: an object. Taken apart at once.
_COMMON = struct.Struct(">3sQ3sq3s16s")
_COMMON_SIZE = _COMMON.size
#: A whole response of that kind, but for its content.
_COMMON_RESPONSE = struct.Struct(">BIBQH3sQ3sq3s16s")
_COMMON_RESPONSE_SIZE = _COMMON_RESPONSE.size
_SIZE_HEAD, _MTIME_HEAD, _ETAG_HEAD = b"\x01\x00\x08", b"\x02\x00\x08", b"\x03\x00\x10"
#: What stands behind that in the answer to a stat.
_NANOSECONDS = struct.Struct(">3sI")
_EXACT_SIZE = _COMMON_SIZE + _NANOSECONDS.size
_EXACT_RESPONSE_SIZE = _COMMON_RESPONSE_SIZE + _NANOSECONDS.size
_NANOSECONDS_HEAD = b"\x8b\x00\x04"
# Half of what calling a named tuple costs.
_new = tuple.__new__


class Metadata(NamedTuple):
    """What a response says beside status and content; None where it does not."""

    size: int | None = None
    #: Seconds since 1970, negative before that.
    mtime: int | None = None
    etag: str | None = None
    mime: str | None = None
    backend: int | None = None
    #: Microseconds.
    latency: int | None = None
    #: Where a list goes on.
    cursor: bytes | None = None
    #: What went wrong, for people.
    message: str | None = None
    #: The form of a list's entries; None for the plain one.
    form: int | None = None
    #: Beyond the seconds of the modification time.
    nanoseconds: int | None = None


NO_METADATA = Metadata()


class ResponseHead(NamedTuple):
    """A response without its content. The status is as it came."""

    id: int
    status: int
    content_len: int
    metadata: Metadata


def encode_response(request_id: int, status: int, content_len: int = 0, metadata: Metadata = NO_METADATA) -> bytes:
    """A response; its content is the caller's to send. Raises LocalProtocolError for what the wire cannot carry."""
    out = bytearray()
    for kind, (name, form) in _NUMBERS.items():
        number = getattr(metadata, name)
        if number is not None:
            out += entry(kind, packed(form, number))
    for kind, (name, encoding) in _WORDS.items():
        word = getattr(metadata, name)
        if word is not None:
            try:
                out += entry(kind, word.encode(encoding))
            except UnicodeEncodeError:
                raise LocalProtocolError(f"{word!r} is no {name} that the wire can carry") from None
    if metadata.cursor is not None:
        out += entry(_CURSOR, metadata.cursor)
    return packed(_RESPONSE_HEAD, _RESPONSE, request_id, status, content_len, len(out)) + bytes(out)


def decode_common(data: bytes, request_id: int) -> tuple[int, Metadata, int] | None:
    """Content length, metadata, and own length of the response, where `data` begins with one as our servers send it.

    None for anything else: another request's response, an error, other metadata. They are a `ResponseDecoder`'s to
    judge.
    """
    if len(data) < _COMMON_RESPONSE_SIZE:
        return None
    kind, number, status, content_len, metadata_len, size_head, size, mtime_head, mtime, etag_head, etag = (
        _COMMON_RESPONSE.unpack_from(data)
    )
    if number != request_id or status or kind != _RESPONSE or content_len > MAX_CONTENT:
        return None
    if size_head != _SIZE_HEAD or mtime_head != _MTIME_HEAD or etag_head != _ETAG_HEAD:
        return None
    words = etag.decode("latin-1")
    if metadata_len == _COMMON_SIZE:
        metadata = _new(Metadata, (size, mtime, words, None, None, None, None, None, None, None))
        return content_len, metadata, _COMMON_RESPONSE_SIZE
    if metadata_len != _EXACT_SIZE or len(data) < _EXACT_RESPONSE_SIZE:
        return None
    head, nanoseconds = _NANOSECONDS.unpack_from(data, _COMMON_RESPONSE_SIZE)
    if head != _NANOSECONDS_HEAD:
        return None
    metadata = _new(Metadata, (size, mtime, words, None, None, None, None, None, None, nanoseconds))
    return content_len, metadata, _EXACT_RESPONSE_SIZE


class ResponseDecoder:
    """Takes responses off a byte stream, as a client does; the bytes of contents pass by it.

    `feed` bytes, then call `next`. What follows a head of status OK is the caller's to take before the next call: where
    a descriptor was asked for, with `take_marker`; else the content with `take_content`, and what the decoder has not
    got of it from the socket, straight to where it belongs.
    """

    __slots__ = ("_at", "_extended", "_kept")

    def __init__(self, *, extended: bool) -> None:
        self._extended = extended
        # What one `recv` brought is usually taken to its end: it is copied only where it is not.
        self._kept: bytes | bytearray = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        kept = self._kept
        if self._at == len(kept):
            self._kept = data
        elif isinstance(kept, bytearray):
            del kept[: self._at]
            kept += data
        else:
            self._kept = bytearray(kept[self._at :]) + data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all that was fed has been taken."""
        return self._at == len(self._kept)

    def next(self, requested: Callable[[int], Operation | None]) -> ResponseHead | CloseFrame | CloseAck | None:
        """The next head or close, or None where the bytes end inside one.

        `asked` tells what the request of an id wanted, None where there is none: `dict.get` will do. Raises
        RemoteProtocolError.
        """
        kept, at = self._kept, self._at
        start = at + _HEAD_SIZE
        if len(kept) < start or kept[at] != _RESPONSE:
            return self._short(kept, at)
        _, request_id, status, content_len, metadata_len = _RESPONSE_HEAD.unpack_from(kept, at)
        if content_len > MAX_CONTENT:
            raise RemoteProtocolError(f"the server promised {content_len} bytes, more than any file can have")
        end = start + metadata_len
        if len(kept) < end:
            return None
        operation = requested(request_id)
        if operation is None:
            raise RemoteProtocolError(f"the server sent a response to request {request_id}, which is not under way")
        if content_len and (status or (not self._extended and operation is Operation.FDPASS)):
            raise RemoteProtocolError(f"the server promised {content_len} bytes where none can follow")
        metadata = NO_METADATA
        if metadata_len == _COMMON_SIZE:
            size_head, size, mtime_head, mtime, etag_head, etag = _COMMON.unpack_from(kept, start)
            if size_head == _SIZE_HEAD and mtime_head == _MTIME_HEAD and etag_head == _ETAG_HEAD:
                words = etag.decode("latin-1")
                metadata = _new(Metadata, (size, mtime, words, None, None, None, None, None, None, None))
            else:
                metadata = _decode_metadata(bytes(kept[start:end]))
        elif metadata_len:
            metadata = _decode_metadata(bytes(kept[start:end]))
        self._at = end
        return _new(ResponseHead, (request_id, status, content_len, metadata))

    def _short(self, kept: bytes | bytearray, at: int) -> CloseFrame | CloseAck | None:
        """A close, or the beginning of a frame."""
        left = len(kept) - at
        if not left or kept[at] == _RESPONSE:
            return None
        if kept[at] == CLOSE:
            if left < 2:
                return None
            self._at = at + 2
            return CloseFrame(kept[at + 1])
        if kept[at] == CLOSE_ACK:
            if left < CLOSE_ACK_FRAME.size:
                return None
            self._at = at + CLOSE_ACK_FRAME.size
            return CloseAck(CLOSE_ACK_FRAME.unpack_from(kept, at)[2])
        raise RemoteProtocolError(f"the server sent a frame of the unknown type {kept[at]:02x}")

    def take_marker(self) -> bool | None:
        """Takes the byte off that carries a descriptor, behind a successful response to a request for one.

        True where it was there, None where it is still to come, False in the extended version, which has none. Raises
        RemoteProtocolError.
        """
        if self._extended:
            return False
        if self._at == len(self._kept):
            return None
        if self._kept[self._at] != _MARKER:
            raise RemoteProtocolError(f"the server sent {self._kept[self._at]:02x} where a descriptor's byte belongs")
        self._at += 1
        return True

    def take_content(self, most: int) -> bytes:
        """Up to `most` bytes of the content, of those that were fed."""
        taken = bytes(self._kept[self._at : self._at + most])
        self._at += len(taken)
        return taken


def _decode_metadata(data: bytes) -> Metadata:
    """Of two entries of a kind the later counts, and unknown ones do not: they are of a later version."""
    found: dict[str, int | str | bytes] = {}
    for each in entries(data):
        if each is None:
            raise RemoteProtocolError("the server sent metadata that do not fit their length")
        kind, raw = each
        if kind in _NUMBERS:
            name, form = _NUMBERS[kind]
            if len(raw) != form.size:
                raise RemoteProtocolError(f"the server sent a {name} of {len(raw)} bytes: it has {form.size}")
            found[name] = form.unpack(raw)[0]
        elif kind in _WORDS:
            name, encoding = _WORDS[kind]
            found[name] = raw.decode(encoding, errors="replace")
        elif kind == _CURSOR:
            found["cursor"] = raw
    return Metadata(**found)  # type: ignore[arg-type]  # each name has got a value of its own type


def in_nanoseconds(mtime: int, nanoseconds: int) -> int:
    """A time as one number. Raises RemoteProtocolError where the part beyond the seconds is a second or more."""
    if nanoseconds >= _SECOND:
        raise RemoteProtocolError(f"the server sent a time with {nanoseconds} nanoseconds")
    return mtime * _SECOND + nanoseconds


def check_size(size: int) -> None:
    """Raises RemoteProtocolError for a size that no file can have."""
    if size > MAX_CONTENT:
        raise RemoteProtocolError(f"the server told of an object of {size} bytes, more than any file can have")


class _Listed(NamedTuple):
    uri: str
    size: int
    #: Seconds since 1970, negative before that.
    mtime: int


class Entry(_Listed):
    """An object in a list: a tuple of its URI, its size in bytes, its modification time in seconds since 1970.

    Beside them, as in `os.stat_result`: `mtime_ns`, the same in nanoseconds, None where the server does not say it.
    """

    mtime_ns: int | None = None


class LeftOut(NamedTuple):
    """A file or directory that a list leaves out although it is below the prefix."""

    #: Its path below the root with a slash in front, as the server's file system has it; a directory ends in a slash.
    path: bytes
    #: Why, for people.
    reason: str


#: What an entry of the detailed form is about.
_IS_LISTED = 1
_NOT_UTF8, _UNREADABLE, _LONG = 2, 3, 4


def _reason(kind: int, path: bytes) -> str | None:
    if kind == _NOT_UTF8:
        return "its name is not UTF-8, so it has no URI"
    if kind == _UNREADABLE:
        is_directory = path.endswith(b"/")
        return f"the server may not {'read this directory' if is_directory else 'look at it: its directory is closed'}"
    return "its URI would be longer than 4,096 bytes" if kind == _LONG else None


def encode_entry(found: Entry) -> bytes:
    """An entry of a list's content. Raises LocalProtocolError for what the wire cannot carry."""
    raw = encode_uri(found.uri)
    return packed(_U16, len(raw)) + raw + packed(_SIZE_AND_MTIME, found.size, found.mtime)


def decode_entries(content: bytes) -> Iterator[Entry]:
    """The entries of a list's whole content. Raises RemoteProtocolError at the one that is wrong."""
    at, end = 0, len(content)
    while at < end:
        if at + _U16.size > end:
            raise RemoteProtocolError("the server sent a list that ends inside an entry")
        (length,) = _U16.unpack_from(content, at)
        start = at + _U16.size
        uri_end = start + length
        at = uri_end + _SIZE_AND_MTIME.size
        if at > end:
            raise RemoteProtocolError("the server sent a list that ends inside an entry")
        raw = content[start:uri_end]
        uri = _listed_uri(raw)
        size, mtime = _SIZE_AND_MTIME.unpack_from(content, uri_end)
        yield Entry(uri, size, mtime)


def decode_details(content: bytes) -> tuple[list[Entry], list[LeftOut]]:
    """What a list's whole content of the detailed form lists and leaves out.

    Each entry is ``kind(1) path_len(2) path``, behind it ``size(8) mtime(8) nanoseconds(4)`` where it is an object.
    Raises RemoteProtocolError at the one that is wrong.
    """
    listed: list[Entry] = []
    left_out: list[LeftOut] = []
    at, end = 0, len(content)
    while at < end:
        start = at + _ENTRY_HEAD.size
        if start > end:
            raise RemoteProtocolError("the server sent a list that ends inside an entry")
        kind, length = _ENTRY_HEAD.unpack_from(content, at)
        at = start + length
        path = content[start:at]
        if at > end or (kind == _IS_LISTED and at + _DETAILS.size > end):
            raise RemoteProtocolError("the server sent a list that ends inside an entry")
        if kind != _IS_LISTED:
            reason = _reason(kind, path)
            if reason is None or not path:
                raise RemoteProtocolError(f"the server sent a list with an entry of the unknown kind {kind}")
            left_out.append(LeftOut(path, reason))
            continue
        size, mtime, nanoseconds = _DETAILS.unpack_from(content, at)
        at += _DETAILS.size
        found = Entry(_listed_uri(path), size, mtime)
        found.mtime_ns = in_nanoseconds(mtime, nanoseconds)
        listed.append(found)
    return listed, left_out


def _listed_uri(raw: bytes) -> str:
    if not 0 < len(raw) <= MAX_URI or 0 in raw:
        raise RemoteProtocolError(f"the server listed what no object can be called: {raw[:80]!r}")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"the server listed a URI that is not UTF-8: {raw[:80]!r}") from None
