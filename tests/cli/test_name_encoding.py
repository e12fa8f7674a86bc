"""Names of objects as they are shown and made: control characters, bytes that are not UTF-8, other locales, times."""

import json
import os
import sys
from pathlib import Path

import pytest

from objmapper_cli.commands.trace import format_request
from objmapper_client import Client, LeftOut
from objmapper_client.errors import printable
from objmapper_server import Config, Server
from objmapper_server.escaped_json import escape_control_characters
from objmapper_server.process.logs import JsonLines, TextLines
from tests.cli.conftest import Run, one_line

EVIL = "\x1b]0;owned\x07\x9b31m\n\u202e"
SHOWN = r"\x1b]0;owned\x07\x9b31m\n\u202e"
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_control_characters_are_escaped_for_people_and_exact_for_programs(
    server: Server, objmapper: Run, root: Path
) -> None:
    assert printable(f"/{EVIL}\udcff") == rf"/{SHOWN}\xff"
    assert printable("/ä b") == "/ä b"
    assert SHOWN in one_line(objmapper("get", f"/{EVIL}").stderr)
    (root / EVIL).touch()
    assert objmapper("ls", "/\x1b").stdout == f"/{EVIL}\n".encode()
    assert json.loads(objmapper("ls", "/\x1b", "--json").stdout)["uri"] == f"/{EVIL}"


def test_trace_escapes_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"at": 0.0, "status": 0, "mode": "copy", "uri": f"/{EVIL}", "peer": "pid 1"}
    request |= {f"{part}_us": 1 for part in ("total", "queue", "storage", "send")}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert SHOWN in format_request(request)


def test_logs_escape_control_characters() -> None:
    import logging

    record = logging.LogRecord("x", logging.INFO, "x", 1, "about %s", (f"/{EVIL}",), None)
    assert TextLines().format(record) == f"objmapper: about /{SHOWN}"
    text = JsonLines().format(record)
    assert text.isprintable()
    assert json.loads(text)["message"] == f"about /{EVIL}"
    assert json.loads(escape_control_characters(json.dumps({"uri": EVIL}, ensure_ascii=False).encode())) == {
        "uri": EVIL
    }


def test_an_access_log_is_its_owners_alone(root: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Server(Config(root=root, unix=tmp_path / "s", admin=None, access_log=tmp_path / "log")):
            assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_what_a_listing_leaves_out_is_named(server: Server, objmapper: Run, root: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/no\xffname")).touch()
    for command in (["ls"], ["get", "-r", "/", "-o", "out"], ["ls", "/no"]):
        got = objmapper(*command)
        assert got.returncode == 1
        assert r"/no\xffname: left out: its name is not UTF-8" in one_line(got.stderr)
    assert (tmp_path / "out/a").read_bytes() == b"hello"
    assert objmapper("ls", "/a").returncode == 0


def test_paths_that_are_too_long_for_a_uri_are_named(server: Server, objmapper: Run, root: Path) -> None:
    name = "d" * 200
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(20):
        os.mkdir(name, dir_fd=directory)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    start = f"/{name}" * 20
    for file in ("f" * 75, "g" * 76):
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)
    got = objmapper("ls", "/d")
    assert got.returncode == 1
    assert got.stdout.decode() == f"{start}/{'f' * 75}\n"
    assert one_line(got.stderr) == f"{start}/{'g' * 76}: left out: its URI would be longer than 4,096 bytes"
    # Also where a page ends at a path that long.
    left_out: list[LeftOut] = []
    with Client(server.addresses["tcp"]) as client:
        listed = [entry.uri for entry in client.list("/", page_size=1, left_out=left_out.append)]
    assert listed == ["/a", "/big", f"{start}/{'f' * 75}", "/empty"]
    assert [os.fsdecode(each.path) for each in left_out] == [f"{start}/{'g' * 76}"]


def test_a_locale_without_utf8_is_no_hindrance(
    server: Server, objmapper: Run, environment: dict[str, str], root: Path, tmp_path: Path
) -> None:
    environment |= PLAIN
    (root / "ä").write_bytes(b"umlaut")
    (root / "d").mkdir()
    (root / "d/é").write_bytes(b"accent")
    assert objmapper("ls", "/ä").stdout == "/ä\n".encode()
    assert objmapper("get", "/ä").stdout == b"umlaut"
    assert objmapper("get", "-r", "/d/", "-o", "out").returncode == 0
    assert (tmp_path / "out/é").read_bytes() == b"accent"
    assert "xe4" in one_line(objmapper("get", "/ä/missing").stderr)
    for command in (["stats", "--admin", server.admin_address], ["serve", "--help"], ["trace", "--help"]):
        got = objmapper(*command)
        assert (got.returncode, b"UnicodeEncodeError" in got.stderr) == (0, False), got.stderr


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_times_before_1970_and_parts_of_seconds(
    server: Server, objmapper: Run, root: Path, tmp_path: Path, transport: str
) -> None:
    (root / "t").mkdir()
    times = {"old": -86_400_500_000_000, "new": 1_700_000_000_123_456_789}
    for name, at in times.items():
        (root / "t" / name).write_bytes(b"1")
        os.utime(root / "t" / name, ns=(at, at))
    command = ["get", "-r", "/t/", "-o", "out", "--server", server.addresses[transport]]
    assert objmapper(*command).returncode == 0
    made = {name: (tmp_path / "out" / name).stat() for name in times}
    assert {name: found.st_mtime_ns for name, found in made.items()} == times
    assert objmapper(*command).returncode == 0
    # Fetched again, it would be another file.
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in times} == {
        name: found.st_ino for name, found in made.items()
    }
    listed = objmapper("ls", "-l", "/t/", "--server", server.addresses[transport]).stdout.decode()
    assert "2023-11-14T22:13:20.123456789Z /t/new" in listed
    assert "1969-12-30T23:59:59.500000000Z /t/old" in listed
    assert b'"mtime": 1700000000.123456789}' in objmapper("ls", "--json", "/t/new").stdout
