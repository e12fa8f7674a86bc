"""A server that plays what Hypothesis draws: right answers, cut, delayed, doubled, altered, or none."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from objmapper_client.protocol import encode_error
from objmapper_client.protocol.hello import Capability, encode_hello_ack
from objmapper_client.protocol.v2_requests import Operation, Request, encode_close
from objmapper_client.protocol.v2_responses import Metadata, encode_response
from tests.support.fake_server_v2 import Peer, serve_peers

#: No two stretches of a content are alike, so that a shift shows.
CONTENTS = {
    "/small": b"".join(b"%05d " % number for number in range(50)),
    "/large": b"".join(b"%05d " % number for number in range(60_000)),
}
HEAD_SIZE = 18
LAST_ID_BYTE = 4
_ACK = encode_hello_ack(Capability(0x103), 1000, 1)


@dataclass(frozen=True)
class Reply:
    """What is made of one answer."""

    kind: str = "right"
    #: The place of a cut, or of an altered bit; taken modulo what there is.
    at: int = 0
    delay: float = 0.0


@dataclass(frozen=True)
class Script:
    """What is made of one connection. After its replies all answers are right."""

    hello: str = "right"
    replies: list[Reply] = field(default_factory=list)


HELLO_KINDS = ("right", "right", "right", "right", "hang up", "garbage", "silent", "cut", "closing", "version 1")
REPLY_KINDS = ("right", "cut", "silent", "altered", "refused", "closing", "twice", "garbage", "split", "bare")


class RandomServer:
    """One script for each connection; those behind the last script get right answers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.address = ""
        for uri, content in CONTENTS.items():
            (directory / uri[1:]).write_bytes(content)

    @contextmanager
    def playing(self, scripts: list[Script]) -> Iterator[str]:
        """Serves with these scripts until the end of the block. The address."""

        def serve(peer: Peer) -> None:
            self._serve_peer(peer, scripts[peer.number] if peer.number < len(scripts) else Script())

        with serve_peers(self._directory / "random.sock", serve, []) as address:
            yield address

    def _serve_peer(self, peer: Peer, script: Script) -> None:
        if peer.connection.recv(1, socket.MSG_PEEK)[:1] in b"123":
            self._serve_v1(peer)
        elif self._handshake(peer, script.hello):
            for reply in script.replies:
                self._answer(peer, peer.request(), reply)
            while True:
                self._answer(peer, peer.request(), Reply())

    def _handshake(self, peer: Peer, kind: str) -> bool:
        """Whether the connection goes on."""
        peer.connection.recv(9, socket.MSG_WAITALL)
        match kind:
            case "right":
                peer.send(_ACK)
                return True
            case "garbage":
                peer.send(b"\xff" * 40)
            case "silent":
                peer.wait_for_end()
            case "cut":
                peer.send(_ACK[:5])
            case "closing":
                peer.send(_ACK + encode_close(3))
            case "version 1":
                peer.send(encode_error(0x20, "what came is no request"))
        return False

    def _serve_v1(self, peer: Peer) -> None:
        while True:
            head = peer.connection.recv(3, socket.MSG_WAITALL)
            if len(head) < 3:
                return
            uri = peer.connection.recv(int.from_bytes(head[1:]), socket.MSG_WAITALL).decode()
            if head[:1] == b"1":
                self._send(peer, b"\0", uri, 1)
            else:
                content = CONTENTS[uri]
                peer.send(b"\0" + len(content).to_bytes(8) + content)

    def _send(self, peer: Peer, data: bytes, uri: str, count: int) -> None:
        """Sends the bytes, with `count` descriptors of the object."""
        descriptors = [os.open(self._directory / uri[1:], os.O_RDONLY) for _ in range(count)]
        try:
            sent = socket.send_fds(peer.connection, [data], descriptors) if count else 0
            peer.send(data[sent:])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _correct_reply(self, request: Request) -> tuple[bytes, int]:
        """The bytes of a right answer, and how many descriptors come with it."""
        object_content = CONTENTS.get(request.uri, b"")
        metadata = Metadata(size=len(object_content), mtime=7, etag="00000000000000ee")
        if request.operation is Operation.FDPASS:
            return encode_response(request.id, 0, len(object_content), metadata), 1
        content = b""
        if request.operation in (Operation.COPY, Operation.SPLICE):
            start = request.parameters.offset or 0
            length = len(object_content) if request.parameters.length is None else request.parameters.length
            content = object_content[start : start + length]
        return encode_response(request.id, 0, len(content), metadata) + content, 0

    def _answer(self, peer: Peer, request: Request, reply: Reply) -> None:
        peer.content(request)
        data, count = self._correct_reply(request)
        uri = request.uri if count else "/small"
        if reply.delay:
            time.sleep(reply.delay)
        match reply.kind:
            case "right":
                self._send(peer, data, uri, count)
            case "cut":
                self._send(peer, data[: 1 + reply.at % len(data)], uri, count)
                raise EOFError
            case "silent":
                pass
            case "altered":
                bit = reply.at % (HEAD_SIZE * 8)
                if bit // 8 == LAST_ID_BYTE:
                    # It may be another request's then, and no client can tell.
                    bit += 8
                altered = bytearray(data)
                altered[bit // 8] ^= 1 << bit % 8
                self._send(peer, bytes(altered), uri, count)
            case "refused":
                status = (0x01, 0x06, 0x11, 0x13, 0x14, 0x20, 0x99)[reply.at % 7]
                peer.send(encode_response(request.id, status, 0, Metadata(message="because")))
            case "closing":
                peer.send(encode_close(3))
                self._send(peer, data, uri, count)
                raise EOFError
            case "twice":
                self._send(peer, data, uri, count)
                self._send(peer, data, uri, count)
            case "garbage":
                peer.send(bytes((reply.at + number * 37) % 256 for number in range(100)))
            case "split":
                at = 1 + reply.at % len(data)
                self._send(peer, data[:at], uri, count)
                time.sleep(0.01)
                with contextlib.suppress(OSError):
                    peer.send(data[at:])
            case "bare":
                peer.send(data)
