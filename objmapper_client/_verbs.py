"""Which verbs a transport has: the one place where clients tell addresses apart."""

from collections.abc import Sequence
from typing import Any, Protocol

from objmapper_client import _exchange
from objmapper_client._ask import Verb
from objmapper_client._exchange import PutArguments, Result, Stat
from objmapper_client._pool import Pool
from objmapper_client._steps import Effects
from objmapper_client.address import Address, UdpAddress
from objmapper_client.object import Object
from objmapper_client.protocol import Mode
from objmapper_client.protocol_v2_responses import Entry, LeftOut


class Operations(Protocol):
    """What a module for a transport has. None of it waits; what is yielded is in `_steps`.

    What `begin_stream` has begun is for the three that follow it, and for no others.
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

    def next_chunk(self, pool: Pool, begun: Any, most: int, /) -> Effects[bytes]:
        """The next 1 to `most` bytes of a content; nothing at its end."""
        raise NotImplementedError

    def leave(self, pool: Pool, begun: Any, /) -> None:
        """Wants no more of it. The connection is kept where that takes no waiting."""
        raise NotImplementedError

    def abort(self, pool: Pool, begun: Any, /) -> None:
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
    """The verbs of the transport that leads to this address."""
    if isinstance(address, UdpAddress):
        from objmapper_client import _udp_exchange

        return _udp_exchange
    return _exchange
