"""Creates sockets, resolves hosts, and makes the errors for unreachable servers."""

import socket
from typing import Any

from objmapper_client._runtime.effects import Effects, Wait
from objmapper_client.address import Address, TcpAddress, UdpAddress
from objmapper_client.errors import (
    ConnectionFailed,
    RequestTimeout,
    descriptor_limit_error,
)


def new_socket(family: int, kind: int, number: int = 0) -> socket.socket:
    """Creates a socket. Raises DescriptorLimit, OSError."""
    try:
        return socket.socket(family, kind, number)
    except OSError as error:
        raise descriptor_limit_error(error) or error from error


def unknown_host_error(address: Address, error: Exception) -> ConnectionFailed:
    """The error for a host name that cannot be resolved."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConnectionFailed(f"{address}: unknown host ({reason})")


def unreachable_error(address: Address, error: OSError) -> ConnectionFailed:
    """The error for an address at which no server answers."""
    failed = ConnectionFailed(f"{address}: server not reached ({error.strerror}); is it running?")
    # `may_become_reachable` in retry.py reads the cause. TCP raises this after the host's last address, without `from`.
    failed.__cause__ = error
    return failed


def resolve(address: TcpAddress | UdpAddress) -> Effects[list[Any]]:
    """Resolves a host. Returns at least one address, in the form of `socket.getaddrinfo`.

    Raises ConnectionFailed if the host has no address, RequestTimeout.
    """
    found = yield Wait(host=address.host, port=address.port)
    if found is False:
        raise RequestTimeout(f"{address}: the host's address was not found in time")
    if isinstance(found, Exception):
        raise unknown_host_error(address, found) from found
    if not found:
        raise ConnectionFailed(f"{address}: the host has no address")
    addresses: list[Any] = found
    return addresses
