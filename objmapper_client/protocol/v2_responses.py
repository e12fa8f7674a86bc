"""The codec of the responses of version 2, sans-IO.

A response is ``02 id(4) status(1) content_len(8) metadata_len(2) metadata`` and its content. In plain version 2 the
server passes a descriptor with a byte ``58`` after the response. In the extended version it passes it with the first
byte of the response, and content_len is the object's size.
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
    decode_tlvs,
    encode_tlv,
    pack_numbers,
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
_STRINGS = {0x03: ("etag", "latin-1"), 0x04: ("mime", "latin-1"), 0xFF: ("message", "utf-8")}
#: Size, modification time and an etag of 16 digits, each after its type and length: the metadata that objmapper's
#: server sends. Decoded in one step.
_COMMON = struct.Struct(">3sQ3sq3s16s")
_COMMON_SIZE = _COMMON.size
#: A whole response with this metadata, without its content.
_COMMON_RESPONSE = struct.Struct(">BIBQH3sQ3sq3s16s")
_COMMON_RESPONSE_SIZE = _COMMON_RESPONSE.size
_SIZE_HEAD, _MTIME_HEAD, _ETAG_HEAD = b"\x01\x00\x08", b"\x02\x00\x08", b"\x03\x00\x10"
#: The entry after these in the response to a stat.
_NANOSECONDS = struct.Struct(">3sI")
_EXACT_SIZE = _COMMON_SIZE + _NANOSECONDS.size
_EXACT_RESPONSE_SIZE = _COMMON_RESPONSE_SIZE + _NANOSECONDS.size
_NANOSECONDS_HEAD = b"\x8b\x00\x04"
# Half as slow as calling a named tuple.
_new = tuple.__new__


class Metadata(NamedTuple):
    """The metadata of a response; None if absent."""

    size: int | None = None
    #: Seconds since 1970, negative before that.
    mtime: int | None = None
    etag: str | None = None
    mime: str | None = None
    backend: int | None = None
    #: In microseconds.
    latency: int | None = None
    #: The cursor of a list's next page.
    cursor: bytes | None = None
    #: An error message for people.
    message: str | None = None
    #: The form of a list's entries; None for the plain one.
    form: int | None = None
    #: The nanoseconds of the modification time, 0 to 999,999,999.
    nanoseconds: int | None = None


NO_METADATA = Metadata()


class ResponseHead(NamedTuple):
    """A response without its content. The status may be an unknown one."""

    id: int
    status: int
    content_len: int
    metadata: Metadata


def encode_response(request_id: int, status: int, content_len: int = 0, metadata: Metadata = NO_METADATA) -> bytes:
    """Encodes a response. The caller sends the content after it. Raises LocalProtocolError for invalid values."""
    out = bytearray()
    for kind, (name, form) in _NUMBERS.items():
        number = getattr(metadata, name)
        if number is not None:
            out += encode_tlv(kind, pack_numbers(form, number))
    for kind, (name, encoding) in _STRINGS.items():
        text = getattr(metadata, name)
        if text is not None:
            try:
                out += encode_tlv(kind, text.encode(encoding))
            except UnicodeEncodeError:
                raise LocalProtocolError(f"invalid {name} {text!r}: not {encoding}") from None
    if metadata.cursor is not None:
        out += encode_tlv(_CURSOR, metadata.cursor)
    return pack_numbers(_RESPONSE_HEAD, _RESPONSE, request_id, status, content_len, len(out)) + bytes(out)


def decode_common(data: bytes, request_id: int) -> tuple[int, Metadata, int] | None:
    """The fast path: decodes a successful response with the common metadata at the start of `data`.

    Returns the content's length, the metadata, and the length of the head in bytes. Returns None for all other
    responses (of another request, an error, other metadata): use a `ResponseDecoder` for these.
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
    etag_text = etag.decode("latin-1")
    if metadata_len == _COMMON_SIZE:
        metadata = _new(Metadata, (size, mtime, etag_text, None, None, None, None, None, None, None))
        return content_len, metadata, _COMMON_RESPONSE_SIZE
    if metadata_len != _EXACT_SIZE or len(data) < _EXACT_RESPONSE_SIZE:
        return None
    head, nanoseconds = _NANOSECONDS.unpack_from(data, _COMMON_RESPONSE_SIZE)
    if head != _NANOSECONDS_HEAD:
        return None
    metadata = _new(Metadata, (size, mtime, etag_text, None, None, None, None, None, None, nanoseconds))
    return content_len, metadata, _EXACT_RESPONSE_SIZE


class ResponseDecoder:
    """Decodes responses from a byte stream, as a client.

    `feed` bytes, then call `next`. After a head with status OK and before the next call, call `take_marker` for a
    descriptor; or get the content's bytes that were fed with `take_content`, and read the rest directly from the
    socket.
    """

    __slots__ = ("_at", "_buffer", "_extended")

    def __init__(self, *, extended: bool) -> None:
        self._extended = extended
        # Usually the bytes of one `recv` are consumed completely. Copied only if they are not.
        self._buffer: bytes | bytearray = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        buffer = self._buffer
        if self._at == len(buffer):
            self._buffer = data
        elif isinstance(buffer, bytearray):
            del buffer[: self._at]
            buffer += data
        else:
            self._buffer = bytearray(buffer[self._at :]) + data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all fed bytes have been consumed."""
        return self._at == len(self._buffer)

    def next(self, requested: Callable[[int], Operation | None]) -> ResponseHead | CloseFrame | CloseAck | None:
        """Returns the next head or close; None if the bytes end inside one.

        `requested` returns the operation of the pending request with an id, or None: for example a `dict.get`. Raises
        RemoteProtocolError.
        """
        buffer, at = self._buffer, self._at
        start = at + _HEAD_SIZE
        if len(buffer) < start or buffer[at] != _RESPONSE:
            return self._next_close(buffer, at)
        _, request_id, status, content_len, metadata_len = _RESPONSE_HEAD.unpack_from(buffer, at)
        if content_len > MAX_CONTENT:
            raise RemoteProtocolError(f"the server promised {content_len} bytes, more than any file can have")
        end = start + metadata_len
        if len(buffer) < end:
            return None
        operation = requested(request_id)
        if operation is None:
            raise RemoteProtocolError(f"the server sent a response to request {request_id}, which is not pending")
        if content_len and (status or (not self._extended and operation is Operation.FDPASS)):
            raise RemoteProtocolError(f"the server promised {content_len} bytes where none can follow")
        metadata = NO_METADATA
        if metadata_len == _COMMON_SIZE:
            size_head, size, mtime_head, mtime, etag_head, etag = _COMMON.unpack_from(buffer, start)
            if size_head == _SIZE_HEAD and mtime_head == _MTIME_HEAD and etag_head == _ETAG_HEAD:
                etag_text = etag.decode("latin-1")
                metadata = _new(Metadata, (size, mtime, etag_text, None, None, None, None, None, None, None))
            else:
                metadata = _decode_metadata(bytes(buffer[start:end]))
        elif metadata_len:
            metadata = _decode_metadata(bytes(buffer[start:end]))
        self._at = end
        return _new(ResponseHead, (request_id, status, content_len, metadata))

    def _next_close(self, buffer: bytes | bytearray, at: int) -> CloseFrame | CloseAck | None:
        """Returns a close; None if the frame is incomplete."""
        left = len(buffer) - at
        if not left or buffer[at] == _RESPONSE:
            return None
        if buffer[at] == CLOSE:
            if left < 2:
                return None
            self._at = at + 2
            return CloseFrame(buffer[at + 1])
        if buffer[at] == CLOSE_ACK:
            if left < CLOSE_ACK_FRAME.size:
                return None
            self._at = at + CLOSE_ACK_FRAME.size
            return CloseAck(CLOSE_ACK_FRAME.unpack_from(buffer, at)[2])
        raise RemoteProtocolError(f"the server sent a frame of the unknown type {buffer[at]:02x}")

    def take_marker(self) -> bool | None:
        """Consumes the byte with the descriptor after a successful FDPASS response of plain version 2.

        Returns True if it was there, None if it has not come, False in the extended version, which has none. Raises
        RemoteProtocolError.
        """
        if self._extended:
            return False
        if self._at == len(self._buffer):
            return None
        if self._buffer[self._at] != _MARKER:
            raise RemoteProtocolError(
                f"the server sent the byte {self._buffer[self._at]:02x} instead of a descriptor's"
            )
        self._at += 1
        return True

    def take_content(self, limit: int) -> bytes:
        """Returns up to `limit` fed bytes of the content."""
        taken = bytes(self._buffer[self._at : self._at + limit])
        self._at += len(taken)
        return taken


def _decode_metadata(data: bytes) -> Metadata:
    """Decodes metadata. Of two entries of a kind the later one counts. Ignores unknown ones, of later versions."""
    found: dict[str, int | str | bytes] = {}
    for tlv in decode_tlvs(data):
        if tlv is None:
            raise RemoteProtocolError("the server sent metadata that ends inside an entry")
        kind, raw = tlv
        if kind in _NUMBERS:
            name, form = _NUMBERS[kind]
            if len(raw) != form.size:
                raise RemoteProtocolError(f"the server sent a {name} of {len(raw)} bytes (expected {form.size})")
            found[name] = form.unpack(raw)[0]
        elif kind in _STRINGS:
            name, encoding = _STRINGS[kind]
            found[name] = raw.decode(encoding, errors="replace")
        elif kind == _CURSOR:
            found["cursor"] = raw
    return Metadata(**found)  # type: ignore[arg-type]  # each name has got a value of its own type


def in_nanoseconds(mtime: int, nanoseconds: int) -> int:
    """Returns a time in nanoseconds. Raises RemoteProtocolError if `nanoseconds` is a second or more."""
    if nanoseconds >= _SECOND:
        raise RemoteProtocolError(f"the server sent a time with {nanoseconds} nanoseconds, a second or more")
    return mtime * _SECOND + nanoseconds


def check_size(size: int) -> None:
    """Raises RemoteProtocolError for a size of more than 2^63 - 1 bytes."""
    if size > MAX_CONTENT:
        raise RemoteProtocolError(f"the server sent an object size of {size} bytes, more than any file can have")


class _EntryFields(NamedTuple):
    uri: str
    size: int
    #: Seconds since 1970, negative before that.
    mtime: int


class Entry(_EntryFields):
    """An object in a list: a tuple of its URI, its size in bytes, its modification time in seconds since 1970.

    As in `os.stat_result` there is also `mtime_ns`, the time in nanoseconds; None if the server does not send it.
    """

    mtime_ns: int | None = None


class LeftOut(NamedTuple):
    """A file or directory below the prefix that the server cannot list."""

    #: Its path below the server's root, with a leading slash; a directory's ends in a slash.
    path: bytes
    #: The reason, for people.
    reason: str


#: The kinds of entries in the detailed form.
_IS_LISTED = 1
_NOT_UTF8, _UNREADABLE, _LONG = 2, 3, 4


def _reason(kind: int, path: bytes) -> str | None:
    if kind == _NOT_UTF8:
        return "its name is not UTF-8, so it has no URI"
    if kind == _UNREADABLE:
        is_directory = path.endswith(b"/")
        return f"the server may not {'read this directory' if is_directory else 'search its directory'}"
    return "its URI would be longer than 4,096 bytes" if kind == _LONG else None


def encode_entry(found: Entry) -> bytes:
    """Encodes an entry of a list. Raises LocalProtocolError for invalid values."""
    raw = encode_uri(found.uri)
    return pack_numbers(_U16, len(raw)) + raw + pack_numbers(_SIZE_AND_MTIME, found.size, found.mtime)


def decode_entries(content: bytes) -> Iterator[Entry]:
    """Yields the entries of a list's content. Raises RemoteProtocolError at an invalid one."""
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
        uri = _decode_listed_uri(raw)
        size, mtime = _SIZE_AND_MTIME.unpack_from(content, uri_end)
        yield Entry(uri, size, mtime)


def decode_details(content: bytes) -> tuple[list[Entry], list[LeftOut]]:
    """Decodes a list's content in the detailed form. Returns the objects and the omitted entries.

    An entry is ``kind(1) path_len(2) path``, followed by ``size(8) mtime(8) nanoseconds(4)`` for an object. Raises
    RemoteProtocolError at an invalid one.
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
        found = Entry(_decode_listed_uri(path), size, mtime)
        found.mtime_ns = in_nanoseconds(mtime, nanoseconds)
        listed.append(found)
    return listed, left_out


def _decode_listed_uri(raw: bytes) -> str:
    if not 0 < len(raw) <= MAX_URI or 0 in raw:
        raise RemoteProtocolError(f"the server listed an invalid URI: {raw[:80]!r}")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"the server listed a URI that is not UTF-8: {raw[:80]!r}") from None
