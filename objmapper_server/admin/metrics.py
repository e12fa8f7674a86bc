"""The metrics in the text format of Prometheus, read from the engine at each scrape."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from objmapper_server.origin_statistics import OriginStatistics
from objmapper_server.statistics import Cumulative, Datagrams, LatencyCounts, Statistics, TransportLoad, bounds_us

if TYPE_CHECKING:
    from prometheus_client import Metric

    from objmapper_server.server import Server

#: Bucket bounds in microseconds, six a decade: neighbours differ by up to 50 %, the largest error of a percentile.
BOUNDS_US: Final = bounds_us((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), minimum=5.0)
LABELS: Final = ("transport", "model", "mode", "status")

#: Field of a transport's statistics → help.
GAUGES: Final = {
    "connections": "Open connections.",
    "connections_waiting": "Accepted connections that wait for a thread.",
    "active_threads": "Threads that serve.",
    "queue_depth": "Requests in the queue.",
    "queue_depth_max": "Maximum depth of the queue since start.",
}
COUNTERS: Final = {
    "connections_total": ("connections_accepted", "Accepted connections."),
    "rejected_total": ("rejected", "Connections and requests that were rejected at a limit."),
    "accept_failures_total": ("accept_failures", "Attempts to accept that failed for lack of a descriptor or memory."),
    "timeouts_total": ("timeouts", "Connections closed because the client was too slow."),
    "protocol_errors_total": ("protocol_errors", "Connections closed because the client violated the protocol."),
    "panics_total": ("panics", "Connections closed by an error in the server; stderr names the place in the program."),
    "steals_total": ("steals", "Sessions that a worker took from another one (work-stealing)."),
    "parks_total": ("parks", "Times that a worker went to sleep (work-stealing)."),
}

#: Metric family of datagrams → label, its values, and help. The field's name starts with the value.
DATAGRAMS: Final = {
    "received": ("kind", ("plain", "pull", "noise"), "Received datagrams; noise is invalid and gets no response."),
    "sent": ("kind", ("reply", "data", "retry", "error"), "Sent datagrams."),
    "dropped": (
        "reason",
        ("untrusted", "limited", "unsendable", "overflow"),
        "Dropped datagrams: from an untrusted network, over the rate limit of an address, not accepted by the "
        "kernel, or without room in the socket's buffer.",
    ),
}


#: Field of an origin's statistics → help; its metric has the field's name behind "origin_".
ORIGIN_COUNTERS: Final = {
    "hits": "Requests that the disk cache answered.",
    "stale_hits": "Requests that the disk cache answered although the store could not confirm the object.",
    "misses": "Objects that were fetched because the disk cache did not have them.",
    "revalidations": "Questions whether an object has changed that the store answered with no.",
    "origin_bytes": "Bytes that the store sent.",
    "origin_errors": "Questions to the store that failed.",
}
#: Field of the disk cache's statistics → help.
DISK_CACHE_GAUGES: Final = {
    "size": "Bytes that the disk cache may take.",
    "cached_bytes": "Bytes of objects in the disk cache.",
    "cached_files": "Objects in the disk cache.",
    "reserved_bytes": "Bytes reserved for downloads under way.",
    "held_bytes": "Bytes of files that left the disk cache while clients hold their descriptors.",
    "held_files": "Files that left the disk cache while clients hold their descriptors.",
}


class EngineCollector(Collector):
    """Reads the server's statistics at each scrape. Keeps no state."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    def collect(self) -> "Iterator[Metric]":
        """Yield all metric families."""
        statistics, times = self._server.statistics(), self._server.latency_counts(BOUNDS_US)
        yield from _request_metrics(times)
        yield from _transport_metrics(list(statistics.transports.items()))
        if statistics.datagrams is not None:
            yield from _datagram_metrics(statistics.datagrams)
        yield from _server_metrics(statistics)
        if (origins := self._server.origin_statistics()) is not None:
            yield from _origin_metrics(origins)
        yield _gauge("build_info", "Version of the server.", 1, version=self._server.version)


class Exposition:
    """Renders the ``/metrics`` of one server."""

    def __init__(self, server: "Server") -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(EngineCollector(server))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type, in the newest format that the scraper accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _request_metrics(times: Sequence[LatencyCounts]) -> "Iterator[Metric]":
    requests = CounterMetricFamily("objmapper_requests", "Answered requests.", labels=LABELS)
    content_bytes = CounterMetricFamily(
        "objmapper_content_bytes", "Sent bytes of content; a descriptor counts as 0.", labels=LABELS
    )
    latency = HistogramMetricFamily(
        "objmapper_request_duration_seconds",
        "Time from a request's complete arrival to the last byte of its response, including the wait in a queue.",
        labels=LABELS,
    )
    queue_waits = HistogramMetricFamily(
        "objmapper_queue_wait_seconds", "Time that requests waited in a queue.", labels=LABELS
    )
    for each in times:
        labels = [each.transport, each.model, each.mode, each.status]
        requests.add_metric(labels, each.latency.counts[-1])
        content_bytes.add_metric(labels, each.bytes_total)
        latency.add_metric(labels, _buckets(each.latency), each.latency.sum_us / 1e6)
        if each.queue_wait.counts[-1]:
            queue_waits.add_metric(labels, _buckets(each.queue_wait), each.queue_wait.sum_us / 1e6)
    yield from (requests, content_bytes, latency, queue_waits)


def _buckets(counted: Cumulative) -> list[tuple[str, float]]:
    names = [*(repr(bound / 1e6) for bound in BOUNDS_US), "+Inf"]
    return [(name, float(count)) for name, count in zip(names, counted.counts, strict=True)]


def _transport_metrics(transports: Sequence[tuple[str, TransportLoad]]) -> "Iterator[Metric]":
    for field, text in GAUGES.items():
        gauge = GaugeMetricFamily(f"objmapper_{field}", text, labels=("transport",))
        for name, load in transports:
            gauge.add_metric([name], getattr(load, field))
        yield gauge
    for field, (family, text) in COUNTERS.items():
        counter = CounterMetricFamily(f"objmapper_{family}", text, labels=("transport",))
        for name, load in transports:
            counter.add_metric([name], getattr(load, field))
        yield counter
    model = GaugeMetricFamily(
        "objmapper_concurrency_model", "1 for the model that serves a transport now.", labels=("transport", "model")
    )
    for name, load in transports:
        model.add_metric([name, load.concurrency_model], 1)
    yield model


def _datagram_metrics(datagrams: Datagrams) -> "Iterator[Metric]":
    for name, (label, values, text) in DATAGRAMS.items():
        counter = CounterMetricFamily(f"objmapper_datagrams_{name}", text, labels=(label,))
        for value in values:
            counter.add_metric([value], getattr(datagrams, f"{value}_{name}_total"))
        yield counter
    datagram_bytes = CounterMetricFamily(
        "objmapper_datagrams_bytes", "Bytes of datagrams, by direction.", labels=("direction",)
    )
    for direction in ("received", "sent"):
        datagram_bytes.add_metric([direction], getattr(datagrams, f"bytes_{direction}_total"))
    yield datagram_bytes


def _server_metrics(statistics: Statistics) -> "Iterator[Metric]":
    yield _gauge("connections_limit", "Maximum number of open connections.", statistics.max_connections)
    yield _gauge(
        "descriptors_in_flight",
        "Passed descriptors that clients have not received yet, as far as the server knows.",
        statistics.descriptors_in_flight,
    )
    yield _gauge(
        "output_bytes",
        "Memory of responses: reserved for storage reads, or not yet received by clients.",
        statistics.output_bytes,
    )
    yield _gauge(
        "uploads_in_flight",
        "Uploads in pieces that are not yet stored or dropped.",
        statistics.uploads_in_flight,
    )
    yield _gauge(
        "reserved_bytes",
        "Disk space reserved for content that clients have announced and not sent.",
        statistics.reserved_bytes,
    )
    yield _gauge("cache_bytes", "Bytes of objects in memory.", statistics.cache_bytes)
    yield _gauge("disk_io_pending", "Requests that wait for the disk.", statistics.disk_io_pending)
    yield _gauge("draining", "1 while the server accepts no new connections.", int(statistics.draining))
    yield _gauge("uptime_seconds", "Time since start.", statistics.uptime)
    yield _gauge(
        "root_available", "1 while the root exists; 0 while every request fails.", int(not statistics.root_problem)
    )
    storage_errors = CounterMetricFamily(
        "objmapper_storage_errors",
        "Requests that failed in storage, by errno; EOF: a file ended before the promised length.",
        labels=("errno",),
    )
    for name, count in statistics.storage_errors_total.items():
        storage_errors.add_metric([name], count)
    yield storage_errors
    denied = CounterMetricFamily(
        "objmapper_denied",
        "Connections and requests denied because of their user, by reason.",
        labels=("reason",),
    )
    for reason, count in statistics.denied_total.items():
        denied.add_metric([reason], count)
    yield denied
    for field, text in (("hits", "was in memory"), ("misses", "had to be read")):
        yield CounterMetricFamily(
            f"objmapper_cache_{field}",
            f"Requests whose object {text}.",
            value=getattr(statistics, f"cache_{field}_total"),
        )


def _origin_metrics(origins: OriginStatistics) -> "Iterator[Metric]":
    for field, text in ORIGIN_COUNTERS.items():
        name = field.removeprefix("origin_")
        counter = CounterMetricFamily(f"objmapper_origin_{name}", text, labels=("mount",))
        for mount in origins.mounts:
            counter.add_metric([mount.prefix], getattr(mount, field))
        yield counter
    for name, text in (("up", "0 while the store fails."), ("fills_under_way", "Downloads under way.")):
        gauge = GaugeMetricFamily(f"objmapper_origin_{name}", text, labels=("mount",))
        for mount in origins.mounts:
            gauge.add_metric([mount.prefix], int(not mount.problem) if name == "up" else mount.fills_under_way)
        yield gauge
    for field, text in DISK_CACHE_GAUGES.items():
        yield _gauge(f"disk_cache_{field}", text, getattr(origins, field))
    for field, text in (
        ("evictions", "Objects that left the disk cache to make room."),
        ("damaged", "Objects of the disk cache whose file was gone or changed."),
    ):
        yield CounterMetricFamily(f"objmapper_disk_cache_{field}", text, value=getattr(origins, field))


def _gauge(name: str, text: str, value: float, **labels: str) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"objmapper_{name}", text, labels=list(labels))
    gauge.add_metric(list(labels.values()), value)
    return gauge
