"""The figures as a scraper reads them: real requests, the real text, the format's own tools."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from objmapper_client import Client
from objmapper_server import Config, Server
from objmapper_server.admin.metrics import BOUNDS_US
from tests.support.raw_client import COPY, FDPASS, NOT_FOUND, RawClient

ASKED = 20
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text_of(server: Server, accept: str = "text/plain") -> str:
    assert server.admin_address is not None
    answer = httpx.get(f"{server.admin_address}/metrics", headers={"Accept": accept}, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(accept.partition(";")[0])
    return answer.text


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def label_set(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


@pytest.fixture
def loaded_server(server: Server) -> Server:
    """A server that has answered some requests of each kind, and has counted them."""
    with RawClient(server.addresses["unix"]) as unix, RawClient(server.addresses["tcp"]) as tcp:
        for _ in range(ASKED):
            os.close(unix.ask(FDPASS, "/a").descriptor or 0)
        assert tcp.ask(COPY, "/a").content == b"hello"
        assert tcp.ask(COPY, "/none").status == NOT_FOUND
        deadline = time.monotonic() + 10
        while server.statistics().requests_total < ASKED + 2:
            assert time.monotonic() < deadline
    return server


def test_requests_are_counted_by_transport_model_mode_and_status(loaded_server: Server) -> None:
    samples = samples_of(text_of(loaded_server))
    tcp = {"transport": "tcp", "model": "epoll", "mode": "copy"}
    assert samples["objmapper_requests_total", label_set(**tcp, status="OK")] == 1
    assert samples["objmapper_requests_total", label_set(**tcp, status="NOT_FOUND")] == 1
    assert samples["objmapper_content_bytes_total", label_set(**tcp, status="OK")] == len(b"hello")
    unix = {"transport": "unix", "model": "epoll", "mode": "fdpass", "status": "OK"}
    assert samples["objmapper_requests_total", label_set(**unix)] == ASKED
    assert samples["objmapper_content_bytes_total", label_set(**unix)] == 0


def test_buckets_begin_at_five_microseconds_and_add_up(loaded_server: Server) -> None:
    assert (BOUNDS_US[0], BOUNDS_US[-1]) == (5.0, 1e7)
    assert list(BOUNDS_US) == sorted(set(BOUNDS_US))
    name = "objmapper_request_duration_seconds"
    unix = {"transport": "unix", "model": "epoll", "mode": "fdpass", "status": "OK"}
    samples = samples_of(text_of(loaded_server))
    counts = [samples[f"{name}_bucket", label_set(**unix, le=repr(bound / 1e6))] for bound in BOUNDS_US]
    counts.append(samples[f"{name}_bucket", label_set(**unix, le="+Inf")])
    assert counts == sorted(counts)
    assert counts[-1] == samples[f"{name}_count", label_set(**unix)] == ASKED
    mean = samples[f"{name}_sum", label_set(**unix)] / ASKED
    assert mean == pytest.approx(
        loaded_server.statistics().transports["unix"].since_start.mean_latency_us / 1e6, rel=0.02
    )


def test_the_p99_of_the_buckets_is_that_of_the_statistics_within_a_bucket(loaded_server: Server) -> None:
    samples = samples_of(text_of(loaded_server))
    unix = {"transport": "unix", "model": "epoll", "mode": "fdpass", "status": "OK"}
    name = "objmapper_request_duration_seconds_bucket"
    reached = [bound for bound in BOUNDS_US if samples[name, label_set(**unix, le=repr(bound / 1e6))] >= 0.99 * ASKED]
    p99 = loaded_server.statistics().transports["unix"].since_start.p99_latency_us
    below = [0.0, *BOUNDS_US][BOUNDS_US.index(reached[0])]
    assert below * 0.98 <= p99 <= reached[0] * 1.02


def test_queue_wait_is_reported_by_models_with_a_queue(loaded_server: Server) -> None:
    assert "objmapper_queue_wait_seconds_count" not in text_of(loaded_server)
    from objmapper_server import Concurrency

    loaded_server.set_concurrency(tcp=Concurrency.THREAD_POOL)
    with RawClient(loaded_server.addresses["tcp"]) as v1:
        assert v1.ask(COPY, "/a").content == b"hello"
        deadline = time.monotonic() + 10
        labels = label_set(transport="tcp", model="thread-pool", mode="copy", status="OK")
        while samples_of(text_of(loaded_server)).get(("objmapper_queue_wait_seconds_count", labels)) != 1:
            assert time.monotonic() < deadline
    assert (
        samples_of(text_of(loaded_server))[
            "objmapper_concurrency_model", label_set(transport="tcp", model="thread-pool")
        ]
        == 1
    )


def test_gauges_and_counters_are_those_of_the_statistics(loaded_server: Server) -> None:
    with RawClient(loaded_server.addresses["unix"]) as v1:
        assert v1.ask(COPY, "/a").content == b"hello"
        samples, statistics = samples_of(text_of(loaded_server)), loaded_server.statistics()
    load = statistics.transports["unix"]
    assert samples["objmapper_connections", label_set(transport="unix")] == load.connections == 1
    assert samples["objmapper_connections_accepted_total", label_set(transport="unix")] == load.connections_total
    assert samples["objmapper_active_threads", label_set(transport="unix")] == load.active_threads
    assert samples["objmapper_connections_limit", frozenset()] == statistics.max_connections
    assert samples["objmapper_cache_misses_total", frozenset()] == statistics.cache_misses_total
    assert samples["objmapper_draining", frozenset()] == 0
    assert samples["objmapper_build_info", label_set(version=loaded_server.version)] == 1
    assert samples["process_open_fds", frozenset()] > 0


def test_openmetrics_on_request(loaded_server: Server) -> None:
    text = text_of(loaded_server, "application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    types = {family.name: family.type for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]  # theirs
    assert types["objmapper_requests"] == "counter"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_has_no_complaint(loaded_server: Server) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text_of(loaded_server),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_datagrams_are_counted_by_kind_where_udp_is_served(server: Server, root: Path) -> None:
    assert "datagrams" not in text_of(server)
    with Server(Config(root=root, udp="127.0.0.1:0", admin="127.0.0.1:0")) as served:
        with Client(served.addresses["udp"]) as client:
            assert client.read("/a") == b"hello"
        samples = samples_of(text_of(served))
    assert samples["objmapper_datagrams_received_total", label_set(kind="pull")] == 1
    assert samples["objmapper_datagrams_received_total", label_set(kind="noise")] == 0
    assert samples["objmapper_datagrams_sent_total", label_set(kind="data")] == 1
    assert samples["objmapper_datagrams_dropped_total", label_set(reason="untrusted")] == 0
    assert samples["objmapper_datagrams_bytes_total", label_set(direction="sent")] == 36 + len(b"hello")
