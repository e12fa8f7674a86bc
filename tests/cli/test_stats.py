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

from objmapper_cli.stats import amount, micros
from objmapper_server import Config, Server
from tests.cli.conftest import Run, closing, one_line
from tests.wire import COPY, FDPASS, NOT_FOUND, Wire


@pytest.fixture
def admin(server: Server, environment: dict[str, str]) -> str:
    assert server.admin_address is not None
    environment["OBJMAPPER_ADMIN"] = server.admin_address
    with Wire(server.addresses["unix"]) as wire:
        os.close(wire.ask(FDPASS, "/a").descriptor or 0)
        assert wire.ask(COPY, "/none").status == NOT_FOUND
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
        terminal, theirs = os.openpty()
        with closing(terminal):
            with closing(theirs):
                assert objmapper("stats", stdout=theirs).returncode == 0
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


def test_nobody_there(objmapper: Run, tmp_path: Path) -> None:
    for address in ("http://127.0.0.1:1", f"unix:{tmp_path}/none", "no.such.host.invalid:80"):
        got = objmapper("stats", "--admin", address)
        assert (got.returncode, got.stdout) == (4, b"")
        assert address in one_line(got.stderr)
        assert "objmapper serve" in one_line(got.stderr)


@pytest.mark.parametrize("address", ["ftp://x", "http://", "http://x:y", "http://[::1"])
def test_no_address(objmapper: Run, address: str) -> None:
    got = objmapper("stats", "--admin", address)
    assert got.returncode == 2
    assert address in one_line(got.stderr)


def test_somebody_else_there(objmapper: Run, server: Server) -> None:
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


def test_a_full_disk_is_named(admin: str, objmapper: Run) -> None:
    with Path("/dev/full").open("wb") as full:
        got = objmapper("stats", stdout=full)
    assert got.returncode == 1
    assert "No space left on device" in one_line(got.stderr)


def test_wrong_usage(admin: str, objmapper: Run) -> None:
    got = objmapper("stats", "--watch", "0")
    assert got.returncode == 2
    assert "--watch" in one_line(got.stderr)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0 µs"), (999.9, "999.9 µs"), (1500.0, "1.5 ms"), (2_500_000.0, "2.50 s")]
)
def test_times_are_shown_in_their_unit(value: float, text: str) -> None:
    assert micros(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_amounts_are_shown_in_their_unit(value: float, text: str) -> None:
    assert amount(value) == text
