"""A client of version 2 for tests: the SDK's codec on a raw socket, with checks of the passed descriptors."""

import array
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Self

from objmapper_client.protocol.hello import HELLO_ACK_SIZE, Capability, HelloAck, decode_hello_ack, encode_hello
from objmapper_client.protocol.v2_requests import CloseAck, CloseFrame, Operation, Parameters, encode_request
from objmapper_client.protocol.v2_responses import Entry, Metadata, ResponseDecoder, decode_entries
from tests.support.raw_client import OK, UNAVAILABLE, RawClient

PLAIN = Capability.OUT_OF_ORDER | Capability.PIPELINING
EXTENDED = PLAIN | Capability.EXTENDED
FDPASS, COPY, SPLICE = Operation.FDPASS, Operation.COPY, Operation.SPLICE
STAT, LIST, PUT, PUT_DESCRIPTOR, DELETE = (
    Operation.STAT,
    Operation.LIST,
    Operation.PUT,
    Operation.PUT_DESCRIPTOR,
    Operation.DELETE,
)
CONFLICT, STORAGE_ERROR, VERSION_MISMATCH, CAPABILITY_ERROR = 0x07, 0x11, 0x21, 0x22


def hello(capabilities: int = EXTENDED, max_pipeline: int = 1000) -> bytes:
    return encode_hello(Capability(capabilities), max_pipeline)


def frame(number: int, mode: bytes, uri: bytes, flags: int = 0, parameters: bytes | None = None) -> bytes:
    """A request as raw bytes, whatever is wrong with it."""
    has_parameters = 0x80 if parameters is not None else 0
    head = struct.pack(">BIB", 1, number, flags | has_parameters) + mode + struct.pack(">H", len(uri)) + uri
    return head + (struct.pack(">H", len(parameters)) + parameters if parameters is not None else b"")


def parameter(kind: int, data: bytes) -> bytes:
    return struct.pack(">BH", kind, len(data)) + data


@dataclass
class Answer:
    """A response, and what came with it. Its owner closes the descriptor."""

    id: int
    status: int
    content_len: int
    metadata: Metadata
    content: bytes = b""
    descriptor: int | None = None

    def read(self) -> bytes:
        """The object, whichever way it came; a descriptor is closed."""
        assert self.status == OK, (hex(self.status), self.metadata.message)
        if self.descriptor is None:
            return self.content
        with os.fdopen(self.descriptor, "rb") as file:
            return file.read()

    def fails(self, status: int) -> bool:
        """Whether it is this error, with a word about it and nothing else."""
        assert self.status == status, (hex(self.status), self.metadata.message)
        assert self.metadata.message
        return self.content_len == 0 and self.descriptor is None

    def entries(self) -> list[Entry]:
        assert self.status == OK, (hex(self.status), self.metadata.message)
        return list(decode_entries(self.content))


class RawClientV2(RawClient):
    """A connection that has greeted."""

    def __init__(
        self,
        address: str | socket.socket,
        capabilities: int = EXTENDED,
        max_pipeline: int = 1000,
        timeout: float = 20.0,
    ) -> None:
        super().__init__(address, timeout)
        try:
            self.send(hello(capabilities, max_pipeline))
            self.read_hello_ack()
        except BaseException:
            self.close()
            raise

    def read_hello_ack(self) -> None:
        """Takes the server's answer to a hello in."""
        ack = decode_hello_ack(self.take(HELLO_ACK_SIZE))
        assert isinstance(ack, HelloAck), ack
        self.ack = ack
        self.is_extended = Capability.EXTENDED in ack.capabilities
        self.decoder = ResponseDecoder(extended=self.is_extended)
        self.pending: dict[int, Operation] = {}
        self.arrived: deque[int] = deque()
        self.next_id = 1
        #: How many descriptors each message brought that brought any.
        self.batches: list[int] = []

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        self.descriptors.extend(getattr(self, "arrived", ()))
        super().close()

    def encode(self, operation: Operation, uri: str, flags: int = 0, **parameters: Any) -> bytes:
        """A request with the next id, whose answer is expected from now on."""
        number = self.next_id
        self.next_id += 1
        self.pending[number] = operation
        return encode_request(number, operation, uri, flags=flags, parameters=Parameters(**parameters))

    def expect(self, number: int, operation: Operation = COPY) -> None:
        """An answer to what was sent by hand."""
        self.pending[number] = operation

    def ask(  # type: ignore[override]  # a request of version 2 is not answered in turn
        self, operation: Operation, uri: str, flags: int = 0, **parameters: Any
    ) -> int:
        """Sends a request. Returns its id."""
        self.send(self.encode(operation, uri, flags, **parameters))
        return self.next_id - 1

    def call(self, operation: Operation, uri: str, **parameters: Any) -> Answer:
        """Sends a request and waits for its answer, which must be the next."""
        number = self.ask(operation, uri, **parameters)
        answer = self.answer()
        assert answer.id == number
        return answer

    def call_until_served(self, operation: Operation, uri: str, **parameters: Any) -> Answer:
        """As `call`, again where the server's queue is full: a pool that is short of time refuses requests."""
        while (answer := self.call(operation, uri, **parameters)).status == UNAVAILABLE:
            assert answer.fails(UNAVAILABLE)
        return answer

    def put(self, uri: str, content: bytes, **parameters: Any) -> Answer:
        """Puts the content and waits for the answer."""
        self.send(self.encode(PUT, uri, content_len=len(content), **parameters), content)
        return self.answer()

    def put_descriptor(self, uri: str, descriptor: int, **parameters: Any) -> Answer:
        """Puts what the descriptor reads and waits for the answer. The descriptor stays the caller's."""
        socket.send_fds(self.socket, [self.encode(PUT_DESCRIPTOR, uri, **parameters)], [descriptor])
        return self.answer()

    def receive(self, most: int = 1 << 18) -> bytes:
        """What one recvmsg brings; EOFError where the server has closed."""
        room = socket.CMSG_SPACE(253 * 4)
        chunk, ancillary, flags, _ = self.socket.recvmsg(most, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            came = array.array("i", data[: len(data) - len(data) % 4])
            self.arrived.extend(came)
            self.batches.append(len(came))
        assert not flags & socket.MSG_CTRUNC
        if not chunk:
            raise EOFError(f"closed with {len(self.pending)} requests unanswered")
        return chunk

    def next(self) -> Answer | CloseFrame | CloseAck:
        """The next frame of the server."""
        while (head := self.decoder.next(self.pending.get)) is None:
            self.decoder.feed(self.receive())
        if isinstance(head, CloseFrame | CloseAck):
            return head
        operation = self.pending.pop(head.id)
        answer = Answer(*head)
        if head.status != OK:
            return answer
        if operation is FDPASS:
            while self.decoder.take_marker() is None:
                self.decoder.feed(self.receive())
            answer.descriptor = self.arrived.popleft()
        else:
            answer.content = self.decoder.take_content(head.content_len)
            left = head.content_len - len(answer.content)
            if left:
                pieces = [answer.content]
                while left:
                    pieces.append(self.receive(min(left, 1 << 20)))
                    left -= len(pieces[-1])
                answer.content = b"".join(pieces)
        return answer

    def answer(self) -> Answer:
        """The next response."""
        found = self.next()
        assert isinstance(found, Answer), found
        return found

    def answers(self, count: int) -> dict[int, Answer]:
        """The next responses, by id, in the order in which they arrive."""
        return {answer.id: answer for answer in (self.answer() for _ in range(count))}

    def is_closed(self) -> bool:
        """Whether the server has closed the connection and sent nothing more; waits for it."""
        try:
            self.decoder.feed(self.receive())
        except (EOFError, ConnectionResetError):
            return self.decoder.is_empty
        return False
