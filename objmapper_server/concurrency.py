"""The concurrency models, and the model of each transport for ``auto`` and ``by-transport``."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from objmapper_server.errors import did_you_mean

Transport = Literal["unix", "tcp", "udp"]
TRANSPORTS: Final[tuple[Transport, ...]] = ("unix", "tcp", "udp")


class Concurrency(StrEnum):
    """How the connections of a transport share threads."""

    AUTO = "auto"
    BY_TRANSPORT = "by-transport"
    THREAD_PER_CONNECTION = "thread-per-connection"
    THREAD_POOL = "thread-pool"
    WORK_STEALING = "work-stealing"
    EPOLL = "epoll"


ModelsByTransport = Mapping[Transport, Concurrency]

#: The models of each transport for the two names that are not models themselves. ``by-transport``: the lowest latency
#: for descriptors, a pool for bytes, event loops for datagrams. ``auto``: the model that measures best
#: (docs/performance.md), event loops, which never reject clients because of a thread limit.
MODEL_ALIASES: Final[Mapping[Concurrency, ModelsByTransport]] = MappingProxyType(
    {
        Concurrency.BY_TRANSPORT: {
            "unix": Concurrency.THREAD_PER_CONNECTION,
            "tcp": Concurrency.THREAD_POOL,
            "udp": Concurrency.EPOLL,
        },
        Concurrency.AUTO: {
            "unix": Concurrency.EPOLL,
            "tcp": Concurrency.EPOLL,
            "udp": Concurrency.EPOLL,
        },
    }
)


#: Values for shell completion: the models, and for each transport the models for it alone.
MODELS_BY_TRANSPORT: Final = (
    *(model.value for model in Concurrency),
    *(f"{transport}={model}" for transport in TRANSPORTS for model in Concurrency),
)


def resolve_model(model: Concurrency, transport: Transport) -> Concurrency:
    """Return the model of `transport` if the settings ask for `model`: never ``auto`` or ``by-transport``.

    Raises ValueError if the transport does not support the model.
    """
    if transport == "udp" and model is Concurrency.THREAD_PER_CONNECTION:
        raise ValueError(
            "udp has no connections: thread-per-connection cannot serve it; choose epoll, thread-pool or work-stealing"
        )
    table = MODEL_ALIASES.get(model)
    return model if table is None else table[transport]


def parse_models(pairs: Iterable[tuple[str, str]]) -> Concurrency | dict[Transport, Concurrency]:
    """Return one model, or one for each transport, from pairs of transport and model, as texts; raises ValueError.

    A pair without a transport is for all transports that have none of their own.
    """
    default = Concurrency.AUTO
    chosen: dict[Transport, Concurrency] = {}
    for name, text in pairs:
        model = _model(text.strip())
        transport = next((known for known in TRANSPORTS if known == name), None)
        if transport is not None:
            chosen[transport] = model
        elif name:
            raise ValueError(f"expected one of {', '.join(TRANSPORTS)} (got {name!r}){did_you_mean(name, TRANSPORTS)}")
        else:
            default = model
    return {transport: chosen.get(transport, default) for transport in TRANSPORTS} if chosen else default


def _model(text: str) -> Concurrency:
    try:
        return Concurrency(text)
    except ValueError:
        names = [str(model) for model in Concurrency]
        raise ValueError(f"expected one of {', '.join(names)} (got {text!r}){did_you_mean(text, names)}") from None
