"""The codec of the handshake of version 2: hello and acknowledgement, before the first request."""

import struct
from enum import IntFlag
from typing import NamedTuple

from objmapper_client.errors import RemoteProtocolError
from objmapper_client.protocol.v1 import ErrorReply, Status
from objmapper_client.protocol.v2_requests import _ERROR_HEAD, Fatal, pack_numbers

MAGIC = b"OBJM"


VERSION = 2


HELLO_SIZE = 9


HELLO_ACK_SIZE = 10


_HELLO = struct.Struct(">4sBHH")


_HELLO_ACK = struct.Struct(">4sBHHB")


class Capability(IntFlag):
    """Capabilities of client and server. Both use those that they have in common."""

    OUT_OF_ORDER = 0x0001
    PIPELINING = 0x0002
    EXTENDED = 0x0100


class Hello(NamedTuple):
    """The client's hello: its capabilities, and the maximum of pending requests that it wants."""

    capabilities: Capability
    max_pipeline: int


class HelloAck(NamedTuple):
    """The server's acknowledgement: the common capabilities, the agreed pending requests, and its parallelism."""

    capabilities: Capability
    max_pipeline: int
    backend_parallelism: int


def encode_hello(capabilities: Capability, max_pipeline: int) -> bytes:
    """Encodes a hello. Raises LocalProtocolError for a number that does not fit."""
    return pack_numbers(_HELLO, MAGIC, VERSION, capabilities, max_pipeline)


def encode_hello_ack(capabilities: Capability, max_pipeline: int, backend_parallelism: int) -> bytes:
    """Encodes an acknowledgement."""
    return pack_numbers(_HELLO_ACK, MAGIC, VERSION, capabilities, max_pipeline, backend_parallelism)


def decode_hello(data: bytes) -> "Hello | Fatal | None":
    """Decodes a hello from the first HELLO_SIZE bytes; None if more bytes are needed.

    The server answers a `Fatal` with an error reply of version 1.
    """
    found = _version(data)
    if found is not None and found != VERSION:
        return Fatal(Status.PROTOCOL_ERROR if found < 0 else Status.VERSION_MISMATCH)
    if len(data) < HELLO_SIZE:
        return None
    _, _, capabilities, max_pipeline = _HELLO.unpack_from(data)
    return Hello(Capability(capabilities), max_pipeline)


def decode_hello_ack(data: bytes) -> HelloAck | ErrorReply | None:
    """Decodes an acknowledgement from the first HELLO_ACK_SIZE bytes; None if more bytes are needed.

    Before its acknowledgement a server sends errors as replies of version 1; a server that speaks version 1 only sends
    PROTOCOL_ERROR. Raises RemoteProtocolError for all other bytes.
    """
    if data and data[0] != Status.OK and data[0] in Status._value2member_map_:
        if len(data) < _ERROR_HEAD.size:
            return None
        status, length = _ERROR_HEAD.unpack_from(data)
        message = data[_ERROR_HEAD.size : _ERROR_HEAD.size + length]
        return ErrorReply(status, message.decode(errors="replace")) if len(message) == length else None
    found = _version(data)
    if found is not None and found < 0:
        raise RemoteProtocolError("invalid hello acknowledgement: not an objmapper server")
    if found is not None and found != VERSION:
        raise RemoteProtocolError(f"the server answers with version {found}, the client requested {VERSION}")
    if len(data) < HELLO_ACK_SIZE:
        return None
    _, _, capabilities, max_pipeline, parallelism = _HELLO_ACK.unpack_from(data)
    return HelloAck(Capability(capabilities), max_pipeline, parallelism)


def _version(data: bytes) -> int | None:
    """The version of a hello; -1 if it is not a hello; None if more bytes are needed."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        return -1
    return data[len(MAGIC)] if len(data) > len(MAGIC) else None
