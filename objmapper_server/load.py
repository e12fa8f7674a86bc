"""The native load generator of ``objmapper bench``."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from objmapper_client.address import TcpAddress, UnixAddress, parse
from objmapper_server import _engine

#: The protocol and mode of the requests; names that end in 2 use version 2 with its extension.
LoadProtocol = Literal["fdpass", "copy", "splice", "fdpass2", "copy2", "splice2", "http", "redis", "pull", "memcached"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPlan:
    """A load: the server and the requests. Without a `rate` a client sends its next request after the last answer."""

    address: str  #: ``unix:/path``, ``tcp://host:port`` or ``udp://host:port``
    dialect: LoadProtocol  #: over UDP: copy, pull (ranges, as the SDK requests them) or memcached
    uris: tuple[str, ...]
    clients: int = 1
    threads: int = 1
    pipeline: int = 1  #: pending requests of each client; with a rate the maximum
    duration: float = 10.0  #: seconds
    requests: int = 0  #: end after this many; 0: only after the duration
    rate: float | None = None  #: requests a second of all clients together
    reconnect: bool = False  #: a new connection for every request


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """The result of a load. Latencies are in microseconds; with a rate they start when the request was due.

    A request without an answer until one second after the end is lost: a pending one, one on a broken connection, and
    with a rate one that was due and not sent. Its latency is the time from when it was due to the end.
    """

    requests: int  #: answered, without the refused ones
    bytes: int
    refused: int  #: answered UNAVAILABLE
    errors: int  #: answered with another error; and connections that broke
    lost: int  #: without an answer
    elapsed: float  #: seconds
    requests_per_sec: float
    bytes_per_sec: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    refusal_p50_us: float  #: from when the request was sent
    curve: tuple[tuple[float, float], ...]  #: (quantile, microseconds)


@dataclass(frozen=True, slots=True)
class _NativePlan:
    unix: str | None
    tcp: str | None
    udp: str | None
    dialect: str
    uris: tuple[str, ...]
    clients: int
    threads: int
    pipeline: int
    duration: float
    requests: int
    rate: float | None
    reconnect: bool


def run_load(plan: LoadPlan, on_progress: Callable[[int], None] | None = None) -> LoadResult:
    """Run the load to its end. Calls `on_progress` several times a second with the number of answered requests.

    Raises OSError if no thread can be started, and ValueError for an invalid plan. An unreachable server counts as
    errors.
    """
    load = _engine.Load(native_plan(plan))
    try:
        # Poll instead of waiting in `finish`, so that Python handles signals.
        while load.running:
            if on_progress is not None:
                on_progress(load.answered)
            time.sleep(0.05)
    except BaseException:
        load.stop()
        load.finish()
        raise
    native_result = load.finish()
    if on_progress is not None:
        on_progress(native_result["requests"] + native_result["refused"])
    elapsed = max(native_result["elapsed"], 1e-9)
    latency = native_result["latency"]
    return LoadResult(
        requests=native_result["requests"],
        bytes=native_result["bytes"],
        refused=native_result["refused"],
        errors=native_result["errors"],
        lost=native_result["lost"],
        elapsed=elapsed,
        requests_per_sec=native_result["requests"] / elapsed,
        bytes_per_sec=native_result["bytes"] / elapsed,
        p50_us=latency["p50_us"],
        p99_us=latency["p99_us"],
        p999_us=latency["p999_us"],
        max_us=latency["max_us"],
        refusal_p50_us=native_result["refusals"]["p50_us"],
        curve=tuple(native_result["curve"]),
    )


def native_plan(plan: LoadPlan) -> _NativePlan:
    """Return the plan in the engine's form, its host resolved. Raises OSError, AddressError."""
    address = parse(plan.address)
    unix = tcp = udp = None
    if isinstance(address, UnixAddress):
        unix = address.path
    else:
        target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][4]
        numeric = str(TcpAddress(str(target[0]), int(target[1]))).removeprefix("tcp://")
        if isinstance(address, TcpAddress):
            tcp = numeric
        else:
            udp = numeric
    return _NativePlan(
        unix,
        tcp,
        udp,
        plan.dialect,
        plan.uris,
        plan.clients,
        plan.threads,
        plan.pipeline,
        plan.duration,
        plan.requests,
        plan.rate,
        plan.reconnect,
    )
