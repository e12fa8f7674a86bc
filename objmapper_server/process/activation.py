"""Sockets that a service manager has opened and hands over: LISTEN_FDS, as in sd_listen_fds(3)."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Final

from ..settings.listening import ListeningPoint

FIRST: Final = 3
#: The name (FileDescriptorName=) of the socket that is the admin endpoint's; all others are told by their kind.
ADMIN: Final = "admin"
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

Sockets = Mapping[str, socket.socket]
NO_SOCKETS: Final[Sockets] = MappingProxyType({})


def handed_over(environment: MutableMapping[str, str]) -> Sockets:
    """Return the sockets that this process was given: ``unix``, ``tcp`` or ``admin`` → socket, which is the caller's.

    Takes the variables out of the environment, so that no child believes the sockets to be its own. Raises OSError for
    a socket that no transport of this server could be.
    """
    pid, count, names = (environment.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return NO_SOCKETS
    named = names.split(":")
    found: dict[str, socket.socket] = {}
    with ExitStack() as stack:
        for place in range(int(count)):
            given = stack.enter_context(socket.socket(fileno=FIRST + place))
            given.set_inheritable(False)
            kind = ADMIN if named[place : place + 1] == [ADMIN] else kind_of(given)
            if kind in found:
                raise OSError(
                    f"two sockets were handed over for {kind}: {address_of(found[kind])}, {address_of(given)}"
                )
            found[kind] = given
        stack.pop_all()
    return found


def kind_of(given: socket.socket) -> str:
    """Return the transport that a socket can serve; raises OSError where there is none."""
    listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    if given.type == socket.SOCK_STREAM and listens and given.family == socket.AF_UNIX:
        return "unix"
    if given.type == socket.SOCK_STREAM and listens and given.family in (socket.AF_INET, socket.AF_INET6):
        return "tcp"
    raise OSError(
        f"a socket that was handed over ({address_of(given)}) does not listen for connections (ListenStream=)"
    )


def address_of(given: socket.socket) -> str:
    """Return where a socket listens, as a setting is written."""
    name = given.getsockname()
    if given.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return str(ListeningPoint(name[0], name[1])) if isinstance(name, tuple) else repr(name)
