"""``objmapper stats``: a table for people, the document for programs."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from objmapper_cli.formatting import format_bytes, format_count, format_micros
from objmapper_cli.watch import History, sparkline
from objmapper_client import Client
from objmapper_server import Config, Server
from tests.cli.conftest import Run, closing, one_line
from tests.support.fake_server import fixed_reply_server
from tests.support.raw_client import COPY, FDPASS, NOT_FOUND, RawClient


@pytest.fixture
def admin(server: Server, environment: dict[str, str]) -> str:
    assert server.admin_address is not None
    environment["OBJMAPPER_ADMIN"] = server.admin_address
    with RawClient(server.addresses["unix"]) as v1:
        os.close(v1.ask(FDPASS, "/a").descriptor or 0)
        assert v1.ask(COPY, "/none").status == NOT_FOUND
    return server.admin_address


def test_a_table(admin: str, objmapper: Run) -> None:
    got = objmapper("stats")
    assert (got.returncode, got.stderr) == (0, b"")
    cells = [re.split(r"\s{2,}", line.strip()) for line in got.stdout.decode().splitlines()]
    # The first table's lines; the second's head has a name of the first's.
    lines: dict[str, list[str]] = {}
    for name, *values in cells:
        lines.setdefault(name, values)
    assert lines["requests total"][0] == "2"
    assert lines["NOT_FOUND"] == ["1", "1", "0"]
    assert lines["p99 latency"][0].endswith((" µs", " ms"))
    assert "fdpass" in got.stdout.decode()
    assert "\x1b" not in got.stdout.decode()


def test_datagrams_by_kind_where_udp_is_served(admin: str, objmapper: Run, root: Path) -> None:
    assert b"pull received" not in objmapper("stats", "--admin", admin).stdout
    with Server(Config(root=root, udp="127.0.0.1:0", admin="127.0.0.1:0")) as server:
        with Client(server.addresses["udp"]) as client:
            client.read("/a")
        got = objmapper("stats", "--admin", server.admin_address)
    assert re.search(rb"^  pull received +1$", got.stdout, re.MULTILINE)
    assert re.search(rb"^  bytes sent +41 B$", got.stdout, re.MULTILINE)


def test_the_document_is_the_endpoints_own(admin: str, objmapper: Run, server: Server) -> None:
    document = json.loads(objmapper("stats", "--json").stdout)
    assert set(document) == set(server.statistics().as_json())
    assert document["errors_total"] == {"NOT_FOUND": 1}


@pytest.mark.parametrize("form", ["{url}", "{bare}", "{url}/"])
def test_the_endpoint_may_be_named(admin: str, objmapper: Run, environment: dict[str, str], form: str) -> None:
    del environment["OBJMAPPER_ADMIN"]
    named = form.format(url=admin, bare=admin.removeprefix("http://"))
    assert objmapper("stats", "--admin", named).returncode == 0


@pytest.mark.parametrize("form", ["unix:{path}", "{path}"])
def test_over_a_unix_socket(objmapper: Run, root: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / "admin"
    with Server(Config(root=root, unix=tmp_path / "socket", admin=f"unix:{path}")):
        got = objmapper("stats", "--admin", form.format(path=path))
        assert got.returncode == 0, got.stderr


def test_on_a_terminal_it_is_drawn_and_without_colour_where_none_is_wanted(
    admin: str, objmapper: Run, environment: dict[str, str]
) -> None:
    for no_color in ("", "1"):
        environment |= {"NO_COLOR": no_color, "COLUMNS": "120"}
        terminal, tty = os.openpty()
        with closing(terminal):
            with closing(tty):
                assert objmapper("stats", stdout=tty).returncode == 0
            drawn = b""
            try:
                while piece := os.read(terminal, 65536):
                    drawn += piece
            except OSError:  # the other side is closed: EIO
                pass
        assert "│" in drawn.decode()
        assert b"requests total" in drawn
        assert b"\x1b[3" not in drawn


def test_watching_shows_it_again_until_it_is_interrupted(
    admin: str, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = started("stats", "--json", "--watch", "0.1")
    assert process.stdout is not None
    for _ in range(3):
        assert json.loads(process.stdout.readline())["requests_total"] == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


def terminal_output(
    started: Callable[..., subprocess.Popen[bytes]], until: Callable[[str], bool], *arguments: str
) -> tuple[str, int]:
    """What the command draws on a terminal of its own until that is enough, and how it ends when it is interrupted."""
    terminal, tty = os.openpty()
    with closing(terminal):
        with closing(tty):
            process = started(*arguments, stdout=tty)
        drawn = b""
        while not until(drawn.decode(errors="ignore")):
            drawn += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        try:
            # It may have been cut within a letter.
            while piece := os.read(terminal, 65536):
                drawn += piece
        except OSError:  # the other side is closed: EIO
            pass
        return drawn.decode(), process.wait(30)


def test_watching_on_a_terminal_draws_what_it_was(
    admin: str, server: Server, environment: dict[str, str], started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    environment |= {"COLUMNS": "120", "LINES": "40", "PYTHONIOENCODING": "utf-8"}
    with RawClient(server.addresses["unix"]) as v1:

        def enough(drawn: str) -> bool:
            assert v1.ask(COPY, "/a").content == b"hello"
            return "last 5 ×" in drawn and "█" in drawn

        drawn, code = terminal_output(started, enough, "stats", "--watch", "0.1")
    assert code == 130
    for name in ("requests/s", "p99 latency", "cache hit rate", "unix", "tcp", "epoll"):
        assert name in drawn


def test_watching_waits_for_a_server_that_is_away(
    root: Path, tmp_path: Path, environment: dict[str, str], started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    environment |= {"COLUMNS": "120", "LINES": "40", "PYTHONIOENCODING": "utf-8"}
    config = Config(root=root, unix=tmp_path / "socket", admin=f"unix:{tmp_path}/admin")
    server = Server(config)
    server.start()

    def enough(drawn: str) -> bool:
        if "last 1 ×" in drawn and server.addresses and "no admin endpoint" not in drawn:
            server.stop()
        if "no admin endpoint" in drawn and not server.addresses:
            server.start()
        return "last 3 ×" in drawn

    try:
        _, code = terminal_output(started, enough, "stats", "--watch", "0.1", "--admin", f"unix:{tmp_path}/admin")
    finally:
        server.stop()
    assert code == 130


def test_a_line_goes_from_nothing_to_the_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([0, 1, 4, 8]) == "▁▂▅█"


def test_a_history_counts_what_grew_and_begins_again_with_the_server(server: Server) -> None:
    document = server.statistics().as_json()
    history = History()
    history.add({**document, "uptime": 10.0, "requests_total": 100})
    assert list(history.lines["requests/s"]) == []
    history.add({**document, "uptime": 12.0, "requests_total": 300})
    assert list(history.lines["requests/s"]) == [100.0]
    history.add({**document, "uptime": 1.0, "requests_total": 5})
    assert list(history.lines["requests/s"]) == [100.0]
    history.add({**document, "uptime": 2.0, "requests_total": 15})
    assert list(history.lines["requests/s"]) == [100.0, 10.0]
    assert set(history.columns) == {"total", "unix", "tcp"}


def test_no_server(objmapper: Run, tmp_path: Path) -> None:
    for address in ("http://127.0.0.1:1", f"unix:{tmp_path}/none", "no.such.host.invalid:80"):
        got = objmapper("stats", "--admin", address)
        assert (got.returncode, got.stdout) == (4, b"")
        assert address in one_line(got.stderr)
        assert "objmapper serve" in one_line(got.stderr)


@pytest.mark.parametrize("address", ["ftp://x", "http://", "http://x:y", "http://[::1", "unix:", "http://a..b:1"])
def test_no_address(objmapper: Run, address: str) -> None:
    got = objmapper("stats", "--admin", address)
    assert got.returncode == 2
    assert address in one_line(got.stderr)


def test_another_service_answers(objmapper: Run, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        # The data plane is no admin endpoint either; what answers there is not HTTP.
        got = objmapper("stats", "--admin", server.addresses["tcp"].replace("tcp", "http"))
    assert got.returncode == 4
    assert address not in one_line(got.stderr)
    assert server.admin_address is not None
    got = objmapper("stats", "--admin", f"{server.admin_address}/elsewhere")
    assert got.returncode == 1
    assert "404" in one_line(got.stderr)


COMMANDS = [("stats",), ("stats", "--json"), ("config",), ("trace", "--count", "1")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n\r\nhello",
        b"\r\n\r\n[]",
        b"\r\n\r\n" + b"[" * 100_000,
        b"\r\n\r\n{}",
        b"\r\nContent-Encoding: gzip\r\n\r\nhello",
    ],
    ids=["text", "list", "deep", "empty", "garbled"],
)
def test_a_program_that_is_no_objmapper_is_named(objmapper: Run, command: tuple[str, ...], answer: bytes) -> None:
    with fixed_reply_server(b"HTTP/1.1 200 OK\r\nConnection: close" + answer, keep_open=False) as server:
        address = server.replace("tcp", "http")
        got = objmapper(*command, "--admin", address)
    assert (got.returncode, got.stdout) == (4 if b"gzip" in answer else 1, b"")
    assert address in one_line(got.stderr)
    assert "not from an objmapper server" in one_line(got.stderr) or "no admin endpoint" in one_line(got.stderr)


def test_a_server_of_another_version_is_named(objmapper: Run) -> None:
    document = b'{"requests_total": 1, "transports": {}, "uptime": 5, "draining": false}'
    with fixed_reply_server(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + document, keep_open=False) as server:
        got = objmapper("stats", "--admin", server.replace("tcp", "http"))
    assert got.returncode == 1
    assert "another version" in one_line(got.stderr)


def test_a_token_that_no_header_can_carry_is_not_shown(admin: str, objmapper: Run, environment: dict[str, str]) -> None:
    for token in ("secret\ntoken", " secret", "secret\udcff"):
        got = objmapper("trace", "--count", "1", env=environment | {"OBJMAPPER_ADMIN_TOKEN": token})
        assert got.returncode == 2
        assert "OBJMAPPER_ADMIN_TOKEN" in one_line(got.stderr)
        assert b"secret" not in got.stderr


def test_a_time_that_the_server_does_not_take_is_refused(admin: str, objmapper: Run) -> None:
    got = objmapper("trace", "--slower-than", "1000001s")
    assert got.returncode == 2
    assert "--slower-than: expected a number with us, ms or s, such as 5ms (got 1000001s)" in one_line(got.stderr)


def test_a_full_disk_is_named(admin: str, objmapper: Run) -> None:
    with Path("/dev/full").open("wb") as full:
        got = objmapper("stats", stdout=full)
    assert got.returncode == 1
    assert "No space left on device" in one_line(got.stderr)


def test_wrong_usage(admin: str, objmapper: Run) -> None:
    got = objmapper("stats", "--watch", "0")
    assert got.returncode == 2
    assert "--watch" in one_line(got.stderr)


def test_a_number_is_whole_or_short() -> None:
    assert [format_count(value) for value in (0, 0.26, 3, 12345.6)] == ["0", "0.3", "3", "12,346"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0 µs"), (999.9, "999.9 µs"), (1500.0, "1.5 ms"), (2_500_000.0, "2.50 s")]
)
def test_times_are_shown_in_their_unit(value: float, text: str) -> None:
    assert format_micros(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_amounts_are_shown_in_their_unit(value: float, text: str) -> None:
    assert format_bytes(value) == text
