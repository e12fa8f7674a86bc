"""The codec of version 1, sans-IO. Tests check it and the engine's codec against the same vectors.

A request is ``mode(1) uri_len(2) uri``. A reply is one status byte that carries the descriptor (mode fdpass),
``00 content_len(8) content`` (modes copy and splice), or ``status message_len(2) message``. Integers are big-endian.
"""

import struct
from enum import Enum, IntEnum
from typing import NamedTuple

from objmapper_client.errors import LocalProtocolError, RemoteProtocolError

MAX_URI = 4096
MAX_CONTENT = (1 << 63) - 1
_REQUEST_HEAD = struct.Struct(">BH")
_CONTENT_HEAD = struct.Struct(">BQ")
_ERROR_HEAD = struct.Struct(">BH")


class Mode(Enum):
    """How the server delivers an object. The value is the mode's byte on the wire."""

    FDPASS = 0x31
    COPY = 0x32
    SPLICE = 0x33

    @classmethod
    def from_name(cls, name: "str | Mode") -> "Mode":
        """Returns the mode of this name (``fdpass``, ``copy``, ``splice``). Raises LocalProtocolError."""
        if isinstance(name, Mode):
            return name
        try:
            return cls[name.upper()]
        except KeyError:
            raise LocalProtocolError(f"invalid mode {name!r}: expected fdpass, copy or splice") from None

    @classmethod
    def of(cls, name: "str | Mode") -> "Mode":
        """Return `from_name(name)`. Deprecated: use that name."""
        import warnings

        warnings.warn("Mode.of is deprecated: use Mode.from_name", DeprecationWarning, stacklevel=2)
        return cls.from_name(name)


class Status(IntEnum):
    """The first byte of every reply."""

    OK = 0x00
    NOT_FOUND = 0x01
    INVALID_REQUEST = 0x02
    INVALID_MODE = 0x03
    URI_TOO_LONG = 0x04
    UNSUPPORTED_OP = 0x05
    FORBIDDEN = 0x06
    CONFLICT = 0x07
    INTERNAL_ERROR = 0x10
    STORAGE_ERROR = 0x11
    OUT_OF_MEMORY = 0x12
    TIMEOUT = 0x13
    UNAVAILABLE = 0x14
    PROTOCOL_ERROR = 0x20
    VERSION_MISMATCH = 0x21
    CAPABILITY_ERROR = 0x22


def encode_uri(uri: str) -> bytes:
    """Encodes a URI. Raises LocalProtocolError if it is empty, too long, or has a NUL or surrogates."""
    try:
        raw = uri.encode()
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{uri!r}: a URI must be UTF-8") from None
    except AttributeError:
        raise LocalProtocolError(f"a URI must be a str, got {type(uri).__name__}: {uri!r}") from None
    if not raw or len(raw) > MAX_URI:
        raise LocalProtocolError(f"invalid URI: expected 1 to {MAX_URI} bytes (got {len(raw)})")
    if 0 in raw:
        raise LocalProtocolError(f"invalid URI {uri!r}: it contains NUL")
    return raw


def encode_request(mode: Mode, uri: str) -> bytes:
    """Encodes a request. Raises LocalProtocolError as `encode_uri`."""
    raw = encode_uri(uri)
    return _REQUEST_HEAD.pack(mode.value, len(raw)) + raw


def encode_content_head(length: int) -> bytes:
    """Encodes the head of a content of `length` bytes."""
    return _CONTENT_HEAD.pack(Status.OK, length)


def encode_error(status: int, message: str) -> bytes:
    """Encodes an error reply."""
    raw = message.encode()[:0xFFFF]
    return _ERROR_HEAD.pack(status, len(raw)) + raw


class Request(NamedTuple):
    """A request as the server decodes it."""

    mode: Mode
    uri: str


class Refused(NamedTuple):
    """An invalid frame. The server answers with `status`; if it is `fatal`, it closes the connection."""

    status: Status
    fatal: bool = False


class RequestDecoder:
    """Decodes requests from a byte stream: `feed` bytes, then call `next` until it returns None."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._bytes_to_skip = 0
        self._is_broken = False

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        self._buffer += data

    def next(self) -> Request | Refused | None:
        """Returns the next request; None if the bytes end inside one, and always after a fatal one."""
        if self._bytes_to_skip:
            return self._skip()
        if not self._buffer or self._is_broken:
            return None
        try:
            mode = Mode(self._buffer[0])
        except ValueError:
            self._is_broken = True
            return Refused(Status.PROTOCOL_ERROR, fatal=True)
        if len(self._buffer) < _REQUEST_HEAD.size:
            return None
        _, length = _REQUEST_HEAD.unpack_from(self._buffer)
        if length > MAX_URI:
            self._bytes_to_skip = _REQUEST_HEAD.size + length
            return self._skip()
        end = _REQUEST_HEAD.size + length
        if len(self._buffer) < end:
            return None
        raw = bytes(self._buffer[_REQUEST_HEAD.size : end])
        del self._buffer[:end]
        if not raw or 0 in raw:
            return Refused(Status.INVALID_REQUEST)
        try:
            return Request(mode, raw.decode())
        except UnicodeDecodeError:
            return Refused(Status.INVALID_REQUEST)

    def _skip(self) -> Refused | None:
        skipped = min(self._bytes_to_skip, len(self._buffer))
        del self._buffer[:skipped]
        self._bytes_to_skip -= skipped
        return None if self._bytes_to_skip else Refused(Status.URI_TOO_LONG)


class DescriptorReply(NamedTuple):
    """A reply that consists of the status byte, which carries the descriptor."""


class ContentReply(NamedTuple):
    """The head of a content of `length` bytes. `ReplyDecoder.take_content` returns those that were fed."""

    length: int


class ErrorReply(NamedTuple):
    """The server's error reply."""

    status: int
    message: str


class ReplyDecoder:
    """Decodes replies from a byte stream.

    `feed` bytes, then call `next` with the mode of the oldest unanswered request. After a `ContentReply`, get the
    content's bytes that were fed with `take_content`, and read the rest of the content directly from the socket.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        self._buffer += data

    @property
    def is_empty(self) -> bool:
        """Whether all fed bytes have been consumed."""
        return not self._buffer

    def next(self, requested: Mode | None) -> DescriptorReply | ContentReply | ErrorReply | None:
        """Returns the next reply; None if the bytes end inside one. Raises RemoteProtocolError."""
        if not self._buffer:
            return None
        if requested is None:
            raise RemoteProtocolError("the server sent a reply without a request")
        if self._buffer[0] != Status.OK:
            return self._error()
        if requested is Mode.FDPASS:
            del self._buffer[:1]
            return DescriptorReply()
        if len(self._buffer) < _CONTENT_HEAD.size:
            return None
        _, length = _CONTENT_HEAD.unpack_from(self._buffer)
        if length > MAX_CONTENT:
            raise RemoteProtocolError(f"the server promised a content of {length} bytes, more than any file can have")
        del self._buffer[: _CONTENT_HEAD.size]
        return ContentReply(length)

    def _error(self) -> ErrorReply | None:
        if len(self._buffer) < _ERROR_HEAD.size:
            return None
        status, length = _ERROR_HEAD.unpack_from(self._buffer)
        end = _ERROR_HEAD.size + length
        if len(self._buffer) < end:
            return None
        message = bytes(self._buffer[_ERROR_HEAD.size : end]).decode(errors="replace")
        del self._buffer[:end]
        return ErrorReply(status, message)

    def take_content(self, limit: int) -> bytes:
        """Returns up to `limit` fed bytes of the content."""
        taken = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return taken
