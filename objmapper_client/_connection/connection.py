"""A connection to a server: its socket, its decoders, and the descriptors received with the bytes."""

import array
import socket
from collections import deque
from itertools import repeat, starmap
from typing import Any

from objmapper_client._runtime.descriptors import close_and_clear
from objmapper_client._runtime.effects import Wait
from objmapper_client.address import Address, UnixAddress
from objmapper_client.protocol.v1 import ReplyDecoder
from objmapper_client.protocol.v2_responses import ResponseDecoder

# The kernel passes at most 253 descriptors in a message. Receive all of them, so that unexpected ones can be closed.
MAX_DESCRIPTORS = 253
# Plain integers: an operation on enum flags costs more than the system call.
CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
NONBLOCKING = int(getattr(socket, "MSG_NOSIGNAL", 0)) | int(getattr(socket, "MSG_DONTWAIT", 0))
TRUNCATED = int(getattr(socket, "MSG_CTRUNC", 0))
_SOCKET, _RIGHTS = int(socket.SOL_SOCKET), int(getattr(socket, "SCM_RIGHTS", -1))
CONTROL = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize) if hasattr(socket, "CMSG_SPACE") else 0
CHUNK = 1 << 16
Socket = socket.socket
Ancillary = list[tuple[int, int, bytes]]
NO_ANCILLARY: Ancillary = []


class Connection:
    """A connected socket, its decoders, and the received descriptors. It owns the socket and the descriptors."""

    __slots__ = (
        "__weakref__",
        "address",
        "bytes_since_reset",
        "claim",
        "descriptors",
        "has_response",
        "inbox",
        "is_closing",
        "is_request_started",
        "is_reused",
        "is_sent",
        "is_unix",
        "last_id",
        "max_pipeline",
        "readable",
        "receive_message",
        "receive_message_now",
        "replies",
        "responses",
        "socket",
        "version",
        "writable",
    )

    def __init__(self, sock: Socket, address: Address) -> None:
        #: Received descriptors, in the order of the responses that they belong to.
        self.descriptors: deque[int] = deque()
        #: The last received message, until `descriptors` owns its descriptors.
        self.inbox: list[Any] = []
        self.socket = sock
        self.address = address
        #: The pool's `Claim` of an exclusive connection.
        self.claim: Any = None
        self.is_unix = isinstance(address, UnixAddress)
        #: The negotiated version: 1, or 2 with its extension.
        self.version = 1
        self.max_pipeline = 1
        self.replies = ReplyDecoder()
        self.responses = ResponseDecoder(extended=True)
        self.last_id = 0
        self.readable = Wait(sock.fileno())
        self.writable = Wait(sock.fileno(), writable=True)
        self.is_reused = False
        #: Whether a byte of the request may have been sent, whether all of it was, and whether a byte has come since.
        self.is_request_started = False
        self.is_sent = False
        self.has_response = False
        #: Whether the server reads no more requests.
        self.is_closing = False
        #: Bytes of content since the time limit last restarted.
        self.bytes_since_reset = 0
        if self.is_unix:
            # One C call receives a message and appends it to the inbox: see `_runtime/descriptors.py`.
            keep, receive = self.inbox.append, sock.recvmsg
            self.receive_message = map(keep, starmap(receive, repeat((CHUNK, CONTROL, CLOEXEC)))).__next__
            self.receive_message_now = map(
                keep, starmap(receive, repeat((CHUNK, CONTROL, CLOEXEC | NONBLOCKING)))
            ).__next__

    def __del__(self) -> None:
        # The constructor may have raised before it set `claim`.
        if hasattr(self, "claim"):
            self.close()

    def close(self, keep: frozenset[int] = frozenset()) -> None:
        """Closes the socket and all received descriptors but those in `keep`, which have another owner."""
        if self.descriptors or self.inbox:
            numbers = {*self.descriptors}
            for message in self.inbox:
                numbers.update(_descriptors_of(message[1]))
            left = [*(numbers - keep)]
            self.inbox.clear()
            self.descriptors.clear()
            close_and_clear(left)
        self.socket.close()

    @property
    def is_closed(self) -> bool:
        """Whether the socket was closed."""
        return self.socket.fileno() < 0

    @property
    def is_clean(self) -> bool:
        """Whether no bytes and no descriptors of the last exchange are left, so that the connection can be reused."""
        return self.replies.is_empty and self.responses.is_empty and not self.descriptors and not self.is_closing

    def unpack_inbox(self) -> tuple[Any, bool]:
        """Moves the descriptors of the message in the inbox to `descriptors`.

        Returns the message's bytes, and whether the kernel dropped descriptors because this process is at its limit.
        """
        received, ancillary, flags, _ = self.inbox[0]
        if ancillary:
            self.descriptors.extend(_descriptors_of(ancillary))
        self.inbox.clear()
        return received, bool(flags & TRUNCATED)


def _descriptors_of(ancillary: Ancillary) -> "array.array[int]":
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == _SOCKET and kind == _RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return numbers
