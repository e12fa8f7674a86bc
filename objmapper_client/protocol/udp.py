"""The codec of the UDP datagrams, sans-IO.

Tests check it and the engine's codec against the same vectors (tests/vectors/udp.txt)::

    PULL   'U' 01 00 cookie_len(1)  request_id(4) offset(8) length(4) chunk(2) uri_len(2) cookie uri [padding]
    RETRY  'U' 01 01 00             request_id(4) cookie(16)
    DATA   'U' 01 02 status         request_id(4) version(8) total(8) offset(8) crc32c(4) payload
    ERROR  'U' 01 03 status         request_id(4) message_len(2) message

Integers are big-endian. The checksum is CRC-32C over the URI and the datagram with a checksum field of zeros.
Therefore the client never accepts a piece of another object, which a damaged PULL may have requested.
"""

import struct
from typing import NamedTuple

from objmapper_client.protocol.crc32c import crc32c
from objmapper_client.protocol.v1 import MAX_URI, Mode, Refused, Request, Status, encode_request

_PULL, _RETRY, _DATA, _ERROR = range(4)
_MAGIC = b"U\x01"
_PULL_HEAD = struct.Struct(">2sBBIQIHH")
_RETRY_WHOLE = struct.Struct(">2sBBI16s")
_DATA_HEAD = struct.Struct(">2sBBIQQQI")
_ERROR_HEAD = struct.Struct(">2sBBIH")
_PLAIN_HEAD = struct.Struct(">BH")
_CHECKSUM = slice(32, 36)
COOKIE_SIZE = 16
#: Bytes before the content in a DATA.
DATA_HEAD_SIZE = _DATA_HEAD.size
#: Maximum pieces that the server sends for one PULL.
MAX_PIECES = 32
#: Maximum bytes of content in a piece, except on loopback.
MAX_REMOTE_CHUNK = 1152


class Pull(NamedTuple):
    """Requests a range of an object, in pieces of `chunk` bytes. `cookie` is empty if the client has none."""

    request_id: int
    offset: int
    length: int
    chunk: int
    cookie: bytes
    uri: str


class Retry(NamedTuple):
    """The server requires this cookie in further PULLs."""

    request_id: int
    cookie: bytes


class Data(NamedTuple):
    """A piece of an object. `version`: the object's version; `total`: its size in bytes."""

    request_id: int
    version: int
    total: int
    offset: int
    payload: bytes | memoryview


class Error(NamedTuple):
    """The server's error response."""

    request_id: int
    status: int
    message: str


def checksum_of_uri(uri: str) -> int:
    """Returns the initial checksum of all pieces of this object. Raises LocalProtocolError."""
    return crc32c(_encode_uri(uri))


def _encode_uri(uri: str) -> bytes:
    # Checks the URI by the rules of version 1.
    return encode_request(Mode.COPY, uri)[_PLAIN_HEAD.size :]


def encode_pull(pull: Pull) -> bytes:
    """Encodes a PULL. Raises LocalProtocolError for an invalid URI."""
    uri = _encode_uri(pull.uri)
    request_id, offset, length, chunk, cookie, _ = pull
    head = _PULL_HEAD.pack(_MAGIC, _PULL, len(cookie), request_id, offset, length, chunk, len(uri))
    return head + cookie + uri


def encode_retry(retry: Retry) -> bytes:
    """Encodes a RETRY."""
    return _RETRY_WHOLE.pack(_MAGIC, _RETRY, 0, retry.request_id, retry.cookie)


def encode_data(data: Data, uri: str) -> bytes:
    """Encodes a DATA of the object with this URI."""
    request_id, version, total, offset, payload = data
    datagram = bytearray(_DATA_HEAD.pack(_MAGIC, _DATA, Status.OK, request_id, version, total, offset, 0) + payload)
    datagram[_CHECKSUM] = crc32c(datagram, checksum_of_uri(uri)).to_bytes(4, "big")
    return bytes(datagram)


def encode_error(error: Error) -> bytes:
    """Encodes an ERROR."""
    raw = error.message.encode()[:1000]
    return _ERROR_HEAD.pack(_MAGIC, _ERROR, error.status, error.request_id, len(raw)) + raw


def decode_request(datagram: bytes) -> Pull | Request | Refused | None:
    """Decodes a datagram to a server: a PULL, a request of version 1, or an invalid one; None if it is no request."""
    if datagram[:1] in (b"1", b"2", b"3"):
        return _decode_plain(datagram)
    if len(datagram) < _PULL_HEAD.size:
        return None
    magic, kind, cookie_length, request_id, offset, length, chunk, uri_length = _PULL_HEAD.unpack_from(datagram)
    start = _PULL_HEAD.size + cookie_length
    if magic != _MAGIC or kind != _PULL or cookie_length not in (0, COOKIE_SIZE) or len(datagram) < start:
        return None
    if uri_length > MAX_URI:
        return Refused(Status.INVALID_REQUEST if chunk == 0 else Status.URI_TOO_LONG)
    raw = datagram[start : start + uri_length]
    if len(raw) < uri_length:
        return None
    uri = _decode_uri(raw)
    if uri is None or chunk == 0:
        return Refused(Status.INVALID_REQUEST)
    return Pull(request_id, offset, length, chunk, datagram[_PULL_HEAD.size : start], uri)


def _decode_plain(datagram: bytes) -> Request | Refused:
    if len(datagram) < _PLAIN_HEAD.size:
        return Refused(Status.PROTOCOL_ERROR)
    mode, length = _PLAIN_HEAD.unpack_from(datagram)
    raw = datagram[_PLAIN_HEAD.size :]
    if length > MAX_URI and len(raw) <= length:
        return Refused(Status.URI_TOO_LONG)
    if len(raw) != length:
        return Refused(Status.PROTOCOL_ERROR)
    uri = _decode_uri(raw)
    return Refused(Status.INVALID_REQUEST) if uri is None else Request(Mode(mode), uri)


def _decode_uri(raw: bytes) -> str | None:
    if not raw or 0 in raw:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def decode_reply(datagram: bytes | memoryview, seed: int) -> Retry | Data | Error | None:
    """Decodes a response about the object whose URI has the checksum `seed`; None if it is not one.

    The payload is a copy: the datagram's memory may be reused.
    """
    if len(datagram) < _ERROR_HEAD.size or datagram[:2] != _MAGIC:
        return None
    kind, status = datagram[2], datagram[3]
    if kind == _DATA and status == Status.OK and len(datagram) >= DATA_HEAD_SIZE:
        _, _, _, request_id, version, total, offset, checksum = _DATA_HEAD.unpack_from(datagram)
        covered = bytearray(datagram)
        covered[_CHECKSUM] = bytes(4)
        payload = memoryview(covered)[DATA_HEAD_SIZE:]
        if crc32c(covered, seed) != checksum or (payload and offset + len(payload) > total):
            return None
        return Data(request_id, version, total, offset, payload)
    if kind == _RETRY and status == 0 and len(datagram) == _RETRY_WHOLE.size:
        _, _, _, request_id, cookie = _RETRY_WHOLE.unpack(datagram)
        return Retry(request_id, cookie)
    if kind == _ERROR and status != Status.OK:
        _, _, _, request_id, length = _ERROR_HEAD.unpack_from(datagram)
        raw = bytes(datagram[_ERROR_HEAD.size :])
        return Error(request_id, status, raw.decode(errors="replace")) if len(raw) == length else None
    return None
