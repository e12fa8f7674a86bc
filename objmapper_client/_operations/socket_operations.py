"""The operations over stream sockets (Unix and TCP). The first call imports rarely used modules."""

from collections.abc import Sequence

from objmapper_client._connection.pool import Pool
from objmapper_client._operations.metadata_operations import PutArguments, Stat, delete, list_page, stat
from objmapper_client._operations.open_and_read import OpenResult, open_object, read, readinto
from objmapper_client._operations.receive_content import abort, end_stream, next_chunk
from objmapper_client._operations.stream import begin_stream
from objmapper_client._runtime.effects import Effects
from objmapper_client.address import Address, UnixAddress
from objmapper_client.errors import descriptor_limit_error
from objmapper_client.protocol.v1 import Mode

__all__ = [
    "abort",
    "begin_stream",
    "best_mode",
    "delete",
    "end_stream",
    "list_page",
    "make_pool",
    "next_chunk",
    "open_many",
    "open_object",
    "put",
    "read",
    "readinto",
    "stat",
]

make_pool = Pool


def best_mode(address: Address) -> Mode:
    """The transport's cheapest mode."""
    return Mode.FDPASS if isinstance(address, UnixAddress) else Mode.COPY


def open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> Effects[list[OpenResult]]:
    """Opens many objects. Returns an object or an error for each URI, in their order."""
    try:
        from objmapper_client._operations.open_many import open_many
    except OSError as error:
        raise descriptor_limit_error(error) or error from error
    return open_many(pool, uris, mode)


def put(pool: Pool, uri: str, arguments: PutArguments) -> Effects[Stat]:
    """Stores an object atomically."""
    try:
        from objmapper_client._operations.upload import put
    except OSError as error:
        raise descriptor_limit_error(error) or error from error
    return put(pool, uri, arguments)
