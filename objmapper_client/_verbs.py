"""The verbs that go with an address: by connections, or by datagrams. The only place that chooses between them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from objmapper_client import _exchange, _transfer
from objmapper_client._exchange import Stat
from objmapper_client._pool import Pool
from objmapper_client._steps import Steps
from objmapper_client.address import Address, UdpAddress
from objmapper_client.errors import ObjmapperError
from objmapper_client.object import Object
from objmapper_client.protocol import Mode
from objmapper_client.protocol_v2_responses import Entry


class Verbs(NamedTuple):
    """One generator for each verb. What `begin_stream` has begun is for the three that follow it, and for no other."""

    make_pool: type[Pool]
    open_object: Callable[[Pool, str, Mode], Steps[Object]]
    open_many: Callable[[Pool, Sequence[str], Mode], Steps[list[Object | ObjmapperError]]]
    read: Callable[[Pool, str, Mode, int, int | None], Steps[bytes]]
    readinto: Callable[[Pool, str, Mode, memoryview, int], Steps[int]]
    begin_stream: Callable[[Pool, str, Mode, int, int | None], Steps[Any]]
    next_chunk: Callable[[Any, int], Steps[bytes]]
    finish: Callable[[Pool, Any], Steps[None]]
    give_up: Callable[[Pool, Any], None]
    stat: Callable[[Pool, str], Steps[Stat]]
    list_page: Callable[[Pool, str, int, bytes | None], Steps[tuple[list[Entry], bytes | None]]]
    put: Callable[
        [Pool, str, object, int | None, str | None, str | None, bool, Callable[[int], None] | None], Steps[Stat]
    ]
    delete: Callable[[Pool, str, str | None], Steps[None]]


def verbs_for(address: Address) -> Verbs:
    """The verbs for this address."""
    if isinstance(address, UdpAddress):
        return _by_datagrams()
    return Verbs(
        Pool,
        _exchange.open_object,
        _open_many,
        _exchange.read,
        _exchange.readinto,
        _exchange.begin_stream,
        _transfer.next_chunk,
        _transfer.finish,
        _transfer.give_up,
        _exchange.stat,
        _exchange.list_page,
        _put,
        _exchange.delete,
    )


# What few programs need is loaded by those that do.


def _by_datagrams() -> Verbs:
    from objmapper_client import _udp_connection, _udp_exchange

    return Verbs(
        _udp_connection.UdpPool,
        _udp_exchange.open_object,
        _udp_exchange.open_many,
        _udp_exchange.read,
        _udp_exchange.readinto,
        _udp_exchange.begin_stream,
        _udp_exchange.next_chunk,
        _udp_exchange.finish,
        _udp_exchange.give_up,
        _udp_exchange.stat,
        _udp_exchange.list_page,
        _udp_exchange.put,
        _udp_exchange.delete,
    )


def _open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> Steps[list[Object | ObjmapperError]]:
    from objmapper_client import _many

    return _many.open_many(pool, uris, mode)


def _put(
    pool: Pool,
    uri: str,
    data: object,
    length: int | None,
    if_match: str | None,
    if_none_match: str | None,
    make_parents: bool,
    progress: Callable[[int], None] | None,
) -> Steps[Stat]:
    from objmapper_client import _upload

    return _upload.put(pool, uri, data, length, if_match, if_none_match, make_parents, progress)
