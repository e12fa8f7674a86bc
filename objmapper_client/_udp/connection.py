"""A UDP socket that hears one server, non-blocking, and what is known of the way there."""

import socket
from typing import Any

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.sockets import new_socket, resolve, unreachable
from objmapper_client._runtime.effects import Effects, Wait
from objmapper_client._udp.path_state import PathState
from objmapper_client.address import UdpAddress
from objmapper_client.errors import ConnectionFailed, DescriptorLimit
from objmapper_client.protocol.udp import DATA_HEAD, FAR_CHUNK

#: Bytes of content in a piece on loopback. Larger ones cost less each, smaller ones lose less at once.
_NEAR_CHUNK = 32 << 10
#: Seconds that the first answer is waited for.
_NEAR_TIMEOUT, _FAR_TIMEOUT = 1 / 3, 1.0
#: What the kernel is asked to keep for us, bytes; it gives as much as net.core.rmem_max allows.
_KERNEL_BUFFER = 4 << 20
#: What a datagram costs the kernel besides its bytes, about.
_OVERHEAD = 1024
_MAX_DATAGRAM = 65536

#: Where a host may be: address family, and the address as the socket module has it.
Target = tuple[int, Any]


class UdpConnection(Connection):
    """A socket that hears one server, and what is known of the way there. For one exchange at a time.

    Answers that come late are dropped, so that it can always be used again.
    """

    __slots__ = ("buffer", "has_turned", "path", "targets")

    def __init__(self, address: UdpAddress, targets: list[Target]) -> None:
        #: Where else the host may be.
        self.targets = targets
        sock, host = _next_socket(address, targets)
        super().__init__(sock, address)
        #: Whether what was sent went to an address that is given up now.
        self.has_turned = False
        self.buffer = bytearray(_MAX_DATAGRAM)
        is_near = _is_loopback(host)
        chunk = _NEAR_CHUNK if is_near else FAR_CHUNK
        room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        most = room // (2 * (chunk + DATA_HEAD) + _OVERHEAD)
        self.path = PathState(chunk, _NEAR_TIMEOUT if is_near else _FAR_TIMEOUT, most)

    def send(self, datagram: bytes) -> None:
        """Sends it, or loses it where the kernel has no room: that is met like every other loss."""
        self.is_sent = True
        try:
            self.socket.send(datagram)
        except BlockingIOError:
            pass
        except OSError as error:
            self._try_next_address(error)

    def receive(self) -> int | None:
        """The length of the datagram that is in the buffer now; None where there is none yet."""
        try:
            length = self.socket.recv_into(self.buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            self._try_next_address(error)
            return None
        self.answered = True
        return length

    def _try_next_address(self, error: OSError) -> None:
        """A host with several addresses may be served on another. Raises ConnectionFailed where there is none."""
        assert isinstance(self.address, UdpAddress)
        if self.answered:
            raise ConnectionFailed(f"{self.address}: the server is gone ({error.strerror})") from error
        if not self.targets:
            raise unreachable(self.address, error) from error
        self.socket.close()
        self.has_turned = True
        self.socket, _ = _next_socket(self.address, self.targets)
        self.readable = Wait(self.socket.fileno())


class UdpPool(Pool):
    """The sockets of one process. None is shared, and nothing is to be agreed on: as with a server of version 1."""

    fixed_version = 1

    def _usable(self) -> Connection | None:
        """The idle socket that was used last. What lies in it was late, and is dropped."""
        return self._idle.pop() if self._idle else None


def _next_socket(address: UdpAddress, targets: list[Target]) -> tuple[socket.socket, str]:
    """A socket for the first of the targets that there is a way to, which are taken off; and that target's host."""
    while True:
        family, target = targets.pop(0)
        try:
            return _socket_to(family, target), target[0]
        except DescriptorLimit:
            raise
        except OSError as error:
            if not targets:
                raise unreachable(address, error) from error


def _socket_to(family: int, target: Any) -> socket.socket:
    sock = new_socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER)
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_loopback(host: str) -> bool:
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


def connect(address: UdpAddress) -> Effects[UdpConnection]:
    """A socket for this server; whether anybody is there only an answer tells.

    Raises ConnectionFailed, RequestTimeout.
    """
    found = yield from resolve(address)
    return UdpConnection(address, [(family, target) for family, _, _, _, target in found])
