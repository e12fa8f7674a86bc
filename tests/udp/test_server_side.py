"""The server's side of UDP: its models, its figures, its end, and what it says of an address; junk changes nothing."""

import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from objmapper_client import Client, ObjectNotFound, RequestTimeout
from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.malformed_datagrams import junk
from tests.support.raw_client import descriptors_of


def test_the_model_changes_while_objects_arrive(root: Path) -> None:
    content = (root / "large").read_bytes()
    stop = threading.Event()

    def fetch(address: str) -> int:
        fetched = 0
        with Client(address, timeout=60) as client:
            while not stop.is_set() or not fetched:
                assert client.read("/large") == content
                fetched += 1
        return fetched

    with Server(Config(root=root, udp="127.0.0.1:0")) as server, ThreadPoolExecutor(3) as threads:
        fetching = [threads.submit(fetch, server.addresses["udp"]) for _ in range(3)]
        try:
            models = [Concurrency.THREAD_POOL, Concurrency.WORK_STEALING, Concurrency.EPOLL, Concurrency.BY_TRANSPORT]
            for turn in range(40):
                server.set_concurrency(udp=models[turn % 4])
                time.sleep(0.01)
            with pytest.raises(ValueError, match="udp has no connections"):
                server.set_concurrency(udp=Concurrency.THREAD_PER_CONNECTION)
        finally:
            stop.set()
        assert all(fetched.result() > 0 for fetched in fetching)
        assert server.statistics().concurrency_model == {"udp": "epoll"}


def test_requests_are_counted_by_transport_and_by_kind(root: Path) -> None:
    with Server(Config(root=root, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        client.read("/small")
        with pytest.raises(ObjectNotFound):
            client.read("/none")
        deadline = time.monotonic() + 10
        while (statistics := server.statistics()).requests_total < 3:
            assert time.monotonic() < deadline
        figures = statistics.transports["udp"]
        # What is refused is asked for twice.
        assert (figures.requests_total, figures.bytes_total, figures.errors_total) == (3, 1000, {"NOT_FOUND": 2})
        assert figures.address == server.addresses["udp"]
        assert statistics.datagrams is not None
        assert statistics.datagrams.pull_received_total == 3
        assert (statistics.datagrams.data_sent_total, statistics.datagrams.error_sent_total) == (1, 2)
    with Server(Config(root=root, tcp="127.0.0.1:0")) as server:
        assert server.statistics().datagrams is None


def test_a_drained_server_answers_no_more(root: Path) -> None:
    with Server(Config(root=root, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"], timeout=2) as client:
        assert client.read("/a")
        assert server.drain(timeout=10)
        with pytest.raises(RequestTimeout):
            client.read("/a")


def test_a_bind_to_more_than_loopback_says_what_it_means(root: Path) -> None:
    with Server(Config(root=root, udp="0.0.0.0:0")) as server:
        (notice,) = server.notices
        assert notice.startswith(server.addresses["udp"])
        assert "not loopback" in notice
        assert "udp_trusted" in notice
    with Server(Config(root=root, udp="localhost:0")) as server:
        assert server.notices == ()


def test_junk_changes_nothing(server: Server, address: str, root: Path) -> None:
    """`benchmarks/soak/malformed_datagrams.py` sends a million, from elsewhere than loopback too."""
    generator = random.Random(5)
    before, threads = descriptors_of(), threading.active_count()
    host, _, port = address.removeprefix("udp://").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source, Client(address) as honest:
        source.connect((host, int(port)))
        for turn in range(20_000):
            source.send(junk(generator))
            if turn % 1000 == 0:
                assert honest.read("/small") == (root / "small").read_bytes()
        assert honest.read("/large") == (root / "large").read_bytes()
        assert eventually(lambda: descriptors_of() <= before + 2)
    assert threading.active_count() == threads
