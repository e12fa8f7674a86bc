"""The native data plane. Only ``objmapper_server.server`` imports it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict, final, type_check_only

from objmapper_server.config import Config

__all__ = ["Engine", "Load", "__version__"]

__version__: str

@type_check_only
class Rules(Protocol):
    """What `Engine.set_rules` reads, as attributes, from the value that it is given. A cap of 0 is none."""

    @property
    def allow_uid(self) -> Sequence[int]: ...  # of clients of the Unix socket; no user and no group: everybody
    @property
    def allow_gid(self) -> Sequence[int]: ...
    @property
    def allow_prefix(self) -> Sequence[tuple[str, Sequence[int], Sequence[int]]]: ...  # URI prefix, users, groups
    @property
    def max_connections_per_uid(self) -> int: ...
    @property
    def max_descriptors_per_uid(self) -> int: ...

@type_check_only
class Failure(TypedDict):
    """A failure of the storage."""

    errno: int
    operation: str
    uri: str
    suppressed: int

@type_check_only
class Refusal(TypedDict):
    """One refusal to a user, and how many others there were since the one before that was told."""

    reason: str  # user, prefix, connections or descriptors
    uid: int | None  # None over a transport without users
    pid: int | None  # 0 where the process is in a namespace that cannot be seen
    uri: str  # empty where it was not about one object
    suppressed: int

@type_check_only
class Percentiles(TypedDict):
    """Microseconds; all are 0 where nothing was counted."""

    count: int
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float

@type_check_only
class Figures(TypedDict):
    """The figures of all requests that carry the labels; a label of None means "any"."""

    transport: str | None
    model: str | None
    mode: str | None
    requests_total: int
    bytes_total: int
    errors_total: dict[int, int]  # status -> how many
    requests_per_sec: float  # over the last 10 s, or since start where that is shorter
    bytes_per_sec: float
    latency: Percentiles  # the last 60 s
    latency_since_start: Percentiles
    queue_wait: Percentiles  # the last 60 s; nothing where the model has no queue
    queue_wait_since_start: Percentiles

@type_check_only
class TransportState(TypedDict):
    """What one transport is doing now, and what it has counted since start."""

    transport: str
    model: str
    address: str
    connections: int
    connections_total: int
    connections_waiting: int  # accepted, and waiting for a thread (thread-per-connection over max_threads)
    active_threads: int
    queue_depth: int
    queue_depth_max: int
    rejected_total: int  # connections and requests refused for want of room
    accept_failures_total: int
    timeouts_total: int
    protocol_errors_total: int
    panics_total: int  # connections that a fault of the server's ended
    steals_total: int
    parks_total: int

@type_check_only
class DatagramCounts(TypedDict):
    """UDP since start, by kind of datagram."""

    plain_received_total: int  # requests of version 1
    pull_received_total: int
    noise_received_total: int  # no questions, never answered
    reply_sent_total: int  # of version 1
    data_sent_total: int
    retry_sent_total: int
    error_sent_total: int
    untrusted_dropped_total: int  # plain requests from neither loopback nor a trusted network
    limited_dropped_total: int  # questions of addresses over their rate
    unsendable_dropped_total: int  # answers that the kernel did not take
    overflow_dropped_total: int  # questions for which the socket's buffer had no room
    bytes_received_total: int
    bytes_sent_total: int

@type_check_only
class RoomUsage(TypedDict):
    """Bytes and files of the disk cache by kind."""

    cached_bytes: int
    cached_files: int
    reserved_bytes: int  # of downloads under way
    held_bytes: int  # of files that left and that clients hold
    held_files: int

@type_check_only
class Mount(TypedDict):
    """The figures of one origin since start."""

    prefix: str
    store: str
    hits: int
    stale_hits: int  # served although the store could not confirm it
    misses: int
    revalidations: int  # answered "unchanged"
    fills: int
    fills_under_way: int
    origin_bytes: int
    origin_errors: int
    problem: str | None  # why the last request to the store failed

@type_check_only
class Origins(TypedDict):
    """The figures of the disk cache and of the mounts."""

    directory: str
    size: int
    usage: RoomUsage
    evictions: int
    damaged: int
    mounts: list[Mount]

@type_check_only
class Snapshot(TypedDict):
    uptime: float
    draining: bool
    max_connections: int  # as fitted to RLIMIT_NOFILE
    denied_total: dict[str, int]  # refusals to users, by reason
    storage_errors_total: dict[int, int]  # by errno; 0 where a file ended before the promised length
    root_problem: str | None
    output_bytes: int  # of answers that are in memory for clients
    uploads_in_flight: int  # contents of puts that come in pieces, until they are stored or dropped
    reserved_bytes: int  # of the disk, for what clients have announced and not sent
    descriptors_in_flight: int  # passed and, as far as is known, not yet received
    cache_hits_total: int
    cache_misses_total: int
    cache_bytes: int
    disk_io_pending: int
    figures: Sequence[Figures]  # the total, each transport, model and mode, and each combination that was used
    transports: Sequence[TransportState]
    datagrams: DatagramCounts | None  # None where UDP is not served

@type_check_only
class Cumulative(TypedDict):
    """How many times were at most as long as each bound; the last of the counts is of all."""

    counts: list[int]  # one more than there are bounds
    sum_us: float

@type_check_only
class CountedUpTo(TypedDict):
    """The times of one combination of labels and status since start."""

    transport: str
    model: str
    mode: str
    status: int
    bytes: int  # of content
    latency: Cumulative
    queue_wait: Cumulative  # nothing where the model has no queue

@type_check_only
class Record(TypedDict):
    number: int
    at: float
    uri: str
    peer: str
    transport: str
    mode: str
    model: str
    status: int
    bytes: int
    total_us: float
    queue_us: float
    storage_us: float
    send_us: float

@final
class Engine:
    """Serves one root over the transports that the settings name.

    The GIL is never held to serve a request, nor while a call works or waits. In a fork of the process every call
    raises RuntimeError, but `stop`, which does nothing: the fork has none of the threads.
    """

    def __new__(cls, settings: Config, models: Mapping[Any, str], inherited: Sequence[int]) -> Engine:
        """Read the attributes that engine/src/settings.rs names; `tcp` and `udp` have a numeric host there.

        `models` has a concrete model's name for each transport. `inherited` are sockets that are already open, for
        connections or datagrams; they stay the caller's.
        """

    def start(self) -> None:
        """Bind and serve. Raises OSError (with errno and the address) where a socket or a thread cannot be had."""
    @property
    def addresses(self) -> dict[str, str]:
        """Transport -> the address really bound ("unix:/…", "tcp://127.0.0.1:40123"); empty before start()."""
    def statistics(self) -> Snapshot: ...
    def counted_up_to(self, bounds_us: Sequence[float]) -> Sequence[CountedUpTo]:
        """The times of each combination that was used, counted up to each bound: microseconds, ascending."""
    def slow_requests(self) -> list[Record]:
        """The slowest of the last minute, slowest first."""
    def watch_requests(self, slower_than: float, for_seconds: float) -> None:
        """Record what takes longer, in seconds, for so many seconds."""
    def sample_requests(self, one_of: int) -> None:
        """Record one request of so many; 0: none."""
    def recorded_requests(self, after: int) -> tuple[int, list[Record]]:
        """The number of the last record, and those behind `after`, oldest first."""
    def notices(self) -> list[str]:
        """What was fitted or found at start, a line each: limits lowered, stale sockets removed."""
    def set_rules(self, rules: Rules) -> None:
        """Say who may connect and to what; clients that are connected are judged by it from their next request on."""
    def take_failure(self) -> Failure | None:
        """Return the first failure of the storage since this was asked before, and how many others there were."""

    def root_problem(self) -> str | None:
        """Return why nothing can be served because the root is gone; None where it is there."""

    def origins(self) -> Origins | None:
        """The figures of the disk cache and of the mounts; None without one."""
    def take_refusal(self) -> Refusal | None:
        """The first refusal to a user since this was asked before."""
    def set_limits(self, limits: Config) -> None:
        """Change what may change while connections live; who is connected stays, also over a lower cap."""
    def set_concurrency(self, transport: str, model: str) -> None:
        """Change the model of a transport while it serves.

        Raises ValueError for a name that is not served, and OSError where the model cannot have its threads or
        descriptors, or the server drains: then the one before it serves on.
        """
    def drain(self, timeout: float) -> bool:
        """Stop accepting, finish what is under way, wait `timeout` seconds at most. True where all was finished."""
    def stop(self) -> None:
        """End every session and thread, close every socket and remove the Unix socket. Can be called twice."""

@type_check_only
class LoadPlan(Protocol):
    """What `Load` reads, as attributes. Exactly one of unix, tcp and udp is given."""

    @property
    def unix(self) -> str | None: ...
    @property
    def tcp(self) -> str | None: ...  # "ADDRESS:PORT", numeric
    @property
    def udp(self) -> str | None: ...  # likewise
    @property
    def dialect(self) -> str: ...  # fdpass, copy, splice, http or redis; over UDP copy, pull or memcached
    @property
    def uris(self) -> Sequence[str]: ...
    @property
    def clients(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def pipeline(self) -> int: ...  # requests that each client keeps under way
    @property
    def duration(self) -> float: ...
    @property
    def requests(self) -> int: ...  # end after so many; 0: only after the duration
    @property
    def rate(self) -> float | None: ...  # requests a second of all clients together; None: closed loop
    @property
    def reconnect(self) -> bool: ...  # a new connection for every request

@type_check_only
class Outcome(TypedDict):
    requests: int
    bytes: int
    refused: int
    errors: int
    lost: int  # without an answer
    elapsed: float
    latency: Percentiles  # of answers other than refusals, and of what was lost
    refusals: Percentiles
    curve: Sequence[tuple[float, float]]  # (quantile, microseconds)

@final
class Load:
    """A load that runs in native threads from its making on."""

    def __new__(cls, plan: LoadPlan) -> Load: ...
    @property
    def answered(self) -> int: ...
    @property
    def running(self) -> bool: ...
    def stop(self) -> None:
        """End it early. Does not wait: it ends within a moment more than a second."""
    def finish(self) -> Outcome:
        """Wait for the end, and say what came of it. Raises RuntimeError in a fork of its process."""
