"""The admin endpoint's hostile clients: what they cost, and that the data plane does not notice them."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx
import pytest

from objmapper_server import Config, Server
from objmapper_server.admin import http_limits
from objmapper_server.admin.auth import MAX_CONTENT
from tests.support.raw_client import COPY, OK, RawClient

TOKEN = "a token of sixteen characters"


@pytest.fixture(autouse=True)
def short_request_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, reached sooner."""
    monkeypatch.setattr(http_limits, "REQUEST_TIMEOUT", 0.5)


@pytest.fixture
def config(config: Config) -> Config:
    return Config(root=config.root, unix=config.unix, admin=config.admin, admin_token=TOKEN)


@contextmanager
def connection(server: Server) -> Iterator[socket.socket]:
    assert server.admin_address is not None
    target = urlsplit(server.admin_address)
    with socket.create_connection((target.hostname or "", target.port or 0), timeout=60) as connection:
        yield connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends the connection, with whatever it says before."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def healthy(server: Server) -> bool:
    return httpx.get(f"{server.admin_address}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /stats HTTP/1.1\r\nHost: local",
        b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
    ],
    ids=["silence", "half a header", "half a body", "half a second request"],
)
def test_a_client_that_does_not_finish_a_request_is_dropped(server: Server, sent: bytes) -> None:
    with connection(server) as slow:
        slow.sendall(sent)
        assert is_closed(slow)
    assert healthy(server)
    assert not server.draining


def test_a_header_that_drips_is_dropped_as_well(server: Server) -> None:
    with connection(server) as slow:
        deadline = time.monotonic() + 10
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                slow.sendall(b"X: y\r\n")
                time.sleep(0.05)


def test_a_header_without_end_is_refused(server: Server) -> None:
    with connection(server) as endless, pytest.raises(ConnectionError):
        for _ in range(1000):
            endless.sendall(b"X" * 65536)
    assert healthy(server)


def test_a_client_that_does_not_read_is_dropped(server: Server) -> None:
    with connection(server) as non_reading:
        non_reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            while True:
                non_reading.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    assert healthy(server)


def test_crowds_make_room_for_newcomers_and_take_nothing_from_the_data_plane(server: Server) -> None:
    with ExitStack() as crowd:
        held = [crowd.enter_context(connection(server)) for _ in range(4 * http_limits.MAX_CONNECTIONS)]
        assert healthy(server)
        with RawClient(server.addresses["unix"]) as v1:
            assert v1.ask(COPY, "/a").status == OK
        assert is_closed(held[0])


def test_a_connection_that_works_outlives_a_crowd(server: Server) -> None:
    target = urlsplit(server.admin_address or "")
    with ExitStack() as stack:
        working = HTTPConnection(target.hostname or "", target.port, timeout=10)
        stack.callback(working.close)
        working.connect()
        # Once closed, it fails instead of being made anew.
        working.auto_open = False
        for _ in range(4 * http_limits.MAX_CONNECTIONS):
            stack.enter_context(connection(server))
            working.request("GET", "/healthz")
            assert working.getresponse().read() == b'{"status":"ok"}'


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_content_without_measure_is_refused(server: Server, framing: str) -> None:
    content = b" " * (MAX_CONTENT + 1)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = content if framing == "length" else iter([content])
    answer = httpx.post(f"{server.admin_address}/concurrency", content=body, headers=headers, trust_env=False)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "content", [b"{", b'{"unix": NaN}', b"\xff\xfe", b"[" * 50_000, b'{"unix": "\\ud800"}', b'{"unix": 1e999}', b"[]"]
)
def test_content_that_makes_no_sense_gets_one_line(server: Server, content: bytes) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    answer = httpx.post(f"{server.admin_address}/concurrency", content=content, headers=headers, trust_env=False)
    assert answer.status_code in (400, 422)
    assert "\n" not in answer.json()["detail"]


def test_protocol_errors_in_mid_request_do_not_fill_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with connection(server) as client:
        client.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert is_closed(client)
    assert healthy(server)
    assert caplog.records == []


def test_the_stop_does_not_wait_for_slow_clients(config: Config) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(config))
        half = stack.enter_context(connection(server))
        half.sendall(b"POST /drain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n")
        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before < 30
        assert is_closed(half)


def test_what_goes_wrong_is_answered_and_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Server) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(Server, "statistics", fail)
    answer = httpx.get(f"{server.admin_address}/stats", trust_env=False)
    assert (answer.status_code, answer.json()) == (500, {"detail": "internal error; the server's log has more"})
    assert [record.getMessage() for record in caplog.records] == [
        "the admin endpoint failed at /stats: KeyError('a secret')"
    ]
