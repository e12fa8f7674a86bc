"""The admin endpoint over real sockets."""

import base64
import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from objmapper_server import Config, Server
from objmapper_server.admin.auth import is_local
from objmapper_server.admin.server import listen_on
from tests.server.test_statistics import METRICS
from tests.support import users
from tests.support.raw_client import COPY, NOT_FOUND, OK, RawClient


@contextmanager
def client_of(server: Server) -> Iterator[httpx.Client]:
    assert server.admin_address is not None
    with httpx.Client(base_url=server.admin_address, trust_env=False, timeout=60) as client:
        yield client


def test_stats_are_the_servers_figures(server: Server) -> None:
    with client_of(server) as client:
        answer = client.get("/stats")
    assert answer.status_code == 200
    document = answer.json()
    assert set(document) == set(server.statistics().as_json())
    assert set(METRICS) <= set(document["transports"]["unix"])


def test_the_schema_names_every_figure(server: Server) -> None:
    with client_of(server) as client:
        schema = client.get("/openapi.json").json()
    answer = schema["paths"]["/stats"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    described = schema["components"]["schemas"][answer["$ref"].rpartition("/")[2]]["properties"]
    assert set(described) == set(server.statistics().as_json())


def test_it_is_ready_until_it_drains_and_alive_all_the_time(server: Server) -> None:
    with client_of(server) as client:
        assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (200, {"status": "ready"})
        assert server.drain(timeout=10)
        assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"status": "draining"})
        assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:9997"},
        {"Host": "192.0.2.1"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_foreigners_are_refused(server: Server, headers: dict[str, str]) -> None:
    with client_of(server) as client:
        for path in ("/stats", "/healthz", "/docs"):
            assert client.get(path, headers=headers).status_code == 403


def test_every_answer_forbids_what_it_does_not_need(server: Server) -> None:
    with client_of(server) as client:
        for path in ("/stats", "/nothing-here", "/metrics"):
            headers = client.get(path).headers
            assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
        assert client.get("/stats", headers={"Host": "evil.example"}).headers["x-content-type-options"] == "nosniff"


def test_the_reference_needs_nothing_from_elsewhere(server: Server) -> None:
    with client_of(server) as client:
        page = client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "//" not in page.text.replace("https://", "//").split("<script>")[0]
    for kind, source in re.findall(r"<(script|style)>(.*?)</", page.text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]


def test_its_own_names_are_accepted(server: Server) -> None:
    assert server.admin_address is not None
    with client_of(server) as client:
        assert client.get("/healthz", headers={"Host": "localhost:1234"}).status_code == 200
        assert client.get("/healthz", headers={"Origin": server.admin_address}).status_code == 200


@pytest.mark.parametrize(
    ("host", "bound", "local"),
    [
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:80", "127.0.0.1", True),
        ("[::1]:80", "127.0.0.1", True),
        ("10.0.0.7:80", "127.0.0.1", False),
        ("10.0.0.7:80", "0.0.0.0", True),
        ("figures.example", "0.0.0.0", False),
        ("figures.example", "figures.example", True),
        ("localhost.evil.example", "127.0.0.1", False),
        ("localhost:x", "127.0.0.1", False),
        ("localhost:99999", "127.0.0.1", False),
        ("localhost.", "127.0.0.1", True),
        ("evil.example@localhost", "127.0.0.1", False),
        ("localhost#.evil.example", "127.0.0.1", False),
        ("localhost/..", "127.0.0.1", False),
        ("10.0.0.7:80", "", True),
        ("10.0.0.7:80", None, False),
        ("localhost", None, True),
        ("", "0.0.0.0", False),
    ],
)
def test_which_hosts_are_this_server(host: str, bound: str | None, local: bool) -> None:
    assert is_local(host, bound) is local


def test_a_unix_socket_is_its_owners_alone(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin"
    with Server(Config(root=root, unix=tmp_path / "s", admin=f"unix:{path}")) as server:
        assert server.admin_address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/healthz").status_code == 200
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    config = Config(root=root, unix=tmp_path / "s", admin=f"unix:{path}")
    with Server(config):
        with pytest.raises(OSError, match="admin endpoint cannot listen"):
            Server(Config(root=root, unix=tmp_path / "s2", admin=f"unix:{path}")).start()
        assert path.is_socket()


def test_a_file_in_the_sockets_place_is_left_alone(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin"
    path.write_text("precious")
    with pytest.raises(OSError, match="admin endpoint cannot listen"):
        Server(Config(root=root, unix=tmp_path / "s", admin=f"unix:{path}")).start()
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="admin endpoint cannot listen"):
        Server(Config(root=root, unix=tmp_path / "s", admin=f"unix:{tmp_path}/{'x' * 200}")).start()


def test_it_stands_back_behind_the_data_plane(server: Server) -> None:
    with client_of(server) as client:
        assert client.get("/healthz").status_code == 200
        threads = [int(path.name) for path in Path("/proc/self/task").iterdir()]
        assert sorted(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads)[-2:] == [0, 10]


def test_it_says_nothing_of_its_own(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    with client_of(server) as client:
        client.get("/stats")
        client.get("/nothing-here")
    assert capfd.readouterr() == ("", "")


def test_without_one_there_is_none(root: Path, tmp_path: Path) -> None:
    with Server(Config(root=root, unix=tmp_path / "s")) as server:
        assert server.admin_address is None


def test_the_document_is_json_that_others_can_read(server: Server) -> None:
    with client_of(server) as client:
        text = client.get("/stats").text
    assert "NaN" not in text
    assert json.loads(text)["errors_total"] == {}


TOKEN = "a token of sixteen characters"


def test_a_write_over_tcp_needs_the_token(tmp_path: Path) -> None:
    config = Config(root=tmp_path, unix=tmp_path / "s", admin="127.0.0.1:0", admin_token=TOKEN)
    with Server(config) as server, client_of(server) as client:
        change = {"unix": "thread-pool"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": ""}):
            assert client.post("/concurrency", json=change, headers=headers).status_code == 401
        assert server.statistics().transports["unix"].concurrency_model == "epoll"
        good = {"Authorization": f"Bearer {TOKEN}"}
        answer = client.post("/concurrency", json=change, headers=good)
        assert (answer.status_code, answer.json()) == (200, {"unix": "thread-pool"})
        assert client.post("/concurrency", json={"tcp": "epoll"}, headers=good).status_code == 409
        assert client.post("/concurrency", json={"unix": "fast"}, headers=good).status_code == 422
        assert TOKEN not in repr(config)


def test_without_a_token_there_is_no_write_over_tcp(server: Server) -> None:
    with client_of(server) as client:
        assert client.post("/concurrency", json={}, headers={"Authorization": "Bearer x"}).status_code == 401


@pytest.mark.parametrize("path", ["/concurrency", "/drain", "/nothing-here"])
def test_no_write_is_forgotten(server: Server, path: str) -> None:
    with client_of(server) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, path, json={}).status_code == 401
    assert not server.draining


def test_a_drain_can_be_asked_for(tmp_path: Path) -> None:
    config = Config(root=tmp_path, unix=tmp_path / "s", admin="127.0.0.1:0", admin_token=TOKEN)
    with Server(config) as server, client_of(server) as client, RawClient(server.addresses["unix"]) as v1:
        assert v1.ask(COPY, "/none").status == NOT_FOUND
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/drain", headers=good).json()["status"] == "draining"
        assert client.get("/readyz").status_code == 503
        assert v1.at_end()
        while not client.post("/drain", headers=good).json()["finished"]:
            pass
        answer = client.post("/concurrency", json={"unix": "thread-pool"}, headers=good)
        assert (answer.status_code, answer.json()) == (
            409,
            {"detail": "the server drains, so its models cannot change"},
        )


def test_times_are_counted_for_pictures(server: Server) -> None:
    with client_of(server) as client, RawClient(server.addresses["unix"]) as v1:
        for _ in range(3):
            assert v1.ask(COPY, "/a").status == OK
        deadline = time.monotonic() + 10
        while (document := client.get("/latency").json())["total"][-1] < 3:
            assert time.monotonic() < deadline
    assert len(document["total"]) == len(document["bounds_us"]) + 1
    assert document["transports"]["unix"] == document["total"]
    assert document["transports"]["tcp"] == [0] * len(document["total"])
    assert document["bounds_us"] == sorted(set(document["bounds_us"]))


def test_an_overview_has_the_documents_that_are_shown_together(server: Server) -> None:
    with client_of(server) as client, RawClient(server.addresses["unix"]) as v1:
        assert v1.ask(COPY, "/a").status == OK
        deadline = time.monotonic() + 10
        while (overview := client.get("/overview").json())["latency"]["total"][-1] < 1:
            assert time.monotonic() < deadline
        assert overview["latency"] == client.get("/latency").json()
        assert overview["slow"] == client.get("/slow").json()
        assert overview["slow"][0]["uri"] == "/a"
        assert overview["stats"].keys() == client.get("/stats").json().keys()


@pytest.mark.skipif(users.why_no_command() != "", reason=users.why_no_command())
def test_other_users_of_the_unix_socket_need_the_token() -> None:
    ask = f"""
import socket
for header in ("", "Authorization: Bearer {TOKEN}"):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("PATH")
        head = ["POST /concurrency HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 2"]
        connection.sendall("\\r\\n".join([*head, *([header] if header else []), "", "{{}}"]).encode())
        print(connection.recv(12).decode())
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "admin")
        config = Config(root=folder, unix=Path(folder, "s"), admin=f"unix:{path}", admin_token=TOKEN)
        with Server(config):
            Path(folder).chmod(0o755)
            path.chmod(0o666)
            run = subprocess.run(
                [*users.COMMAND, sys.executable, "-c", ask.replace("PATH", str(path))],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
    assert run.stdout.split("\n") == ["HTTP/1.1 401", "HTTP/1.1 200", ""]


def test_a_write_over_the_unix_socket_is_its_owners(tmp_path: Path) -> None:
    config = Config(root=tmp_path, unix=tmp_path / "s", admin=f"unix:{tmp_path}/admin")
    transport = httpx.HTTPTransport(uds=str(tmp_path / "admin"))
    with Server(config) as server, httpx.Client(transport=transport, base_url="http://localhost") as client:
        assert client.post("/concurrency", json={"unix": "work-stealing"}).json() == {"unix": "work-stealing"}
        assert server.statistics().transports["unix"].concurrency_model == "work-stealing"


def test_no_answer_waits_for_the_one_before_to_be_acknowledged() -> None:
    """asyncio turns Nagle's algorithm off for sockets that are named as TCP, and for no others."""
    listener, _, _ = listen_on("127.0.0.1:0")
    with listener:
        assert listener.proto == socket.IPPROTO_TCP
