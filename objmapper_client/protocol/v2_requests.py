"""The codec of version 2 and its extension, sans-IO. Tests check it and the engine's codec against the same vectors.

``"OBJM" 02 capabilities(2) max_pipeline(2)`` opens a connection. A request is ``01 id(4) flags(1) mode(1) uri_len(2)
uri``, followed by ``params_len(2) params`` if flag 80 is set; parameters are entries of ``type(1) len(2) data``.
Responses are in `v2_responses`. Integers are big-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from objmapper_client.errors import LocalProtocolError
from objmapper_client.protocol.v1 import MAX_CONTENT, MAX_URI, Mode, Status, encode_uri

MAX_PARAMETERS = 8192
#: Request flags: respond after earlier requests; run before other waiting ones; parameters follow the URI.
ORDERED, PRIORITY, HAS_PARAMETERS = 0x01, 0x02, 0x80

#: The types of frames that both sides send.
CLOSE, CLOSE_ACK = 0x03, 0x04
_REQUEST = 0x01
_REQUEST_HEAD = struct.Struct(">BIBBH")
_ERROR_HEAD = struct.Struct(">BH")
CLOSE_ACK_FRAME = struct.Struct(">BBI")
_ENTRY_HEAD = struct.Struct(">BH")
_U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
I64 = struct.Struct(">q")
U8 = struct.Struct(">B")


class Operation(Enum):
    """The operations of a request. The value is the byte on the wire; the first three are the modes."""

    FDPASS = 0x31
    COPY = 0x32
    SPLICE = 0x33
    STAT = 0x73
    LIST = 0x6C
    PUT = 0x70
    PUT_DESCRIPTOR = 0x50
    DELETE = 0x64

    @classmethod
    def of(cls, mode: Mode) -> "Operation":
        """Returns the operation that delivers an object in this mode."""
        return cls(mode.value)


_MODES = {mode.value for mode in Mode}
_OPERATIONS = {operation.value for operation in Operation}


def pack_numbers(form: struct.Struct, *values: object) -> bytes:
    """Packs numbers into bytes. Raises LocalProtocolError for a number that does not fit."""
    try:
        return form.pack(*values)
    except struct.error as error:
        raise LocalProtocolError(f"number out of range: {error}") from None


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a request of the extended version; None if absent."""

    offset: int | None = None
    length: int | None = None
    #: Milliseconds from sending to the request's deadline.
    deadline_ms: int | None = None
    #: Bytes of content that follow the request; only a put has it.
    content_len: int | None = None
    if_none_match: str | None = None
    limit: int | None = None
    cursor: bytes | None = None
    if_match: str | None = None
    #: Whether a put makes missing directories.
    make_parents: bool = False
    #: The requested form of a list's entries: 1 for the detailed one.
    form: int | None = None


NO_PARAMETERS = Parameters()
_CONTENT_LEN, _CURSOR, _MAKE_PARENTS = 0x84, 0x87, 0x89
_NUMBERS = {
    0x81: ("offset", U64),
    0x82: ("length", U64),
    0x83: ("deadline_ms", U32),
    _CONTENT_LEN: ("content_len", U64),
    0x86: ("limit", U32),
    0x8A: ("form", U8),
}
_STRINGS = {0x85: "if_none_match", _CURSOR: "cursor", 0x88: "if_match"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request. The client chooses `id`; the response has the same."""

    id: int
    operation: Operation
    uri: str
    flags: int = 0
    parameters: Parameters = NO_PARAMETERS

    @property
    def is_ordered(self) -> bool:
        """Whether the server must respond to it after all earlier requests."""
        return bool(self.flags & ORDERED)

    @property
    def has_priority(self) -> bool:
        """Whether the server runs it before other waiting requests."""
        return bool(self.flags & PRIORITY)


def encode_request(
    request_id: int, operation: Operation, uri: str, *, flags: int = 0, parameters: Parameters = NO_PARAMETERS
) -> bytes:
    """Encodes a request. The caller sends the content of a put after it.

    Raises LocalProtocolError for values that the protocol cannot express.
    """
    raw = encode_uri(uri)
    if (parameters.content_len is None) == (operation is Operation.PUT):
        raise LocalProtocolError("content_len: required for a put, and for nothing else")
    # `_value_` is the plain attribute behind the property `value`, which is slow.
    mode = operation._value_
    # Compare the identity first: comparing all fields is slow, and most requests have no parameters.
    has_any = parameters is not NO_PARAMETERS and parameters != NO_PARAMETERS
    if not has_any and not flags & HAS_PARAMETERS:
        return pack_numbers(_REQUEST_HEAD, _REQUEST, request_id, flags, mode, len(raw)) + raw
    head = pack_numbers(_REQUEST_HEAD, _REQUEST, request_id, flags | HAS_PARAMETERS, mode, len(raw))
    tail = _encode_parameters(parameters)
    if len(tail) > MAX_PARAMETERS:
        raise LocalProtocolError(f"parameters: expected at most {MAX_PARAMETERS} bytes (got {len(tail)})")
    return head + raw + _U16.pack(len(tail)) + tail


def encode_with_tail(request_id: int, operation: Operation, uri: str, tail: bytes) -> bytes:
    """Encodes a request with encoded parameters: `tail` is all bytes after the URI.

    Most requests of a client have equal parameters. The id must fit 32 bits. Raises LocalProtocolError.
    """
    try:
        raw = uri.encode()
    except (UnicodeEncodeError, AttributeError):
        raw = b""
    if not 0 < len(raw) <= MAX_URI or 0 in raw:
        raw = encode_uri(uri)
    return _REQUEST_HEAD.pack(_REQUEST, request_id, HAS_PARAMETERS, operation._value_, len(raw)) + raw + tail


def _encode_parameters(parameters: Parameters) -> bytes:
    if parameters.content_len is not None and parameters.content_len > MAX_CONTENT:
        raise LocalProtocolError(f"content_len: more bytes than any file can have (got {parameters.content_len})")
    out = bytearray()
    for kind, (name, form) in _NUMBERS.items():
        number = getattr(parameters, name)
        if number is not None:
            out += encode_tlv(kind, pack_numbers(form, number))
    for kind, name in _STRINGS.items():
        text = getattr(parameters, name)
        if text is not None:
            try:
                raw = text.encode("latin-1") if isinstance(text, str) else text
            except UnicodeEncodeError:
                raise LocalProtocolError(f"invalid etag {text!r}: expected 16 hex digits") from None
            if len(raw) > MAX_PARAMETERS:
                raise LocalProtocolError(f"invalid etag: expected 16 hex digits (got {len(raw)} characters)")
            out += encode_tlv(kind, raw)
    if parameters.make_parents:
        out += encode_tlv(_MAKE_PARENTS, b"")
    return bytes(out)


def encode_tlv(kind: int, data: bytes) -> bytes:
    """Encodes an entry of parameters or metadata. Raises LocalProtocolError for more than 65,535 bytes of data."""
    return pack_numbers(_ENTRY_HEAD, kind, len(data)) + data


def decode_tlvs(data: bytes) -> Iterator[tuple[int, bytes] | None]:
    """Yields the entries of parameters or metadata; None, as the last one, for an entry that is truncated."""
    at, end = 0, len(data)
    while at < end:
        if at + _ENTRY_HEAD.size > end:
            yield None
            return
        kind, length = _ENTRY_HEAD.unpack_from(data, at)
        start = at + _ENTRY_HEAD.size
        at = start + length
        if at > end:
            yield None
            return
        yield kind, data[start:at]


class Refused(NamedTuple):
    """An invalid request. The server responds with `status` and skips the `content_len` bytes of its content."""

    id: int
    status: Status
    content_len: int = 0


class Fatal(NamedTuple):
    """Bytes that are no valid frame. The server responds with `status` and closes the connection."""

    status: Status


class CloseFrame(NamedTuple):
    """The client sends no more requests, or the server reads none: 0 normal, 1 idle timeout, 2 error, 3 shutdown."""

    reason: int


class CloseAck(NamedTuple):
    """The acknowledgement of a close, with the number of requests that have no response yet."""

    outstanding: int


def encode_close(reason: int) -> bytes:
    """Encodes a close."""
    return bytes((CLOSE, reason))


def encode_close_ack(outstanding: int) -> bytes:
    """Encodes the acknowledgement of a close."""
    return pack_numbers(CLOSE_ACK_FRAME, CLOSE_ACK, 0, outstanding)


class RequestDecoder:
    """Decodes requests from a byte stream, as a server: `feed` bytes, then call `next` until it returns None.

    Get the content of a put, and of a `Refused` request, with `take_content`.
    """

    def __init__(self, *, extended: bool) -> None:
        self._extended = extended
        self._buffer = bytearray()
        self._is_broken = False

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        self._buffer += data

    def take_content(self, limit: int) -> bytes:
        """Returns up to `limit` fed bytes of a content."""
        taken = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return taken

    def next(self) -> Request | Refused | CloseFrame | Fatal | None:
        """Returns the next frame; None if the bytes end inside one, and always after a `Fatal`."""
        if not self._buffer or self._is_broken:
            return None
        found = self._frame()
        self._is_broken = isinstance(found, Fatal)
        return found

    def _frame(self) -> Request | Refused | CloseFrame | Fatal | None:
        buffer = self._buffer
        if buffer[0] == CLOSE:
            if len(buffer) < 2:
                return None
            return CloseFrame(self.take_content(2)[1])
        if buffer[0] != _REQUEST:
            return Fatal(Status.PROTOCOL_ERROR)
        if len(buffer) < _REQUEST_HEAD.size:
            return None
        _, request_id, flags, mode, uri_len = _REQUEST_HEAD.unpack_from(buffer)
        uri_end = end = _REQUEST_HEAD.size + uri_len
        if flags & HAS_PARAMETERS:
            if not self._extended:
                return Fatal(Status.PROTOCOL_ERROR)
            if len(buffer) < uri_end + _U16.size:
                return None
            (length,) = _U16.unpack_from(buffer, uri_end)
            if length > MAX_PARAMETERS:
                return Fatal(Status.PROTOCOL_ERROR)
            end += _U16.size + length
        if len(buffer) < end:
            return None
        frame = self.take_content(end)
        raw, parameters = frame[_REQUEST_HEAD.size : uri_end], frame[uri_end + _U16.size :]
        return self._validate(request_id, flags, mode, raw, parameters)

    def _validate(
        self, request_id: int, flags: int, mode: int, raw: bytes, encoded: bytes
    ) -> Request | Refused | Fatal:
        is_known = mode in (_OPERATIONS if self._extended else _MODES)
        operation = Operation(mode) if is_known else None
        parameters, is_valid = _decode_parameters(encoded) if encoded else (NO_PARAMETERS, True)
        content_len = parameters.content_len
        if operation is Operation.PUT and not is_valid and content_len is None:
            # The length of the content is unknown, so the start of the next frame is too.
            return Fatal(Status.PROTOCOL_ERROR)
        if operation is None:
            return Refused(request_id, Status.INVALID_MODE, content_len or 0)
        if len(raw) > MAX_URI:
            return Refused(request_id, Status.URI_TOO_LONG, content_len or 0)
        has_expected_content = (operation is Operation.PUT) == (content_len is not None)
        if is_valid and has_expected_content and raw and 0 not in raw:
            try:
                return Request(request_id, operation, raw.decode(), flags, parameters)
            except UnicodeDecodeError:
                pass
        return Refused(request_id, Status.INVALID_REQUEST, content_len or 0)


def _decode_parameters(data: bytes) -> tuple[Parameters, bool]:
    """Decodes parameters. Returns also whether they are valid. An invalid content length becomes None."""
    found: dict[str, int | str | bytes | bool] = {}
    is_valid, has_invalid_content_len = True, False
    for tlv in decode_tlvs(data):
        if tlv is None:
            is_valid = False
            break
        kind, raw = tlv
        value: int | str | bytes | bool
        if kind in _NUMBERS:
            name, form = _NUMBERS[kind]
            value = number = int(form.unpack(raw)[0]) if len(raw) == form.size else -1
            is_valid_entry = number >= 0 and name not in found and (kind != _CONTENT_LEN or number <= MAX_CONTENT)
            has_invalid_content_len |= kind == _CONTENT_LEN and not is_valid_entry
        elif kind in _STRINGS:
            name = _STRINGS[kind]
            value = raw if kind == _CURSOR else raw.decode("latin-1")
            is_valid_entry = name not in found
        elif kind == _MAKE_PARENTS:
            name, value = "make_parents", True
            is_valid_entry = not raw and name not in found
        else:
            continue  # of a later version, whose clients do not require it
        found[name] = value
        is_valid &= is_valid_entry
    if has_invalid_content_len:
        del found["content_len"]
    return Parameters(**found), is_valid  # type: ignore[arg-type]  # each name has got a value of its own type
