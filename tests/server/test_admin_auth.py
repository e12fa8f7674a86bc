"""Access control of the admin endpoint: other sites' pages, junk in headers and queries, names, tokens."""

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objmapper_client import Client
from objmapper_server import Config, Server
from objmapper_server.admin.auth import ANY_HOST, is_local
from tests.server.test_admin import client_of

TOKEN = "a token of sixteen characters"
SAFE_SITES = ("same-origin", "none")
#: Bytes that a header's value can have; h11 refuses others before the application sees them.
HEADER_VALUES = st.binary(max_size=40).map(lambda value: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value).strip())
HEADER_NAMES = st.sampled_from(
    [
        "Accept",
        "Accept-Encoding",
        "Authorization",
        "Connection",
        "Content-Length",
        "Content-Type",
        "Cookie",
        "Expect",
        "Host",
        "If-None-Match",
        "Origin",
        "Range",
        "Sec-Fetch-Dest",
        "Sec-Fetch-Mode",
        "Sec-Fetch-Site",
        "Transfer-Encoding",
        "Upgrade",
        "X-Forwarded-Host",
    ]
)
PATHS = st.sampled_from(
    ["/", "/stats", "/metrics", "/requests", "/config", "/slow", "/watch", "/docs", "/openapi.json"]
)
QUERIES = st.one_of(
    st.just(b""),
    st.binary(max_size=40).map(lambda value: re.sub(rb"[\x00-\x20#\x7f]", b"", value)),
    st.tuples(
        st.sampled_from([b"after=", b"slower_than_ms="]),
        st.sampled_from([b"nan", b"inf", b"-1", b"1e999", b"%00", b"%ff", b"9" * 60, b"\xc2\xb2", b"", b"[]"]),
    ).map(b"".join),
)


def ask(server: Server, request: bytes) -> bytes:
    """What the endpoint answers to these bytes, to the end of the connection."""
    address = urlsplit(server.admin_address)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything", ""])
@pytest.mark.parametrize("path", ["/stats", "/requests?slower_than_ms=0", "/config", "/metrics"])
def test_pages_of_other_sites_get_nothing(server: Server, path: str, site: str) -> None:
    with client_of(server) as client:
        assert client.get(path, headers={"Sec-Fetch-Site": site}).status_code == 403
        navigation = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert client.get(path, headers=navigation).status_code == 403


@pytest.mark.parametrize("site", SAFE_SITES)
def test_its_own_pages_and_the_address_bar_are_answered(server: Server, site: str) -> None:
    with client_of(server) as client:
        assert client.get("/stats", headers={"Sec-Fetch-Site": site}).status_code == 200


def test_a_link_may_lead_to_a_page_and_a_frame_may_not(server: Server) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    with client_of(server) as client:
        for path in ("/", "/docs"):
            assert client.get(path, headers=link).status_code == 200
            assert client.get(path, headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
            assert client.get(path, headers=link | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403
            assert client.post(path, headers=link).status_code == 403


def test_reads_change_no_record(server: Server) -> None:
    with client_of(server) as admin, Client(server.addresses["unix"]) as client:
        paths = admin.get("/openapi.json").json()["paths"]
        for path in [path for path, methods in paths.items() if "get" in methods]:
            assert admin.get(path, params={"slower_than_ms": 0, "after": 0}).status_code == 200
        client.read("/a")
        assert admin.get("/requests", params={"slower_than_ms": 0, "after": 0}).json()["requests"] == []


def test_a_watch_needs_no_token_on_this_machine_but_no_page_can_start_one(server: Server) -> None:
    with client_of(server) as admin, Client(server.addresses["unix"]) as client:
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
            assert admin.post("/watch", json={"slower_than_ms": 0}, headers=headers).status_code == 403
        client.read("/a")
        assert admin.post("/watch", json={"slower_than_ms": 0}).json() == {"seconds": 5.0, "last": 0}
        client.read("/a", mode="copy")
        recorded = admin.get("/requests", params={"after": 0}).json()["requests"]
        assert [(each["uri"], each["mode"]) for each in recorded] == [("/a", "copy")]
        assert admin.get("/requests", params={"after": 0, "slower_than_ms": 1e9}).json()["requests"] == []
        wrong: object
        for wrong in ({}, {"slower_than_ms": -1}, {"slower_than_ms": "x"}, {"slower_than_ms": 1, "more": 1}, []):
            assert admin.post("/watch", json=wrong).status_code == 422


@pytest.mark.parametrize(
    "origin",
    ["http://[", "http://]", "http://[::1", "//", "http://", "http:///", "\u00e9", "http://a@127.0.0.1", "file:"],
)
def test_an_origin_that_is_none_is_refused(server: Server, origin: str) -> None:
    with client_of(server) as client:
        assert client.get("/stats", headers={b"Origin": origin.encode()}).status_code == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example@localhost", "localhost@evil.example", "localhost/", "localhost?", "[::1", "[x]", "::1", "a b"],
)
def test_a_host_that_is_none_is_refused(server: Server, host: str) -> None:
    with client_of(server) as client:
        assert client.get("/stats", headers={"Host": host}).status_code in (400, 403)


@given(host=st.text(max_size=30), bound=st.sampled_from([None, "", "127.0.0.1", "0.0.0.0", "::", "box"]))
@settings(deadline=None)
def test_any_host_is_reported_without_a_failure(host: str, bound: str | None) -> None:
    if "@" in host or "/" in host or " " in host or not host:
        assert not is_local(host, bound)
    else:
        is_local(host, bound)


@given(path=PATHS, query=QUERIES, headers=st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=4))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_in_headers_and_queries_is_answered(
    server: Server, path: str, query: bytes, headers: list[tuple[str, bytes]]
) -> None:
    lines = [f"GET {path}".encode() + (b"?" + query if query else b"") + b" HTTP/1.1"]
    if not any(name == "Host" for name, _ in headers):
        lines.append(b"Host: localhost")
    lines += [name.encode() + b": " + value for name, value in headers]
    # A request that waits for content ends with the connection.
    answer = ask(server, b"\r\n".join([*lines, b"Connection: close", b"", b""]) + b"0\r\n\r\n")
    status = int(answer.split(b" ", 2)[1])
    assert status < 500
    assert status == 200 or b"Traceback" not in answer


def test_further_names_are_allowed_by_a_setting(root: Path, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", admin="127.0.0.1:0", admin_host=["Figures.example", "node7,node8"])
    assert config.admin_host == ("figures.example", "node7", "node8")
    with Server(config) as server, client_of(server) as client:
        for host in ("figures.example", "FIGURES.example:9997", "node7", "node8:80", "localhost"):
            assert client.get("/metrics", headers={"Host": host}).status_code == 200
        assert client.get("/metrics", headers={"Host": "other.example"}).status_code == 403
        assert "admin_host" in client.get("/metrics", headers={"Host": "other.example"}).json()["detail"]
        assert client.get("/metrics", headers={"Host": "node7", "Origin": "http://node8"}).status_code == 403


def test_any_name_is_allowed_by_a_star(root: Path, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", admin="127.0.0.1:0", admin_host=ANY_HOST)
    with Server(config) as server, client_of(server) as client:
        assert client.get("/metrics", headers={"Host": "any.example"}).status_code == 200
        assert client.get("/metrics", headers={"Host": "10.1.2.3:9997"}).status_code == 200
        assert client.get("/metrics", headers={"Host": "a@b"}).status_code == 403


def test_every_address_of_the_machine_is_answered_where_it_listens_on_all(root: Path, tmp_path: Path) -> None:
    assert is_local("10.1.2.3:9997", "")
    # Bound to loopback, since the tests listen nowhere else: an address from elsewhere cannot be its own.
    with Server(Config(root=root, unix=tmp_path / "s", admin="127.0.0.1:0")) as server, client_of(server) as client:
        assert client.get("/healthz", headers={"Host": "10.1.2.3:9997"}).status_code == 403


@pytest.mark.parametrize("token", ["pässwörter sind länger", "🔑" * 16, TOKEN])
def test_a_token_matches_whatever_its_characters(root: Path, tmp_path: Path, token: str) -> None:
    config = Config(root=root, unix=tmp_path / "s", admin="127.0.0.1:0", admin_token=token)
    with Server(config) as server, client_of(server) as client:
        wrong = {b"Authorization": f"Bearer {token}x".encode()}
        assert client.post("/concurrency", json={}, headers=wrong).status_code == 401
        right = {b"Authorization": f"Bearer {token}".encode()}
        assert client.post("/concurrency", json={}, headers=right).status_code == 200


def test_credentials_of_any_bytes_are_refused(root: Path, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", admin="127.0.0.1:0", admin_token=TOKEN)
    with Server(config) as server, httpx.Client(base_url=server.admin_address or "", trust_env=False) as client:
        for given_token in (b"Bearer \xff\xfe", b"bearer", b"\xff", "Bearer é".encode("latin-1")):
            assert client.post("/drain", headers={b"Authorization": given_token}).status_code == 401
