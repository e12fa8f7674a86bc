"""The operations of each transport. Only this module chooses code by the kind of address."""

from collections.abc import Sequence
from typing import Any, Protocol

from objmapper_client._connection.pending_request import Runnable
from objmapper_client._connection.pool import Pool
from objmapper_client._operations import socket_operations
from objmapper_client._operations.metadata_operations import PutArguments, Stat
from objmapper_client._operations.open_and_read import OpenResult
from objmapper_client._runtime.effects import Effects
from objmapper_client.address import Address, UdpAddress
from objmapper_client.object import Object
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_responses import Entry, LeftOut


class Operations(Protocol):
    """The functions of a transport's module. None blocks: they return generators that yield effects.

    `next_chunk`, `end_stream` and `abort` take what `begin_stream` returned.
    """

    @property
    def make_pool(self) -> type[Pool]:
        """The class of the transport's connection pool."""
        raise NotImplementedError

    def best_mode(self, address: Address, /) -> Mode:
        """The transport's cheapest mode."""
        raise NotImplementedError

    def open_object(self, pool: Pool, uri: str, mode: Mode, /) -> Runnable[Object]:
        """Opens an object."""
        raise NotImplementedError

    def open_many(self, pool: Pool, uris: Sequence[str], mode: Mode, /) -> Effects[list[OpenResult]]:
        """Opens many objects. Returns an object or an error for each URI, in their order."""
        raise NotImplementedError

    def read(self, pool: Pool, uri: str, mode: Mode, offset: int, length: int | None, /) -> Effects[bytes]:
        """Reads an object's bytes, or a range of them."""
        raise NotImplementedError

    def readinto(self, pool: Pool, uri: str, mode: Mode, buffer: memoryview, offset: int, /) -> Effects[int]:
        """Reads an object's bytes into a buffer. Returns their number."""
        raise NotImplementedError

    def begin_stream(self, pool: Pool, uri: str, mode: Mode, offset: int, length: int | None, /) -> Effects[Any]:
        """Opens a stream."""
        raise NotImplementedError

    def next_chunk(self, pool: Pool, download: Any, max_bytes: int, /) -> Effects[bytes]:
        """Reads the next 1 to `max_bytes` bytes of a stream; b"" at its end."""
        raise NotImplementedError

    def end_stream(self, pool: Pool, download: Any, /) -> None:
        """Ends a stream. Keeps the connection if that needs no waiting, else closes it."""
        raise NotImplementedError

    def abort(self, pool: Pool, download: Any, /) -> None:
        """Ends a stream and closes its connection."""
        raise NotImplementedError

    def stat(self, pool: Pool, uri: str, /) -> Runnable[Stat]:
        """Gets an object's metadata."""
        raise NotImplementedError

    def list_page(
        self, pool: Pool, prefix: str, page_size: int, cursor: bytes | None, /
    ) -> Runnable[tuple[list[Entry], bytes | None, list[LeftOut]]]:
        """Gets a page of a list, the cursor of the next page, and the omitted entries."""
        raise NotImplementedError

    def put(self, pool: Pool, uri: str, arguments: PutArguments, /) -> Effects[Stat]:
        """Stores an object."""
        raise NotImplementedError

    def delete(self, pool: Pool, uri: str, if_match: str | None, /) -> Runnable[None]:
        """Removes an object."""
        raise NotImplementedError


def operations_for(address: Address) -> Operations:
    """Returns the operations of the address's transport."""
    if isinstance(address, UdpAddress):
        from objmapper_client._udp import operations

        return operations
    return socket_operations
