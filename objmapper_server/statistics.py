"""The server's statistics as a frozen value. Its fields are those of the ``/stats`` document."""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from objmapper_client.protocol import Status
from objmapper_server.errors import warn_renamed

if TYPE_CHECKING:
    from objmapper_server import _engine


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Latencies in microseconds, from a request's last byte to the last byte of its answer; and waits in a queue."""

    count: int
    mean_latency_us: float
    p50_latency_us: float
    p99_latency_us: float
    p999_latency_us: float
    max_latency_us: float
    queue_wait_time_us: float  #: the mean
    p50_queue_wait_us: float
    p99_queue_wait_us: float
    max_queue_wait_us: float

    @classmethod
    def from_percentiles(cls, service: "_engine.Percentiles", wait: "_engine.Percentiles") -> Self:
        """Return latencies and waits, rounded to a tenth of a microsecond."""
        return cls(
            count=service["count"],
            mean_latency_us=round(service["mean_us"], 1),
            p50_latency_us=round(service["p50_us"], 1),
            p99_latency_us=round(service["p99_us"], 1),
            p999_latency_us=round(service["p999_us"], 1),
            max_latency_us=round(service["max_us"], 1),
            queue_wait_time_us=round(wait["mean_us"], 1),
            p50_queue_wait_us=round(wait["p50_us"], 1),
            p99_queue_wait_us=round(wait["p99_us"], 1),
            max_queue_wait_us=round(wait["max_us"], 1),
        )


@dataclass(frozen=True, kw_only=True)
class Figures(Latency):
    """The statistics of one kind of requests: rates over the last 10 s, times over the last 60 s, and totals."""

    requests_total: int
    bytes_total: int
    errors_total: Mapping[str, int]  #: by name of the status
    requests_per_sec: float
    bytes_per_sec: float
    since_start: Latency


@dataclass(frozen=True, kw_only=True)
class Load(Figures):
    """Figures, and the current load. All transports share cache and disk."""

    active_threads: int
    queue_depth: int
    queue_depth_max: int  #: the deepest since start
    cache_hit_rate: float  #: from 0 to 1, since start
    disk_io_pending: int
    connections: int
    connections_total: int
    connections_waiting: int  #: accepted, and waiting for a thread
    rejected_total: int  #: connections and requests rejected because of a limit
    accept_failures_total: int
    timeouts_total: int
    protocol_errors_total: int
    panics_total: int  #: connections that ended because of a bug in the server
    steals_total: int
    parks_total: int


@dataclass(frozen=True, kw_only=True)
class TransportLoad(Load):
    """One transport: its load, its address and its current concurrency model."""

    address: str
    concurrency_model: str

    @property
    def model(self) -> str:
        """The name of the concurrency model."""
        return self.concurrency_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Datagrams:
    """Counts of UDP datagrams since start, by kind."""

    plain_received_total: int  #: requests of version 1
    pull_received_total: int
    noise_received_total: int  #: not requests; the server does not answer them
    reply_sent_total: int  #: of version 1
    data_sent_total: int
    retry_sent_total: int
    error_sent_total: int
    untrusted_dropped_total: int  #: plain requests from neither loopback nor a trusted network
    limited_dropped_total: int  #: requests from addresses over their rate limit
    unsendable_dropped_total: int  #: responses that the kernel did not accept
    overflow_dropped_total: int  #: requests that did not fit into the socket's buffer
    bytes_received_total: int
    bytes_sent_total: int


@dataclass(frozen=True, kw_only=True)
class Statistics(Load):
    """The whole server at one moment; its figures are the totals of all transports."""

    uptime: float  #: seconds
    draining: bool
    concurrency_model: Mapping[str, str]  #: transport → model
    max_connections: int  #: as adjusted to the process's limits
    descriptors_in_flight: int
    storage_errors_total: Mapping[str, int]  #: by name of the errno; EOF: the file ended before the announced length
    root_problem: str | None  #: why the root cannot be served; None if it can
    uploads_in_flight: int  #: puts whose content is being received
    reserved_bytes: int  #: bytes of disk reserved for content that clients have announced and not sent
    output_bytes: int  #: bytes of memory for answers: reserved for storage reads, or not yet read by clients
    denied_total: Mapping[str, int]  #: denials to users, by reason: user, prefix, connections, descriptors
    cache_hits_total: int
    cache_misses_total: int
    cache_bytes: int
    transports: Mapping[str, TransportLoad]
    models: Mapping[str, Figures]
    modes: Mapping[str, Figures]
    datagrams: Datagrams | None  #: None if UDP is not served

    @property
    def total(self) -> Load:
        """The totals of all transports, without the figures of each."""
        return Load(**{field.name: getattr(self, field.name) for field in fields(Load)})

    @classmethod
    def from_snapshot(cls, snapshot: "_engine.Snapshot") -> Self:
        """Return the engine's snapshot as a value."""
        figures = {(each["transport"], each["model"], each["mode"]): _figures(each) for each in snapshot["figures"]}
        lookups = snapshot["cache_hits_total"] + snapshot["cache_misses_total"]
        shared: dict[str, Any] = {
            "cache_hit_rate": snapshot["cache_hits_total"] / lookups if lookups else 0.0,
            "disk_io_pending": snapshot["disk_io_pending"],
        }
        states = {state["transport"]: state for state in snapshot["transports"]}
        return cls(
            **figures[None, None, None],
            **shared,
            **_sum_states(list(states.values())),
            uptime=round(snapshot["uptime"], 3),
            draining=snapshot["draining"],
            concurrency_model={name: state["model"] for name, state in states.items()},
            max_connections=snapshot["max_connections"],
            descriptors_in_flight=snapshot["descriptors_in_flight"],
            storage_errors_total={errno_name(each): n for each, n in sorted(snapshot["storage_errors_total"].items())},
            root_problem=snapshot["root_problem"],
            uploads_in_flight=snapshot["uploads_in_flight"],
            reserved_bytes=snapshot["reserved_bytes"],
            output_bytes=snapshot["output_bytes"],
            denied_total=dict(sorted(snapshot["denied_total"].items())),
            cache_hits_total=snapshot["cache_hits_total"],
            cache_misses_total=snapshot["cache_misses_total"],
            cache_bytes=snapshot["cache_bytes"],
            transports={
                name: TransportLoad(
                    **figures[name, None, None],
                    **shared,
                    **_sum_states([state]),
                    address=state["address"],
                    concurrency_model=state["model"],
                )
                for name, state in states.items()
            },
            models={
                model: Figures(**each)
                for (transport, model, mode), each in figures.items()
                if model is not None and transport is None and mode is None
            },
            modes={
                mode: Figures(**each)
                for (transport, model, mode), each in figures.items()
                if mode is not None and transport is None and model is None
            },
            datagrams=None if snapshot["datagrams"] is None else Datagrams(**snapshot["datagrams"]),
        )

    @classmethod
    def read(cls, snapshot: "_engine.Snapshot") -> Self:
        """Return `from_snapshot(snapshot)`. Deprecated: use that name."""
        warn_renamed("Statistics.read", "Statistics.from_snapshot")
        return cls.from_snapshot(snapshot)

    def as_json(self) -> dict[str, Any]:
        """Return the ``/stats`` document."""
        return asdict(self)


def bounds_us(steps: Sequence[float], minimum: float) -> tuple[float, ...]:
    """Return bounds in microseconds from `minimum` to 10 s: each of `steps` (1 to 10) times each power of ten."""
    bounds = (round(step * 10.0**decade, 3) for decade in range(7) for step in steps)
    return (*(bound for bound in bounds if bound >= minimum), 1e7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cumulative:
    """A cumulative histogram: the number of times up to each bound; the last count is the total."""

    counts: tuple[int, ...]
    sum_us: float

    @classmethod
    def from_native(cls, native: "_engine.Cumulative") -> Self:
        """Return the engine's counts as a value."""
        return cls(counts=tuple(native["counts"]), sum_us=native["sum_us"])


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyCounts:
    """The latencies since start of the requests with one transport, model, mode and status."""

    transport: str
    model: str
    mode: str
    status: str
    bytes_total: int
    latency: Cumulative
    queue_wait: Cumulative

    @classmethod
    def from_native(cls, native: "_engine.CountedUpTo") -> Self:
        """Return the engine's histogram as a value."""
        return cls(
            transport=native["transport"],
            model=native["model"],
            mode=native["mode"],
            status=status_name(native["status"]),
            bytes_total=native["bytes"],
            latency=Cumulative.from_native(native["latency"]),
            queue_wait=Cumulative.from_native(native["queue_wait"]),
        )


def status_name(status: int) -> str:
    """Return the name of a status byte, or its number if it is unknown."""
    try:
        return Status(status).name
    except ValueError:
        return f"{status:#04x}"


def errno_name(number: int) -> str:
    """Return the name of an engine's errno; EOF for 0, a file that ended before the announced length."""
    return errno.errorcode.get(number, str(number)) if number else "EOF"


def _figures(native: "_engine.Figures") -> dict[str, Any]:
    latency = Latency.from_percentiles(native["latency"], native["queue_wait"])
    return {
        **{field.name: getattr(latency, field.name) for field in fields(Latency)},
        "since_start": Latency.from_percentiles(native["latency_since_start"], native["queue_wait_since_start"]),
        "requests_total": native["requests_total"],
        "bytes_total": native["bytes_total"],
        "errors_total": {status_name(status): count for status, count in sorted(native["errors_total"].items())},
        "requests_per_sec": round(native["requests_per_sec"], 1),
        "bytes_per_sec": round(native["bytes_per_sec"], 1),
    }


def _sum_states(states: "list[_engine.TransportState]") -> dict[str, Any]:
    return {
        "active_threads": sum(state["active_threads"] for state in states),
        "queue_depth": sum(state["queue_depth"] for state in states),
        "queue_depth_max": max((state["queue_depth_max"] for state in states), default=0),
        "connections": sum(state["connections"] for state in states),
        "connections_total": sum(state["connections_total"] for state in states),
        "connections_waiting": sum(state["connections_waiting"] for state in states),
        "rejected_total": sum(state["rejected_total"] for state in states),
        "accept_failures_total": sum(state["accept_failures_total"] for state in states),
        "timeouts_total": sum(state["timeouts_total"] for state in states),
        "protocol_errors_total": sum(state["protocol_errors_total"] for state in states),
        "panics_total": sum(state["panics_total"] for state in states),
        "steals_total": sum(state["steals_total"] for state in states),
        "parks_total": sum(state["parks_total"] for state in states),
    }
