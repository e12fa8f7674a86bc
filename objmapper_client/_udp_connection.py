"""A UDP socket that hears one server, non-blocking, and what is known of the way there."""

import os
import socket
from typing import Any

from objmapper_client import _pool
from objmapper_client._path import Path
from objmapper_client._transport import Steps, Wait
from objmapper_client.address import Address, UdpAddress
from objmapper_client.datagrams import DATA_HEAD, FAR_CHUNK
from objmapper_client.errors import ConnectionFailed, RequestTimeout

#: Bytes of content in a piece on loopback. Larger ones cost less each, smaller ones lose less at once.
_NEAR_CHUNK = 32 << 10
#: Seconds that the first answer is waited for.
_NEAR_PATIENCE, _FAR_PATIENCE = 1 / 3, 1.0
#: What the kernel is asked to keep for us, bytes; it gives as much as net.core.rmem_max allows.
_KERNEL_BUFFER = 4 << 20
#: What a datagram costs the kernel besides its bytes, about.
_OVERHEAD = 1024
_LONGEST_DATAGRAM = 65536


class UdpConnection:
    """A socket that hears one server, and what is known of the way there. For one exchange at a time."""

    is_reused = False
    #: Answers that come late belong to nobody.
    is_clean = True

    def __init__(self, address: UdpAddress, targets: list[tuple[int, Any]]) -> None:
        self.address = address
        #: Whether anything has come from the server.
        self.answered = False
        #: Whether what was sent went to an address that is given up now.
        self.has_turned = False
        self.buffer = bytearray(_LONGEST_DATAGRAM)
        self._targets = targets
        target = self._turn_to_next()
        is_near = _is_loopback(target[0])
        chunk = _NEAR_CHUNK if is_near else FAR_CHUNK
        room = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        most = room // (2 * (chunk + DATA_HEAD) + _OVERHEAD)
        self.path = Path(chunk, _NEAR_PATIENCE if is_near else _FAR_PATIENCE, most)

    def _turn_to_next(self) -> Any:
        family, target = self._targets.pop(0)
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER)
            self.socket.connect(target)
        except OSError as error:
            self.socket.close()
            raise self._refused(error) from error
        except BaseException:
            self.socket.close()
            raise
        self.readable = Wait(self.socket.fileno())
        return target

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def send(self, datagram: bytes) -> None:
        """Sends it, or loses it where the kernel has no room: that is met like every other loss."""
        try:
            self.socket.send(datagram)
        except BlockingIOError:
            pass
        except OSError as error:
            self._turn_or_raise(error)

    def receive(self) -> int | None:
        """The length of the datagram that is in the buffer now; None where there is none yet."""
        try:
            length = self.socket.recv_into(self.buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            self._turn_or_raise(error)
            return None
        self.answered = True
        return length

    def _turn_or_raise(self, error: OSError) -> None:
        """A host with several addresses may be served on another. Raises ConnectionFailed where there is none."""
        if self.answered or not self._targets:
            raise self._refused(error) from error
        self.socket.close()
        self.has_turned = True
        self._turn_to_next()

    def _refused(self, error: OSError) -> ConnectionFailed:
        if self.answered:
            return ConnectionFailed(f"{self.address}: the server is gone ({error.strerror})")
        return ConnectionFailed(f"{self.address}: server not reached ({error.strerror}); is it running?")


class Pool(_pool.Pool):
    """Connections that can be used again; what lies in them was late, and harms nobody."""

    def give(self, connection: Any) -> None:
        """Takes a connection back."""
        super().give(connection)

    def take(self) -> Any:
        """The connection used last, or None where there is none; it is the caller's."""
        if self._process != os.getpid():
            self._begin_again()
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _is_loopback(host: str) -> bool:
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


def connect(address: Address) -> Steps[UdpConnection]:
    """A socket for this server; whether anybody is there only an answer tells.

    Raises ConnectionFailed, RequestTimeout.
    """
    assert isinstance(address, UdpAddress)
    found = yield Wait(host=address.host, port=address.port)
    if found is False:
        raise RequestTimeout(f"{address}: the host's address was not found in time")
    if isinstance(found, OSError):
        raise ConnectionFailed(f"{address}: unknown host ({found.strerror})") from found
    return UdpConnection(address, [(family, target) for family, _, _, _, target in found])
