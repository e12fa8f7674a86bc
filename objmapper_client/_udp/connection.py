"""A connected, non-blocking UDP socket and the state of its network path."""

import socket
from typing import Any

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.open_socket import new_socket, resolve, unreachable_error
from objmapper_client._connection.pool import Pool
from objmapper_client._runtime.effects import Effects, Wait
from objmapper_client._udp.path_state import PathState
from objmapper_client.address import UdpAddress
from objmapper_client.errors import ConnectionFailed, DescriptorLimit
from objmapper_client.protocol.udp import DATA_HEAD_SIZE, MAX_REMOTE_CHUNK

#: Bytes of content in a piece on loopback. Large pieces cost less a byte; a lost one costs more.
_LOOPBACK_CHUNK = 32 << 10
#: Seconds to wait for the first response.
_LOOPBACK_TIMEOUT, _REMOTE_TIMEOUT = 1 / 3, 1.0
#: The requested receive buffer in bytes. The kernel limits it to net.core.rmem_max.
_KERNEL_BUFFER = 4 << 20
#: Approximate bytes of kernel memory for a datagram besides its payload.
_OVERHEAD = 1024
_MAX_DATAGRAM = 65536

#: An address of a host: address family, and socket address as in the socket module.
Target = tuple[int, Any]


class UdpConnection(Connection):
    """A connected UDP socket and its path state. It runs one exchange at a time.

    Late responses are dropped, so that the socket can always be reused.
    """

    __slots__ = ("buffer", "has_changed_address", "path", "targets")

    def __init__(self, address: UdpAddress, targets: list[Target]) -> None:
        #: The host's other addresses.
        self.targets = targets
        sock, host = _next_socket(address, targets)
        super().__init__(sock, address)
        #: Whether the socket has moved to another address, so that pending requests must be sent again.
        self.has_changed_address = False
        self.buffer = bytearray(_MAX_DATAGRAM)
        is_local = _is_loopback(host)
        chunk = _LOOPBACK_CHUNK if is_local else MAX_REMOTE_CHUNK
        buffer_size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        max_pieces = buffer_size // (2 * (chunk + DATA_HEAD_SIZE) + _OVERHEAD)
        self.path = PathState(chunk, _LOOPBACK_TIMEOUT if is_local else _REMOTE_TIMEOUT, max_pieces)

    def send(self, datagram: bytes) -> None:
        """Sends a datagram. If the send buffer is full, drops it; it is retransmitted like a lost one."""
        self.is_sent = True
        try:
            self.socket.send(datagram)
        except BlockingIOError:
            pass
        except OSError as error:
            self._try_next_address(error)

    def receive(self) -> int | None:
        """Receives a datagram into `buffer`. Returns its length, or None if there is none yet."""
        try:
            length = self.socket.recv_into(self.buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            self._try_next_address(error)
            return None
        self.has_response = True
        return length

    def _try_next_address(self, error: OSError) -> None:
        """Moves to the host's next address. Raises ConnectionFailed if there is none, or the server has responded."""
        assert isinstance(self.address, UdpAddress)
        if self.has_response:
            raise ConnectionFailed(f"{self.address}: the server is gone ({error.strerror})") from error
        if not self.targets:
            raise unreachable_error(self.address, error) from error
        self.socket.close()
        self.has_changed_address = True
        self.socket, _ = _next_socket(self.address, self.targets)
        self.readable = Wait(self.socket.fileno())


class UdpPool(Pool):
    """The UDP sockets of one process. As with version 1, none is shared and there is no negotiation."""

    fixed_version = 1

    def _pop_idle(self) -> Connection | None:
        """Removes and returns the idle socket that was used last. Its next exchange drops late datagrams."""
        return self._idle.pop() if self._idle else None


def _next_socket(address: UdpAddress, targets: list[Target]) -> tuple[socket.socket, str]:
    """Removes targets until one has a route. Returns a socket connected to it, and its host."""
    while True:
        family, target = targets.pop(0)
        try:
            return _socket_to(family, target), target[0]
        except DescriptorLimit:
            raise
        except OSError as error:
            if not targets:
                raise unreachable_error(address, error) from error


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
    """Creates a socket for this server. Only a response shows whether the server is running.

    Raises ConnectionFailed, RequestTimeout.
    """
    found = yield from resolve(address)
    return UdpConnection(address, [(family, target) for family, _, _, _, target in found])
