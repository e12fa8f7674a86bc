"""Socket activation: sockets that a service manager passes to the server (LISTEN_FDS, sd_listen_fds(3))."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Final

from objmapper_server.settings.listen_address import ListenAddress

FIRST_DESCRIPTOR: Final = 3
#: The name (FileDescriptorName=) of the admin endpoint's socket. The kind of the others gives their transport.
ADMIN: Final = "admin"
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
NETWORK_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

Sockets = Mapping[str, socket.socket]
NO_SOCKETS: Final[Sockets] = MappingProxyType({})


def inherited_sockets(environment: MutableMapping[str, str]) -> Sockets:
    """Return the passed sockets: ``unix``, ``tcp``, ``udp`` or ``admin`` → socket, which the caller owns.

    Removes the variables from the environment, so that child processes do not use the sockets. Raises OSError for a
    socket that no transport can serve.
    """
    pid, count, names = (environment.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return NO_SOCKETS
    socket_names = names.split(":")
    found: dict[str, socket.socket] = {}
    with ExitStack() as stack:
        for index in range(int(count)):
            sock = stack.enter_context(_socket(FIRST_DESCRIPTOR + index, count))
            sock.set_inheritable(False)
            kind = transport_of(sock)
            if socket_names[index : index + 1] == [ADMIN]:
                if kind == "udp":
                    raise OSError(
                        f"socket activation: the admin endpoint got a datagram socket ({address_of(sock)}); "
                        "use ListenStream="
                    )
                kind = ADMIN
            if kind in found:
                raise OSError(
                    f"socket activation: {kind} got two sockets ({address_of(found[kind])}, {address_of(sock)}); "
                    "pass one"
                )
            found[kind] = sock
        stack.pop_all()
    return found


def _socket(descriptor: int, count: str) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise OSError(
            f"socket activation: descriptor {descriptor} of LISTEN_FDS={count} is not a socket ({error.strerror}); "
            "start the server by its socket unit, or without LISTEN_FDS"
        ) from None


def transport_of(sock: socket.socket) -> str:
    """Return the transport that a socket can serve; raises OSError if there is none."""
    at = f"socket activation: {address_of(sock)}"
    is_network_socket = sock.family in NETWORK_FAMILIES
    if sock.type == socket.SOCK_DGRAM:
        if not is_network_socket or sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_UDP:
            raise OSError(f"{at} is a datagram socket, but not UDP; ListenDatagram= needs an address and a port")
        return "udp"
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(f"{at} does not listen for connections; use ListenStream=")
    if sock.family == socket.AF_UNIX:
        return "unix"
    if is_network_socket:
        return "tcp"
    raise OSError(f"{at} has an unsupported address family; ListenStream= needs a path, or an address and a port")


def address_of(sock: socket.socket) -> str:
    """Return a socket's address in the form of a setting."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    if sock.family in NETWORK_FAMILIES:
        return str(ListenAddress(name[0], name[1]))
    # A family without a name in Python is a plain number.
    return f"{getattr(sock.family, 'name', sock.family)}: {name}"
