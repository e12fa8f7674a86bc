"""The operations of each transport: the one place where clients tell addresses apart."""

from collections.abc import Sequence
from typing import Any, Protocol

from objmapper_client._connection.pending_request import Verb
from objmapper_client._connection.pool import Pool
from objmapper_client._operations import socket_operations
from objmapper_client._operations.fetch import Result
from objmapper_client._operations.requests import PutArguments, Stat
from objmapper_client._runtime.effects import Effects
from objmapper_client.address import Address, UdpAddress
from objmapper_client.object import Object
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_responses import Entry, LeftOut


class Operations(Protocol):
    """What a module for a transport has. No function of it waits: generators yield the effects of `effects`.

    What `begin_stream` returns is for the three that follow it, and for no others.
    """

    @property
    def make_pool(self) -> type[Pool]:
        """Makes what the verbs take their connections from."""
        raise NotImplementedError

    def best_mode(self, address: Address, /) -> Mode:
        """The cheapest way that the transport has."""
        raise NotImplementedError

    def open_object(self, pool: Pool, uri: str, mode: Mode, /) -> Verb[Object]:
        """An object."""
        raise NotImplementedError

    def open_many(self, pool: Pool, uris: Sequence[str], mode: Mode, /) -> Effects[list[Result]]:
        """An object or an error for each URI."""
        raise NotImplementedError

    def read(self, pool: Pool, uri: str, mode: Mode, offset: int, length: int | None, /) -> Effects[bytes]:
        """An object's bytes, or a range of them."""
        raise NotImplementedError

    def readinto(self, pool: Pool, uri: str, mode: Mode, buffer: memoryview, offset: int, /) -> Effects[int]:
        """An object's bytes, into a buffer."""
        raise NotImplementedError

    def begin_stream(self, pool: Pool, uri: str, mode: Mode, offset: int, length: int | None, /) -> Effects[Any]:
        """What a stream is taken from: an object, or an answer that has begun."""
        raise NotImplementedError

    def next_chunk(self, pool: Pool, download: Any, most: int, /) -> Effects[bytes]:
        """The next 1 to `most` bytes of a content; nothing at its end."""
        raise NotImplementedError

    def leave(self, pool: Pool, download: Any, /) -> None:
        """Wants no more of it. The connection is kept where that takes no waiting."""
        raise NotImplementedError

    def abort(self, pool: Pool, download: Any, /) -> None:
        """Has the connection closed, whatever is still to come."""
        raise NotImplementedError

    def stat(self, pool: Pool, uri: str, /) -> Verb[Stat]:
        """What the server says of an object."""
        raise NotImplementedError

    def list_page(
        self, pool: Pool, prefix: str, page_size: int, cursor: bytes | None, /
    ) -> Verb[tuple[list[Entry], bytes | None, list[LeftOut]]]:
        """A page of a list, and where the next one begins."""
        raise NotImplementedError

    def put(self, pool: Pool, uri: str, wanted: PutArguments, /) -> Effects[Stat]:
        """Stores an object."""
        raise NotImplementedError

    def delete(self, pool: Pool, uri: str, if_match: str | None, /) -> Verb[None]:
        """Removes an object."""
        raise NotImplementedError


def operations_for(address: Address) -> Operations:
    """The operations of the transport that leads to this address."""
    if isinstance(address, UdpAddress):
        from objmapper_client._udp import operations

        return operations
    return socket_operations
