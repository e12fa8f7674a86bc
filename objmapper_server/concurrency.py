"""The concurrency models, and which one a transport gets: all there is of ``auto``."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

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


Table = Mapping[Transport, Concurrency]

#: What each model that is none itself stands for. ``by-transport`` gives descriptors the shortest way, bytes a pool and
#: datagrams event loops; ``auto`` is what measures best (docs/performance.md): event loops, which refuse no client for
#: want of threads.
CHOICES: Final[Mapping[Concurrency, Table]] = MappingProxyType(
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


def choose(model: Concurrency, transport: Transport) -> Concurrency:
    """Return the model that serves `transport` where `model` was asked for: never ``auto`` nor ``by-transport``.

    Raises ValueError where the transport cannot be served so.
    """
    if transport == "udp" and model is Concurrency.THREAD_PER_CONNECTION:
        raise ValueError("udp has no connections to give threads to: choose epoll, thread-pool or work-stealing for it")
    table = CHOICES.get(model)
    return model if table is None else table[transport]
