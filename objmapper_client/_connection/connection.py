"""A connection to a server: its socket, what was read from it, and the descriptors that came along."""

import array
import socket
from collections import deque
from itertools import repeat, starmap
from typing import Any

from objmapper_client._runtime.descriptors import close_taken
from objmapper_client._runtime.effects import Wait
from objmapper_client.address import Address, UnixAddress
from objmapper_client.protocol.v1 import ReplyDecoder
from objmapper_client.protocol.v2_responses import ResponseDecoder

# The kernel passes at most 253 descriptors in a message: what was not asked for must be received to be closed.
MAX_DESCRIPTORS = 253
# As plain numbers: an operation on enumerated flags costs more than the system call that they are for.
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
    """A connected socket, what has been read from it, and the descriptors that came along. It owns all of them."""

    __slots__ = (
        "__weakref__",
        "address",
        "answered",
        "claim",
        "descriptors",
        "inbox",
        "is_begun",
        "is_closing",
        "is_reused",
        "is_sent",
        "is_unix",
        "last_id",
        "max_pipeline",
        "moved",
        "readable",
        "replies",
        "responses",
        "socket",
        "take",
        "take_now",
        "version",
        "writable",
    )

    def __init__(self, sock: Socket, address: Address) -> None:
        #: In the order of their arrival, which is that of the answers that take them.
        self.descriptors: deque[int] = deque()
        #: The message that was received last, until its descriptors have another owner.
        self.inbox: list[Any] = []
        self.socket = sock
        self.address = address
        #: The place in the pool that the connection takes, where it is one for the caller alone.
        self.claim: Any = None
        self.is_unix = isinstance(address, UnixAddress)
        #: What was agreed on: 1, or 2 with its extension.
        self.version = 1
        self.max_pipeline = 1
        self.replies = ReplyDecoder()
        self.responses = ResponseDecoder(extended=True)
        self.last_id = 0
        self.readable = Wait(sock.fileno())
        self.writable = Wait(sock.fileno(), writable=True)
        self.is_reused = False
        #: Whether a byte of a request may have been sent, whether all of it was, and whether a byte has come since.
        self.is_begun = False
        self.is_sent = False
        self.answered = False
        #: Whether the server reads no further requests.
        self.is_closing = False
        #: Bytes since the time limit last began.
        self.moved = 0
        if self.is_unix:
            # Each call receives a message into the inbox, in one step: see `descriptors`.
            keep, receive = self.inbox.append, sock.recvmsg
            self.take = map(keep, starmap(receive, repeat((CHUNK, CONTROL, CLOEXEC)))).__next__
            self.take_now = map(keep, starmap(receive, repeat((CHUNK, CONTROL, CLOEXEC | NONBLOCKING)))).__next__

    def __del__(self) -> None:
        # The constructor may not have come that far.
        if hasattr(self, "claim"):
            self.close()

    def close(self, taken: frozenset[int] = frozenset()) -> None:
        """Close the socket and every descriptor that was not taken; of those in the inbox some may be `taken`."""
        if self.descriptors or self.inbox:
            numbers = {*self.descriptors}
            for message in self.inbox:
                numbers.update(_descriptors_of(message[1]))
            left = [*(numbers - taken)]
            self.inbox.clear()
            self.descriptors.clear()
            close_taken(left)
        self.socket.close()

    @property
    def is_closed(self) -> bool:
        """Whether the socket was closed."""
        return self.socket.fileno() < 0

    @property
    def is_clean(self) -> bool:
        """Whether the last exchange left nothing behind, so that the connection can be used again."""
        return self.replies.is_empty and self.responses.is_empty and not self.descriptors and not self.is_closing

    def take_back(self) -> tuple[Any, bool]:
        """Takes the descriptors of the message in the inbox in.

        Returns what came with them, and whether descriptors were lost because this process can have no more.
        """
        came, ancillary, flags, _ = self.inbox[0]
        if ancillary:
            self.descriptors.extend(_descriptors_of(ancillary))
        self.inbox.clear()
        return came, bool(flags & TRUNCATED)


def _descriptors_of(ancillary: Ancillary) -> "array.array[int]":
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == _SOCKET and kind == _RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return numbers
