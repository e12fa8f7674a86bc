"""The engine's snapshot as a value, and the document that is made of it."""

import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from objmapper_server import Server, Statistics
from objmapper_server.statistics import status_name
from tests.support.raw_client import COPY, FDPASS, NOT_FOUND, RawClient

if TYPE_CHECKING:
    from objmapper_server import _engine

METRICS = [
    "p50_latency_us",
    "p99_latency_us",
    "p999_latency_us",
    "requests_per_sec",
    "bytes_per_sec",
    "active_threads",
    "queue_depth",
    "queue_depth_max",
    "queue_wait_time_us",
    "cache_hit_rate",
    "disk_io_pending",
    "requests_total",
    "errors_total",
    "rejected_total",
    "connections",
    "concurrency_model",
]


def percentiles(scale: float) -> "_engine.Percentiles":
    return {
        "count": 7,
        "mean_us": scale,
        "p50_us": 2 * scale,
        "p99_us": 3 * scale,
        "p999_us": 4 * scale,
        "max_us": 5 * scale,
    }


def figures(scale: float, **labels: str) -> "_engine.Figures":
    return {
        "transport": labels.get("transport"),
        "model": labels.get("model"),
        "mode": labels.get("mode"),
        "requests_total": int(scale),
        "bytes_total": 2 * int(scale),
        "errors_total": {0x14: 2, 0x01: 1, 0x77: 5},
        "requests_per_sec": scale,
        "bytes_per_sec": 2 * scale,
        "latency": percentiles(scale),
        "latency_since_start": percentiles(10 * scale),
        "queue_wait": percentiles(100 * scale),
        "queue_wait_since_start": percentiles(1000 * scale),
    }


def state(transport: str, model: str, number: int) -> "_engine.TransportState":
    return {
        "transport": transport,
        "model": model,
        "address": f"{transport}:somewhere",
        "connections": number,
        "connections_total": number,
        "connections_waiting": number,
        "active_threads": number,
        "queue_depth": number,
        "queue_depth_max": number,
        "rejected_total": number,
        "accept_failures_total": number,
        "timeouts_total": number,
        "protocol_errors_total": number,
        "panics_total": number,
        "steals_total": number,
        "parks_total": number,
    }


@pytest.fixture
def snapshot() -> "_engine.Snapshot":
    return {
        "uptime": 61.25,
        "draining": False,
        "max_connections": 500,
        "descriptors_in_flight": 3,
        "storage_errors_total": {5: 2, 0: 1},
        "root_problem": None,
        "output_bytes": 8192,
        "uploads_in_flight": 5,
        "reserved_bytes": 65536,
        "denied_total": {"user": 4, "prefix": 5, "connections": 6, "descriptors": 7},
        "cache_hits_total": 3,
        "cache_misses_total": 1,
        "cache_bytes": 4096,
        "disk_io_pending": 2,
        "figures": [
            figures(1),
            figures(2, transport="unix"),
            figures(3, transport="tcp"),
            figures(4, model="epoll"),
            figures(5, mode="copy"),
            figures(6, transport="tcp", model="epoll", mode="copy"),
        ],
        "transports": [state("unix", "thread-pool", 1), state("tcp", "epoll", 10)],
        "datagrams": None,
    }


def test_every_metric_is_there_in_total_and_for_each_transport(snapshot: "_engine.Snapshot") -> None:
    document = Statistics.from_snapshot(snapshot).as_json()
    for place in (document, document["transports"]["unix"], document["transports"]["tcp"]):
        assert set(METRICS) <= set(place)
    assert document["uptime"] == 61.25
    assert json.loads(json.dumps(document)) == document


def test_values_come_from_the_figures_with_the_right_labels(snapshot: "_engine.Snapshot") -> None:
    statistics = Statistics.from_snapshot(snapshot)
    assert statistics.requests_total == statistics.total.requests_total == 1
    assert statistics.p99_latency_us == 3
    assert statistics.since_start.p999_latency_us == 40
    assert statistics.queue_wait_time_us == 100
    assert statistics.since_start.queue_wait_time_us == 1000
    assert statistics.transports["tcp"].p50_latency_us == 6
    assert statistics.transports["unix"].bytes_per_sec == 4
    assert statistics.models.keys() == {"epoll"}
    assert statistics.models["epoll"].requests_total == 4
    assert statistics.modes["copy"].requests_total == 5


def test_gauges_are_added_up_and_the_deepest_queue_is_the_deepest(snapshot: "_engine.Snapshot") -> None:
    statistics = Statistics.from_snapshot(snapshot)
    assert statistics.connections == 11
    assert statistics.active_threads == 11
    assert statistics.rejected_total == 11
    assert statistics.queue_depth_max == 10
    assert statistics.concurrency_model == {"unix": "thread-pool", "tcp": "epoll"}
    assert statistics.transports["tcp"].model == "epoll"


def test_memory_and_disk_are_shared_by_the_transports(snapshot: "_engine.Snapshot") -> None:
    statistics = Statistics.from_snapshot(snapshot)
    assert statistics.cache_hit_rate == statistics.transports["tcp"].cache_hit_rate == 0.75
    assert statistics.disk_io_pending == statistics.transports["unix"].disk_io_pending == 2


def test_an_unused_cache_has_no_hits(snapshot: "_engine.Snapshot") -> None:
    snapshot["cache_hits_total"] = snapshot["cache_misses_total"] = 0
    assert Statistics.from_snapshot(snapshot).cache_hit_rate == 0


def test_errors_go_by_the_names_of_the_statuses(snapshot: "_engine.Snapshot") -> None:
    assert Statistics.from_snapshot(snapshot).errors_total == {"NOT_FOUND": 1, "UNAVAILABLE": 2, "0x77": 5}
    assert status_name(0x20) == "PROTOCOL_ERROR"


def test_it_is_frozen(snapshot: "_engine.Snapshot") -> None:
    statistics: Any = Statistics.from_snapshot(snapshot)
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.requests_total = 0


def test_a_real_server_counts_what_it_does(server: Server) -> None:
    with RawClient(server.addresses["unix"]) as unix, RawClient(server.addresses["tcp"]) as tcp:
        for _ in range(5):
            descriptor = unix.ask(FDPASS, "/a").descriptor
            assert descriptor is not None
            os.close(descriptor)
        assert tcp.ask(COPY, "/a").content == b"hello"
        assert tcp.ask(COPY, "/none").status == NOT_FOUND
        # A request is counted when its answer has left, which the client may notice first.
        deadline = time.monotonic() + 10
        while (statistics := server.statistics()).requests_total < 7:
            assert time.monotonic() < deadline
        assert statistics.requests_total == 7
        assert statistics.errors_total == {"NOT_FOUND": 1}
        assert statistics.bytes_total == 5
        assert statistics.transports["unix"].requests_total == 5
        assert statistics.transports["tcp"].errors_total == {"NOT_FOUND": 1}
        assert statistics.modes["fdpass"].requests_total == 5
        assert statistics.modes["copy"].requests_total == 2
        assert statistics.connections == 2
        assert 0 < statistics.p50_latency_us <= statistics.p99_latency_us <= statistics.max_latency_us
        assert statistics.since_start.count == 7
