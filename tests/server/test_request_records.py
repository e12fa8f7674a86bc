"""Single requests: the slowest, those that are watched for, the access log."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from objmapper_client import Client
from objmapper_server import Concurrency, Config, Server
from tests.support.raw_client import COPY, OK, SPLICE, RawClient, request
from tests.support.strace import Strace, threads_of, why_not


def wait_for(condition: object, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.01)


def test_the_slowest_requests_name_client_request_and_phases(server: Server) -> None:
    with Client(server.addresses["unix"]) as client:
        for _ in range(50):
            client.read("/a", mode="copy")
    slow = server.slow_requests()
    assert 0 < len(slow) <= 32
    assert [each.total_us for each in slow] == sorted((each.total_us for each in slow), reverse=True)
    first = slow[0]
    assert (first.uri, first.transport, first.mode, first.status) == ("/a", "unix", "copy", 0)
    assert first.peer == f"pid {os.getpid()} uid {os.getuid()}"
    assert abs(first.queue_us + first.storage_us + first.send_us - first.total_us) < 1
    assert abs(first.at - time.time()) < 60


@pytest.mark.parametrize("model", [model for model in Concurrency if model is not Concurrency.BY_TRANSPORT], ids=str)
def test_the_time_that_a_slow_reader_takes_is_that_of_sending(root: Path, model: Concurrency) -> None:
    size = 32 << 20
    (root / "large").write_bytes(bytes(size))
    with Server(Config(root=root, tcp="127.0.0.1:0", concurrency_model=model)) as server:
        with RawClient(server.addresses["tcp"]) as v1:
            v1.send(request(SPLICE, "/large"))
            v1.socket.recv(1)
            time.sleep(0.3)
            left = 9 + size - 1
            while left:
                left -= len(v1.socket.recv(min(left, 1 << 20)))
        wait_for(server.slow_requests)
        (slow,) = server.slow_requests()
    assert slow.send_us > 250_000 > slow.storage_us


@pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works")
@pytest.mark.parametrize("model", [Concurrency.THREAD_POOL, Concurrency.WORK_STEALING])
def test_a_wait_in_the_queue_is_counted_once(root: Path, tmp_path: Path, model: Concurrency) -> None:
    """One worker, whose every answer takes a third of a second: what comes as one crowd waits between its turns."""
    config = Config(root=root, unix=tmp_path / "s", concurrency_model=model, pool_size=1, max_queue_depth=1000)
    with (
        Server(config) as server,
        RawClient(server.addresses["unix"]) as many,
        RawClient(server.addresses["unix"]) as few,
    ):
        with Strace(threads_of(os.getpid()), tmp_path / "calls", "sendto:delay_exit=300000"):
            began = time.monotonic()
            many.send(request(COPY, "/a") * 100)
            few.send(request(COPY, "/a"))
            for _ in range(100):
                assert many.reply(COPY).status == OK
            # The last answer is here as soon as it is sent, a third of a second before its sender is back.
            seconds = time.monotonic() - began + 0.3
            assert few.reply(COPY).status == OK
            wait_for(lambda: server.statistics().requests_total == 101)
        slowest = server.slow_requests()[0]
        assert slowest.total_us <= seconds * 1e6 + 50_000
        assert slowest.queue_us > 250_000
        assert server.statistics().since_start.p999_latency_us <= seconds * 1.02e6 + 50_000


def test_a_datagram_has_an_address_that_it_came_from(root: Path) -> None:
    with Server(Config(root=root, udp="127.0.0.1:0")) as server:
        server.watch_requests(slower_than=0)
        with Client(server.addresses["udp"]) as client:
            client.read("/a")
        wait_for(lambda: server.recorded_requests().requests)
        (request,) = server.recorded_requests().requests
        (slow,) = server.slow_requests()
    assert (request.uri, request.transport, request.mode, request.status) == ("/a", "udp", "copy", 0)
    assert request.peer.startswith("127.0.0.1:")
    assert request.bytes == len(b"hello")
    assert slow.peer == request.peer


def test_requests_are_recorded_while_a_trace_runs(server: Server) -> None:
    with Client(server.addresses["tcp"]) as client:
        client.read("/a")
        assert server.recorded_requests().requests == ()
        server.watch_requests(slower_than=0)
        client.read("/a")
    (request,) = server.recorded_requests().requests
    assert (request.uri, request.transport, request.number) == ("/a", "tcp", 1)
    assert server.recorded_requests(after=1).requests == ()


def test_the_admin_endpoint_tells_of_both(server: Server) -> None:
    assert server.admin_address is not None
    with (
        httpx.Client(base_url=server.admin_address, trust_env=False) as admin,
        Client(server.addresses["unix"]) as client,
    ):
        assert admin.get("/requests").json() == {"last": 0, "requests": []}
        assert admin.post("/watch", json={"slower_than_ms": 0}).json()["last"] == 0
        client.read("/a", mode="copy")
        recorded = admin.get("/requests?slower_than_ms=0&after=0").json()
        assert [each["uri"] for each in recorded["requests"]] == ["/a"]
        assert admin.get("/slow").json()[0]["uri"] == "/a"
        assert admin.get("/requests?slower_than_ms=-1").status_code == 422


def test_the_access_log_has_a_line_for_each_sampled_request(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    config = Config(root=root, unix=tmp_path / "o.sock", access_log=log, access_log_sample=2)
    with Server(config) as server, Client(server.addresses["unix"]) as client:
        for _ in range(20):
            client.read("/a", mode="copy")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    # Every thread that had to do with the connection counts by itself.
    assert 10 <= len(lines) <= 12
    assert {line["uri"] for line in lines} == {"/a"}
    assert {"at", "peer", "total_us", "queue_us", "storage_us", "send_us", "status", "bytes"} <= set(lines[0])


def test_trace_follows_slow_requests(server: Server) -> None:
    command = [sys.executable, "-m", "objmapper_cli", "trace", "--slower-than", "0us", "--count", "1", "--json"]
    with (
        subprocess.Popen([*command, "--admin", str(server.admin_address)], stdout=subprocess.PIPE, text=True) as trace,
        Client(server.addresses["unix"]) as client,
    ):

        def ask_until_the_trace_ends() -> bool:
            client.read("/a", mode="copy")
            return trace.poll() is not None

        wait_for(ask_until_the_trace_ends, 30)
        assert trace.stdout is not None
        record = json.loads(trace.stdout.readline())
    assert (record["uri"], record["mode"], trace.returncode) == ("/a", "copy", 0)


def test_a_time_that_is_none_is_named() -> None:
    command = [sys.executable, "-m", "objmapper_cli", "trace", "--slower-than", "soon"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "objmapper: --slower-than: expected a number with us, ms or s, such as 5ms (got soon)\n"
