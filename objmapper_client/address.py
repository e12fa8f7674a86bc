"""Server addresses: ``unix:/path``, ``tcp://host:port``, ``udp://host:port``, and this user's default."""

import os
import stat
from collections.abc import Mapping

from objmapper_client.errors import AddressError

DEFAULT_TCP_PORT = 9999
DEFAULT_UDP_PORT = 9998
SOCKET_NAME = "objmapper.sock"


class _Value:
    """A value object: equal to another one of its class with equal attributes.

    Without `dataclasses`, whose import would add 10 ms to the start of every client.
    """

    __slots__: tuple[str, ...] = ()

    def _field_values(self) -> tuple[str | int, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other._field_values() == self._field_values()

    def __hash__(self) -> int:
        return hash((type(self), *self._field_values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._field_values()))})"

    def __reduce__(self) -> tuple[type["_Value"], tuple[str | int, ...]]:
        return type(self), self._field_values()


class UnixAddress(_Value):
    """The path of a Unix socket."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path: str = path

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(_Value):
    """A host, by name or number, and a port."""

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int = DEFAULT_TCP_PORT) -> None:
        self.host: str = host
        self.port: int = port

    def __str__(self) -> str:
        return f"tcp://{_bracketed(self.host)}:{self.port}"


class UdpAddress(_Value):
    """A host, by name or number, and a port."""

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int = DEFAULT_UDP_PORT) -> None:
        self.host: str = host
        self.port: int = port

    def __str__(self) -> str:
        return f"udp://{_bracketed(self.host)}:{self.port}"


Address = UnixAddress | TcpAddress | UdpAddress


def parse(text: "str | os.PathLike[str] | Address") -> Address:
    """Parses an address. A path without a scheme is a Unix address. Raises AddressError."""
    if isinstance(text, UnixAddress | TcpAddress | UdpAddress):
        return text
    text = os.fspath(text)
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        return _unix(rest.removeprefix("//") if rest.startswith("///") else rest, text)
    if text.startswith("tcp://"):
        return TcpAddress(*_host_and_port(text, rest[2:], DEFAULT_TCP_PORT))
    if text.startswith("udp://"):
        return UdpAddress(*_host_and_port(text, rest[2:], DEFAULT_UDP_PORT))
    if "://" in text or (colon and "/" not in text):
        raise AddressError(f"invalid address {text!r}: expected unix:/path, tcp://host:port or udp://host:port")
    return _unix(text, text)


def default_address(environment: Mapping[str, str] | None = None) -> Address:
    """Returns the default address: ``$OBJMAPPER_SERVER``, else this user's socket.

    The socket is in ``$XDG_RUNTIME_DIR``, else for root in ``/run``, else in ``/tmp/objmapper-UID``. Raises
    AddressError if the last is not a private directory of this user.
    """
    variables = os.environ if environment is None else environment
    if server_address := variables.get("OBJMAPPER_SERVER"):
        return parse(server_address)
    if runtime := variables.get("XDG_RUNTIME_DIR"):
        return UnixAddress(f"{runtime}/objmapper/{SOCKET_NAME}")
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    if user == 0:
        return UnixAddress(f"/run/objmapper/{SOCKET_NAME}")
    directory = f"/tmp/objmapper-{user}"  # noqa: S108 - its owner is checked
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        pass
    else:
        if found.st_uid != user or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
            raise AddressError(
                f"{directory} is not a private directory of this user: name the server (--server, $OBJMAPPER_SERVER)"
            )
    return UnixAddress(f"{directory}/{SOCKET_NAME}")


def _unix(path: str, text: str) -> UnixAddress:
    if not path or "\0" in path:
        raise AddressError(f"invalid address {text!r}: expected a path after unix:")
    if len(os.fsencode(path)) > 107:
        raise AddressError(f"{path!r}: a Unix socket's path has at most 107 bytes")
    return UnixAddress(path)


def _host_and_port(text: str, rest: str, default_port: int) -> tuple[str, int]:
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        is_invalid = not bracket or (tail and not tail.startswith(":"))
        port = tail[1:]
    else:
        host, _, port = rest.partition(":")
        is_invalid = ":" in port or "/" in rest
    number = default_port
    if port and not is_invalid:
        is_invalid = not (port.isascii() and port.isdigit() and int(port) <= 65535)
        number = 0 if is_invalid else int(port)
    if is_invalid or not host:
        raise AddressError(f"invalid address {text!r}: expected HOST:PORT, a port from 0 to 65535, IPv6 in brackets")
    return host, number


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
