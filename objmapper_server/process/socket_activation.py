"""Socket activation: sockets that a service manager passes to the server (LISTEN_FDS, sd_listen_fds(3))."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Final

from objmapper_server.settings.listen_address import ListeningPoint

FIRST: Final = 3
#: The name (FileDescriptorName=) of the admin endpoint's socket. The kind of the others gives their transport.
ADMIN: Final = "admin"
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
NETWORK: Final = (socket.AF_INET, socket.AF_INET6)

Sockets = Mapping[str, socket.socket]
NO_SOCKETS: Final[Sockets] = MappingProxyType({})


def handed_over(environment: MutableMapping[str, str]) -> Sockets:
    """Return the passed sockets: ``unix``, ``tcp``, ``udp`` or ``admin`` → socket, which the caller owns.

    Removes the variables from the environment, so that child processes do not use the sockets. Raises OSError for a
    socket that no transport can serve.
    """
    pid, count, names = (environment.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return NO_SOCKETS
    named = names.split(":")
    found: dict[str, socket.socket] = {}
    with ExitStack() as stack:
        for place in range(int(count)):
            given = stack.enter_context(_socket(FIRST + place, count))
            given.set_inheritable(False)
            kind = kind_of(given)
            if named[place : place + 1] == [ADMIN]:
                if kind == "udp":
                    raise OSError(
                        f"a datagram socket was handed over for the admin endpoint ({address_of(given)}): it needs "
                        "ListenStream="
                    )
                kind = ADMIN
            if kind in found:
                raise OSError(
                    f"two sockets were handed over for {kind}: {address_of(found[kind])}, {address_of(given)}"
                )
            found[kind] = given
        stack.pop_all()
    return found


def _socket(descriptor: int, count: str) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise OSError(
            f"LISTEN_FDS={count}: descriptor {descriptor} is no socket ({error.strerror}); start the server by its "
            "socket unit, or without LISTEN_FDS"
        ) from None


def kind_of(given: socket.socket) -> str:
    """Return the transport that a socket can serve; raises OSError if there is none."""
    at = f"a socket that was handed over ({address_of(given)})"
    on_the_network = given.family in NETWORK
    if given.type == socket.SOCK_DGRAM:
        if not on_the_network or given.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_UDP:
            raise OSError(f"{at} takes datagrams, but not over UDP: ListenDatagram= needs an address and a port")
        return "udp"
    if given.type != socket.SOCK_STREAM or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(f"{at} does not listen for connections (ListenStream=)")
    if given.family == socket.AF_UNIX:
        return "unix"
    if on_the_network:
        return "tcp"
    raise OSError(f"{at} is of a family that is not served: ListenStream= needs a path, or an address and a port")


def address_of(given: socket.socket) -> str:
    """Return a socket's address in the form of a setting."""
    name = given.getsockname()
    if given.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    if given.family in NETWORK:
        return str(ListeningPoint(name[0], name[1]))
    # A family without a name in Python is a plain number.
    return f"{getattr(given.family, 'name', given.family)}: {name}"
