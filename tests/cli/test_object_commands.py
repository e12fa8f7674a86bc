"""``objmapper open``, ``put``, ``rm``, ``ls`` and ``stat``: the rest of an object's life, at the command line."""

import json
import os
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from objmapper_server import Config, Server
from tests.cli.conftest import COMMAND, Run, closing, one_line

TRANSPORTS = ("unix", "tcp")


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that takes writes."""
    config = Config(root=root, unix=tmp_path / "socket", tcp="127.0.0.1:0", admin=None, writable=True)
    with Server(config) as server:
        yield server


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("command", [["cat"], ["cat", "{}"], ["sh", "-c", "cat <{}"], ["dd", "if={}", "status=none"]])
def test_a_command_reads_an_object_like_a_file(
    server: Server, objmapper: Run, transport: str, command: list[str]
) -> None:
    got = objmapper("open", "/a", "--server", server.addresses[transport], "--", *command)
    assert (got.returncode, got.stdout, got.stderr) == (0, b"hello", b"")


@pytest.mark.parametrize(("transport", "mode"), [("unix", "fdpass"), ("tcp", "copy")])
@pytest.mark.parametrize("command", [["cat"], ["cat", "{}"]])
def test_before_the_command_a_line_says_what_was_opened(
    server: Server, objmapper: Run, transport: str, mode: str, command: list[str]
) -> None:
    got = objmapper("open", "/a", "--json", "--server", server.addresses[transport], "--", *command)
    assert (got.returncode, got.stderr) == (0, b"")
    line, content = got.stdout.split(b"\n", 1)
    assert content == b"hello"
    document = json.loads(line)
    assert document.pop("path").startswith("/proc/self/fd/" if "{}" in command else "/proc/self/fd/0")
    etag = json.loads(objmapper("stat", "/a", "--json").stdout)["etag"]
    assert document == {"uri": "/a", "size": 5, "mode": mode, "etag": etag}


def test_it_is_the_open_file_itself(server: Server, objmapper: Run, root: Path) -> None:
    got = objmapper("open", "/big", "--", "stat", "-L", "-c", "%i", "{}", "/dev/stdin", stdin=subprocess.DEVNULL)
    assert got.stdout.split()[0] == str((root / "big").stat().st_ino).encode()
    assert got.stdout.split()[1] != got.stdout.split()[0]
    got = objmapper("open", "/big", "--", "stat", "-L", "-c", "%i", "/dev/stdin")
    assert got.stdout.split() == [str((root / "big").stat().st_ino).encode()]


def test_standard_input_stays_where_the_object_has_a_path(server: Server, objmapper: Run) -> None:
    got = objmapper("open", "/a", "--", "cat", "{}", "-", input=b" there")
    assert got.stdout == b"hello there"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -TERM $$"], -15),
        (["sh", "-c", "kill -PIPE $$"], -13),
        (["no-such-command"], 127),
        (["/"], 126),
    ],
)
def test_the_exit_code_is_the_commands(server: Server, objmapper: Run, command: list[str], code: int) -> None:
    assert objmapper("open", "/a", "--", *command).returncode == code


def test_a_command_gets_nothing_but_the_object(server: Server, objmapper: Run) -> None:
    got = objmapper("open", "/a", "--", "ls", "/proc/self/fd")
    # Standard input, output and error, and what `ls` itself has open.
    assert len(got.stdout.split()) == 4
    got = objmapper("open", "/a", "--", "sh", "-c", "ls /proc/self/fd; : {}")
    assert len(got.stdout.split()) == 5


@pytest.mark.parametrize(("arguments", "code"), [(["/missing", "--", "true"], 3), (["/link", "--", "true"], 6)])
def test_without_an_object_nothing_is_run(server: Server, objmapper: Run, arguments: list[str], code: int) -> None:
    got = objmapper("open", *arguments)
    assert got.returncode == code
    one_line(got.stderr)
    assert objmapper("open", "/a").returncode == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_file_becomes_an_object(server: Server, objmapper: Run, root: Path, tmp_path: Path, transport: str) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3 << 20))
    at = ["--server", server.addresses[transport]]
    got = objmapper("put", "file", "/new", *at)
    assert (got.returncode, got.stdout, got.stderr) == (0, b"", b"")
    assert (root / "new").read_bytes() == (tmp_path / "file").read_bytes()
    assert objmapper("put", "file", "/some/where/", "-p", *at).returncode == 0
    assert (root / "some/where/file").read_bytes() == (tmp_path / "file").read_bytes()
    got = objmapper("put", "-", "/from/pipe", "--parents", *at, input=b"x" * 100_000)
    assert got.returncode == 0
    assert (root / "from/pipe").read_bytes() == b"x" * 100_000
    with (tmp_path / "file").open("rb") as file:
        os.lseek(file.fileno(), 3 << 19, os.SEEK_SET)
        assert objmapper("put", "-", "/rest", *at, stdin=file).returncode == 0
    assert (root / "rest").read_bytes() == (tmp_path / "file").read_bytes()[3 << 19 :]


def test_conditions_of_writes(server: Server, objmapper: Run, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    got = objmapper("put", "file", "/o", "--if-none-match", "*", "--json")
    stored = json.loads(got.stdout)
    assert (stored["uri"], stored["size"]) == ("/o", 1)
    for refused in (
        ["put", "file", "/o", "--if-none-match", "*"],
        ["put", "file", "/o", "--if-match", "0" * 16],
        ["rm", "/o", "--if-match", "0" * 16],
    ):
        got = objmapper(*refused)
        assert got.returncode == 7
        assert "/o" in one_line(got.stderr)
    assert objmapper("put", "file", "/o", "--if-match", stored["etag"]).returncode == 0
    assert objmapper("rm", "/o", "--if-match", stored["etag"]).returncode == 7
    assert objmapper("rm", "/o").returncode == 0
    assert not (root / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["put", "no-file", "/o"], 1, "no-file: No such file"),
        (["put", "root", "/o"], 1, "root"),
        (["put", "file", "/none/o"], 3, "--parents"),
        (["put", "file", "/a/b"], 6, "/a/b"),
        (["put", "file", "/../o"], 2, "/../o"),
        (["rm", "/missing"], 3, "/missing"),
        (["stat", "/missing"], 3, "/missing"),
        (["stat", "/link"], 6, "/link"),
        (["ls", "/a/../b/"], 2, "/a/../b/"),
        (["ls", "--server", "unix:/nowhere"], 4, "unix:/nowhere"),
        (["stat", "/a", "--timeout", "0"], 2, "--timeout"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    server: Server, objmapper: Run, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    got = objmapper(*arguments)
    assert (got.returncode, got.stdout) == (code, b"")
    assert says in one_line(got.stderr)


def test_a_server_that_takes_no_writes_says_so(root: Path, tmp_path: Path, objmapper: Run) -> None:
    with Server(Config(root=root, unix=tmp_path / "socket", admin=None)):
        for command in (["put", "root/a", "/o"], ["rm", "/a"]):
            got = objmapper(*command)
            assert got.returncode == 6
            assert "--writable" in one_line(got.stderr)


def test_what_can_be_removed_is(server: Server, objmapper: Run, root: Path) -> None:
    got = objmapper("rm", "/a", "/missing", "/empty", "--json")
    assert got.returncode == 3
    assert [json.loads(line) for line in got.stdout.splitlines()] == [{"uri": "/a"}, {"uri": "/empty"}]
    assert "/missing" in one_line(got.stderr)
    assert not (root / "a").exists()
    assert not (root / "empty").exists()


def test_times_are_exact(server: Server, objmapper: Run, root: Path) -> None:
    os.utime(root / "a", ns=(0, 1_700_000_000_123_456_789))
    os.utime(root / "empty", ns=(0, -5))
    os.utime(root / "big", (0, 1_700_000_000))
    for transport in TRANSPORTS:
        at = ["--server", server.addresses[transport]]
        said = objmapper("stat", "/a", "/empty", "/big", *at).stdout.decode()
        times = [line.split()[1] for line in said.splitlines() if line.startswith("  mtime")]
        assert times == ["2023-11-14T22:13:20.123456789Z", "1969-12-31T23:59:59.999999995Z", "2023-11-14T22:13:20Z"]
        lines = objmapper("stat", "/a", "/empty", "/big", "--json", *at).stdout.splitlines()
        assert [line.split(b'"mtime": ')[1].split(b",")[0] for line in lines] == [
            b"1700000000.123456789",
            b"-0.000000005",
            b"1700000000",
        ]
        assert [json.loads(line)["size"] for line in lines] == [5, 0, 20 << 20]


def test_a_listing(server: Server, objmapper: Run, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "ä\n").write_bytes(b"1234567")
    os.utime(root / "a", (0, 0))
    assert objmapper("ls").stdout.decode() == "/a\n/big\n/d/ä\n\n/empty\n"
    assert objmapper("ls", "/d/").stdout.decode() == "/d/ä\n\n"
    assert objmapper("ls", "/none").stdout == b""
    assert objmapper("ls", "-l", "/a").stdout == b"             5 1970-01-01T00:00:00Z /a\n"
    documents = [json.loads(line) for line in objmapper("ls", "--json").stdout.splitlines()]
    assert documents[0] == {"uri": "/a", "size": 5, "mtime": 0}
    assert [each["uri"] for each in documents] == ["/a", "/big", "/d/ä\n", "/empty"]


def test_a_listing_comes_as_it_is_made(
    server: Server, started: Callable[..., subprocess.Popen[bytes]], root: Path
) -> None:
    for at in range(3000):
        (root / f"{at:0200}").touch()
    process = started("ls")
    assert process.stdout is not None
    assert process.stdout.readline() == f"/{0:0200}\n".encode()
    process.stdout.close()
    # Had all of it been made first, there would be no pipe to break.
    assert process.wait(30) == -13


def test_no_control_characters_reach_a_terminal(server: Server, root: Path, environment: dict[str, str]) -> None:
    (root / "\033[31mred").touch()
    terminal, tty = os.openpty()
    termios.tcsetwinsize(tty, (24, 200))
    with closing(terminal):
        with closing(tty):
            subprocess.run([*COMMAND, "ls", "/\033"], stdout=tty, env=environment, check=True, timeout=60)
        assert os.read(terminal, 1000) == b"/\\x1b[31mred\r\n"


def test_the_metadata_of_an_object(server: Server, objmapper: Run, root: Path) -> None:
    os.utime(root / "a", (0, 0))
    got = objmapper("stat", "/a", "/missing", "/big", "--json")
    assert got.returncode == 3
    first, second = map(json.loads, got.stdout.splitlines())
    assert (first["uri"], first["size"], first["mtime"]) == ("/a", 5, 0)
    assert (second["uri"], second["size"]) == ("/big", 20 << 20)
    got = objmapper("stat", "/a")
    assert got.stdout.decode().split() == [
        "/a", "size", "5", "mtime", "1970-01-01T00:00:00Z", "etag", first["etag"],
    ]  # fmt: skip
