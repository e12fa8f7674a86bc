"""A new socket, the addresses of a host, and the errors of a server that is not reached."""

import socket
from typing import Any

from objmapper_client._runtime.effects import Effects, Wait
from objmapper_client.address import Address, TcpAddress, UdpAddress
from objmapper_client.errors import (
    ConnectionFailed,
    RequestTimeout,
    at_limit,
)


def new_socket(family: int, kind: int, number: int = 0) -> socket.socket:
    """A socket. Raises DescriptorLimit, OSError."""
    try:
        return socket.socket(family, kind, number)
    except OSError as error:
        raise at_limit(error) or error from error


def unknown_host(address: Address, error: Exception) -> ConnectionFailed:
    """The error for a host whose address cannot be found, or whose name can have none."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConnectionFailed(f"{address}: unknown host ({reason})")


def unreachable(address: Address, error: OSError) -> ConnectionFailed:
    """The error for an address at which no server answers."""
    failed = ConnectionFailed(f"{address}: server not reached ({error.strerror}); is it running?")
    # `may_start` in retry.py looks at it. TCP raises this only after the host's last address, with no `from`.
    failed.__cause__ = error
    return failed


def resolve(address: TcpAddress | UdpAddress) -> Effects[list[Any]]:
    """The addresses of a host, as getaddrinfo(3) returns them; at least one.

    Raises ConnectionFailed where it has none, RequestTimeout.
    """
    found = yield Wait(host=address.host, port=address.port)
    if found is False:
        raise RequestTimeout(f"{address}: the host's address was not found in time")
    if isinstance(found, Exception):
        raise unknown_host(address, found) from found
    if not found:
        raise ConnectionFailed(f"{address}: the host has no address")
    addresses: list[Any] = found
    return addresses
