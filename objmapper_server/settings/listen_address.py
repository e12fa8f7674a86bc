"""Listen addresses: ``HOST:PORT``, their numeric form, and trusted networks."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A host and a port. Port 0: a free one; an empty host: all addresses of the machine."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int) -> Self:
        """Read ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``; raises ValueError."""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise ValueError(f"expected [IPV6]:PORT (got {text!r})")
            port_text = rest[1:]
        elif text.count(":") > 1:
            raise ValueError(f"expected HOST:PORT (got {text!r}); use brackets for IPv6: [::1]:{default_port}")
        else:
            host, _, port_text = text.partition(":")
        if not port_text.isascii() or (port_text and not port_text.isdigit()) or int(port_text or 0) > 65535:
            raise ValueError(f"expected HOST:PORT with a port from 0 to 65535, 0 for a free one (got {text!r})")
        if any(letter.isspace() or letter in "/@?#" for letter in host) or not (host or port_text):
            raise ValueError(f"expected HOST:PORT (got {text!r})")
        return cls(host, int(port_text) if port_text else default_port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def resolve(self) -> Self:
        """Return the address with a numeric host, IPv4 if the name has both; raises OSError that names the host."""
        if not self.host:
            return type(self)("0.0.0.0", self.port)  # noqa: S104 - asked for, by leaving the host out
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
            raise OSError(f"cannot listen on {self}: unknown host {self.host!r} ({reason})") from error
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        return type(self)(str(found[0][4][0]), self.port)


def parse_host_names(items: Iterable[object]) -> tuple[str, ...]:
    """Read host names, one or several, with commas, in each item, and ``*`` for any; raises ValueError."""
    names = [name.strip() for item in items for name in str(item).split(",")]
    for name in names:
        if name != "*" and not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", name):
            raise ValueError(f"expected a host name without scheme and port, such as node7.example (got {name!r})")
    return tuple(dict.fromkeys(name.lower() for name in names))


def parse_networks(items: Iterable[object]) -> tuple[str, ...]:
    """Parse networks such as ``10.0.0.0/8`` and ``2001:db8::/32``; an item may have several, with commas."""
    names = [name.strip() for item in items for name in str(item).split(",")]
    try:
        return tuple(str(ipaddress.ip_network(name, strict=False)) for name in names)
    except ValueError as error:
        raise ValueError(f"expected a network such as 10.0.0.0/8 or 2001:db8::/32 ({error})") from None
