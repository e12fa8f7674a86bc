"""A UDP server that is not there, says nothing, or ends midway: an error, in bounded time."""

import socket
import time
from pathlib import Path

import pytest

from objmapper_client import Client, ConnectionFailed, RequestTimeout
from objmapper_client._udp import connection, path_state
from objmapper_server import Config, Server
from tests.support.fake_udp_server import fake_udp_server
from tests.support.lossy_relay import lossy_relay
from tests.support.network_faults import NO_FAULTS
from tests.udp.conftest import Read


def test_a_missing_server_is_reported_at_once(read: Read) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{taken.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(ConnectionFailed, match=r"not reached.*is it running"):
        read(address, "/a")
    assert time.monotonic() - start < 5
    with pytest.raises(ConnectionFailed, match="unknown host"):
        read("udp://no-such-host.invalid:1", "/a")


def test_a_host_is_tried_at_its_other_address(root: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost is ::1 first in many places, and the server is on 127.0.0.1."""
    with Server(Config(root=root, udp="127.0.0.1:0")) as server:
        port = int(server.addresses["udp"].rpartition(":")[2])
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        monkeypatch.setattr(connection, "_LOOPBACK_TIMEOUT", 60)
        start = time.monotonic()
        assert read("udp://both:1", "/large") == (root / "large").read_bytes()
        # Not after a silence.
        assert time.monotonic() - start < 20


def test_silence_ends_in_a_timeout(read: Read) -> None:
    with fake_udp_server(lambda _: []) as address:
        start = time.monotonic()
        with pytest.raises(RequestTimeout):
            read(address, "/a", timeout=0.5)
        assert 0.4 < time.monotonic() - start < 5


def test_five_silences_end_it_before_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LOOPBACK_TIMEOUT", 0.05)
    with fake_udp_server(lambda _: []) as address, Client(address, timeout=60) as client:
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match="after 5 tries"):
            client.read("/a")
        # Each twice as long as the one before.
        assert 31 * 0.05 < time.monotonic() - start < 15


def test_a_server_that_dies_midway_is_an_error_in_bounded_time(root: Path) -> None:
    start = time.monotonic()
    with Server(Config(root=root, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        chunks = client.stream("/huge")
        next(chunks)
        server.stop()
        with pytest.raises((ConnectionFailed, RequestTimeout)):
            list(chunks)
    assert time.monotonic() - start < 20


def test_a_server_that_falls_silent_midway_is_an_error_in_bounded_time(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_state, "_MIN_IDLE_TIMEOUT", 0.05)
    with lossy_relay(address, NO_FAULTS, 0) as relay, Client(relay.address, timeout=60) as client:
        faults = relay._fault_sequence.apply

        def until_the_thirtieth(datagram: bytes) -> list[tuple[float, bytes]]:
            return faults(datagram) if relay.datagrams_from_server < 30 else []

        relay._fault_sequence.apply = until_the_thirtieth  # type: ignore[method-assign]
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match="after 5 tries"):
            client.read("/huge")
        assert 31 * 0.05 < time.monotonic() - start < 15
