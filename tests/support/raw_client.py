"""The wire without the SDK: raw sockets, for tests that speak to a server byte by byte."""

import array
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

FDPASS, COPY, SPLICE = b"1", b"2", b"3"
OK, NOT_FOUND, INVALID_REQUEST, INVALID_MODE, URI_TOO_LONG, FORBIDDEN = 0, 1, 2, 3, 4, 6
TIMEOUT, UNAVAILABLE, PROTOCOL_ERROR = 0x13, 0x14, 0x20


def request(mode: bytes, uri: str | bytes) -> bytes:
    """A version 1 request."""
    raw = uri.encode() if isinstance(uri, str) else uri
    return mode + struct.pack(">H", len(raw)) + raw


@dataclass
class Reply:
    """One reply: the status, and what came with it. Its owner closes the descriptor."""

    status: int
    content: bytes = b""
    descriptor: int | None = None

    def read(self) -> bytes:
        """The object, whichever way it came; a descriptor is closed."""
        assert self.status == OK, (self.status, self.content)
        if self.descriptor is None:
            return self.content
        with os.fdopen(self.descriptor, "rb") as file:
            return file.read()


class RawClient:
    """A connection on which bytes and descriptors are read exactly."""

    def __init__(self, address: str | socket.socket, timeout: float = 10.0) -> None:
        """Connects, or takes a connected socket."""
        self.kept = b""
        self.descriptors: list[int] = []
        if isinstance(address, socket.socket):
            self.socket = address
            self.socket.settimeout(timeout)
            return
        kind, _, rest = address.partition(":")
        if kind == "unix":
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            target: str | tuple[str, int] = rest
        else:
            host, _, port = rest.removeprefix("//").rpartition(":")
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            target = (host, int(port))
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(target)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def take(self, length: int) -> bytes:
        """Exactly this number of bytes; EOFError where the server closes earlier."""
        while len(self.kept) < length:
            chunk, ancillary, flags, _ = self.socket.recvmsg(
                max(1, min(length - len(self.kept), 1 << 20)), socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC
            )
            assert not flags & socket.MSG_CTRUNC
            for level, kind, data in ancillary:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                self.descriptors.extend(array.array("i", data[: len(data) - len(data) % 4]))
            if not chunk:
                raise EOFError(self.kept)
            self.kept += chunk
        taken, self.kept = self.kept[:length], self.kept[length:]
        return taken

    def reply(self, mode: bytes) -> Reply:
        """The next reply, to a request of this mode."""
        status = self.take(1)[0]
        if status != OK:
            (length,) = struct.unpack(">H", self.take(2))
            return Reply(status, self.take(length))
        if mode == FDPASS:
            assert len(self.descriptors) == 1, self.descriptors
            return Reply(OK, descriptor=self.descriptors.pop())
        (length,) = struct.unpack(">Q", self.take(8))
        return Reply(OK, self.take(length))

    def ask(self, mode: bytes, uri: str | bytes) -> Reply:
        self.send(request(mode, uri))
        return self.reply(mode)

    def at_end(self) -> bool:
        """Whether the server has closed the connection; waits for it."""
        try:
            self.take(1)
        except (EOFError, ConnectionResetError):
            return True
        return False


def descriptors_of(pid: int | str = "self") -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
