"""``objmapper serve --udp`` and ``objmapper get --server udp://…``."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from objmapper_server import Config, Server
from tests.cli.conftest import COMMAND, Run, ServeProcess, one_line, terminal_output_while_reading
from tests.support.fake_udp_server import fake_udp_server


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    with (root / "too-large").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with Server(Config(root=root, udp="127.0.0.1:0")) as server:
        yield server.addresses["udp"]


@pytest.mark.parametrize("name", ["empty", "big"])
def test_an_object_arrives_whole(address: str, objmapper: Run, root: Path, tmp_path: Path, name: str) -> None:
    got = objmapper("get", f"/{name}", "--server", address)
    assert (got.returncode, got.stderr) == (0, b"")
    assert got.stdout == (root / name).read_bytes()
    got = objmapper("get", f"/{name}", "-o", "out", "--server", address)
    assert (got.returncode, got.stderr, got.stdout) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == (root / name).read_bytes()


def test_a_range(address: str, objmapper: Run) -> None:
    assert objmapper("get", "/a", "--offset", 1, "--length", 3, "--server", address).stdout == b"ell"


@pytest.mark.parametrize(
    ("uri", "options", "code", "says"),
    [
        ("/none", [], 3, "/none: no such object"),
        ("/link", [], 6, "/link: a symbolic link"),
        ("/../a", [], 2, "/../a: invalid URI"),
        ("/too-large", [], 2, "64 MiB that go over UDP; use tcp:// or a Unix socket"),
        ("/a", ["--mode", "fdpass"], 2, "only copy"),
        ("/a", ["--server", "udp://127.0.0.1:1"], 4, "udp://127.0.0.1:1: server not reached"),
        ("/a", ["--server", "udp://no.such.host.invalid"], 4, "no.such.host.invalid"),
        ("/a", ["--server", "udp://"], 2, "udp://"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    address: str, objmapper: Run, tmp_path: Path, uri: str, options: list[str], code: int, says: str
) -> None:
    got = objmapper("get", uri, "-o", "out", "--server", address, *options)
    assert (got.returncode, got.stdout) == (code, b"")
    assert says in one_line(got.stderr)
    assert not (tmp_path / "out").exists()


def test_a_server_that_says_nothing_is_waited_for_as_long_as_was_said(objmapper: Run) -> None:
    with fake_udp_server(lambda _: []) as address:
        got = objmapper("get", "/a", "--server", address, "--timeout", "0.2")
    assert got.returncode == 5
    assert "no answer" in one_line(got.stderr)


def test_a_terminal_sees_a_bar_of_what_takes_long(address: str, environment: dict[str, str]) -> None:
    seen = terminal_output_while_reading([*COMMAND, "get", "/big", "--server", address], environment, until=b"/big")
    assert b"B/s" in seen or b"%|" in seen


def test_what_the_server_says_of_an_object(address: str, objmapper: Run) -> None:
    said = objmapper("stat", "/a", "--server", address).stdout.decode()
    assert re.fullmatch(r"/a\n  size   5\n  mtime  not sent over UDP\n  etag   [0-9a-f]{16}\n", said)
    assert json.loads(objmapper("stat", "/a", "--json", "--server", address).stdout)["mtime"] is None


@pytest.mark.parametrize(
    "command",
    [("put", "big", "/new"), ("rm", "/a"), ("ls", "/"), ("get", "-r", "/", "-o", "out")],
    ids=lambda it: it[0],
)
def test_what_needs_a_stream_is_refused_with_advice(
    address: str, objmapper: Run, root: Path, command: tuple[str, ...]
) -> None:
    got = objmapper(*command, "--server", address, cwd=root)
    assert (got.returncode, got.stdout) == (1, b"")
    assert one_line(got.stderr).endswith("over UDP; use unix: or tcp://")
    assert (root / "a").exists()
    assert not (root / "new").exists()


def test_the_ready_line_says_where(serve: Callable[..., ServeProcess], root: Path, objmapper: Run) -> None:
    served = serve(root, "--udp", "127.0.0.1:0", "--no-admin")
    assert re.fullmatch(r"objmapper: ready udp://127\.0\.0\.1:\d+\n", served.ready)
    assert served.output_lines == [served.ready]
    assert objmapper("get", "/a", "--server", served.address("udp")).stdout == b"hello"
    served.process.terminate()
    assert served.process.wait(30) == 0


def test_a_bind_to_more_than_loopback_is_remarked_on(serve: Callable[..., ServeProcess], root: Path) -> None:
    flags = ["--udp-trusted", "10.0.0.0/8", "--udp-trusted", "2001:db8::/32", "--udp-rate-limit", "50MB"]
    served = serve(root, "--udp", "0.0.0.0:0", "--no-admin", *flags)
    assert "not loopback" in served.output_lines[0]


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--concurrency-model", "thread-per-connection"], 2, r"--concurrency-model\): udp has no connections"),
        (["--concurrency-model", "udp=thread-per-connection"], 2, "choose epoll, thread-pool or work-stealing"),
        (["--udp-trusted", "here"], 2, r"udp_trusted \(from --udp-trusted\): expected a network .*'here' does not"),
        (["--udp-rate-limit", "fast"], 2, r"udp_rate_limit \(from --udp-rate-limit\)"),
        (["--udp", "host:99999"], 2, "expected HOST:PORT"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    objmapper: Run, root: Path, flags: list[str], code: int, says: str
) -> None:
    got = objmapper("serve", root, "--udp", "127.0.0.1:0", "--no-admin", *flags)
    assert (got.returncode, got.stdout) == (code, b"")
    assert re.search(says, one_line(got.stderr))
