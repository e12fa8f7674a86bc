"""``objmapper get``: what it writes where, and what it says when it cannot."""

import gc
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from objmapper_cli.download import Download
from objmapper_client import Client
from objmapper_server import Server
from tests.cli.conftest import (
    COMMAND,
    Run,
    closing,
    has_nameless_file,
    is_asleep,
    one_line,
    terminal_output_while_reading,
)
from tests.support.fake_server import fixed_reply_server
from tests.support.strace import come_back

WAYS = [("unix", "fdpass"), ("unix", "copy"), ("unix", "splice"), ("tcp", "copy"), ("tcp", "splice")]


def limited_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.parametrize(("transport", "mode"), WAYS)
@pytest.mark.parametrize("name", ["a", "empty", "big"])
def test_an_object_arrives_whole(
    server: Server, objmapper: Run, root: Path, tmp_path: Path, name: str, transport: str, mode: str
) -> None:
    where = ["--mode", mode, "--server", server.addresses[transport]]
    got = objmapper("get", f"/{name}", *where)
    assert (got.returncode, got.stderr) == (0, b"")
    assert got.stdout == (root / name).read_bytes()
    got = objmapper("get", f"/{name}", "-o", "out", *where)
    assert (got.returncode, got.stderr, got.stdout) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == (root / name).read_bytes()


@pytest.mark.parametrize("arguments", [[], ["-o", "-"]])
def test_by_itself_it_takes_the_servers_best_mode(server: Server, objmapper: Run, arguments: list[str]) -> None:
    assert objmapper("get", "/a", *arguments).stdout == b"hello"
    assert objmapper("get", "/a", "--server", server.addresses["tcp"]).stdout == b"hello"
    assert server.statistics().modes["fdpass"].requests_total == 1
    assert server.statistics().modes["copy"].requests_total == 1


@pytest.mark.parametrize("mode", ["fdpass", "copy"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--offset", 1], b"ello"),
        (["--offset", 1, "--length", 3], b"ell"),
        (["--length", 2], b"he"),
        (["--length", 0], b""),
        (["--offset", 5], b""),
        (["--offset", 10**18, "--length", 10**18], b""),
    ],
)
def test_a_range(server: Server, objmapper: Run, mode: str, arguments: list[object], expected: bytes) -> None:
    got = objmapper("get", "/a", "--mode", mode, *arguments)
    assert (got.returncode, got.stdout, got.stderr) == (0, expected, b"")


def test_output_is_appended_to_and_copied_into_anything(
    server: Server, objmapper: Run, root: Path, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"before ")
        log.flush()
        assert objmapper("get", "/a", stdout=log).returncode == 0
    assert (tmp_path / "log").read_bytes() == b"before hello"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert objmapper("get", "/a", stdout=theirs).returncode == 0
        assert ours.recv(100) == b"hello"
    with closing(*(pair := os.openpty())):
        assert objmapper("get", "/a", stdout=pair[1]).returncode == 0
        assert os.read(pair[0], 100) == b"hello"


def test_a_file_is_replaced_when_the_object_is_whole_and_keeps_its_permissions(
    server: Server, objmapper: Run, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    out.chmod(0o640)
    (tmp_path / "link").symlink_to("out")
    with out.open() as old:
        assert objmapper("get", "/a", "-o", "link").returncode == 0
        assert old.read() == "old"
    assert (tmp_path / "link").is_symlink()
    assert out.read_bytes() == b"hello"
    assert out.stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_to_and_stays_one(server: Server, objmapper: Run) -> None:
    assert objmapper("get", "/a", "-o", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("mode", ["fdpass", "copy"])
def test_memory_is_bounded(
    server: Server, started: Callable[..., subprocess.Popen[bytes]], root: Path, mode: str
) -> None:
    size = 1 << 30
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(size)
    process = started("get", "/sparse", "--mode", mode)
    assert process.stdout is not None
    seen, highest = 0, 0
    while piece := process.stdout.read(1 << 20):
        seen += len(piece)
        # What is left does not fit the pipe: the process is still there to be asked.
        if size - seen == 64 << 20:
            status = Path(f"/proc/{process.pid}/status").read_text()
            highest = int(status.partition("VmHWM:")[2].split()[0]) << 10
    assert (seen, process.wait(30)) == (size, 0)
    assert 0 < highest < 100 << 20


@pytest.mark.parametrize("mode", ["fdpass", "copy"])
def test_a_reader_that_leaves_ends_it_quietly(
    server: Server, started: Callable[..., subprocess.Popen[bytes]], mode: str
) -> None:
    process = started("get", "/big", "--mode", mode)
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert process.stderr.read() == b""


@pytest.mark.parametrize("mode", ["fdpass", "copy"])
def test_a_full_disk_is_named(server: Server, objmapper: Run, mode: str) -> None:
    with Path("/dev/full").open("wb") as full:
        got = objmapper("get", "/a", "--mode", mode, stdout=full)
    assert got.returncode == 1
    assert one_line(got.stderr).startswith("standard output: No space left on device; free some space")
    got = objmapper("get", "/a", "--mode", mode, "-o", "/dev/full")
    assert got.returncode == 1
    assert one_line(got.stderr).startswith("/dev/full: No space left on device")


@pytest.mark.parametrize("mode", ["fdpass", "copy"])
def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    server: Server, objmapper: Run, tmp_path: Path, mode: str
) -> None:
    (tmp_path / "out").write_text("old")
    got = objmapper("get", "/big", "--mode", mode, "-o", "out", preexec_fn=limited_files)
    assert got.returncode == 1
    assert one_line(got.stderr).startswith("out: File too large")
    assert (tmp_path / "out").read_text() == "old"
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("uri", "options", "code", "says"),
    [
        ("/missing", [], 3, "/missing"),
        ("/link", [], 6, "/link"),
        ("/../etc/passwd", [], 2, "/../etc/passwd"),
        ("x" * 5000, [], 2, "5000"),
        ("", [], 2, "URI"),
        ("/a", ["--server", "unix:/nowhere/socket"], 4, "unix:/nowhere/socket"),
        ("/a", ["--server", "tcp://127.0.0.1:1"], 4, "tcp://127.0.0.1:1"),
        ("/a", ["--server", "tcp://no.such.host.invalid"], 4, "no.such.host.invalid"),
        ("/a", ["--server", "http://x"], 2, "http://x"),
        ("/a", ["--server", "unix:/" + "x" * 200], 2, "107"),
        ("/a", ["--mode", "fdpas"], 2, "fdpass, copy, splice"),
        ("/a", ["--timeout", "0"], 2, "--timeout"),
        ("/a", ["--timeout", "nan"], 2, "--timeout"),
        ("/a", ["-o", "nowhere/out"], 1, "nowhere/out: No such file or directory"),
        ("/a", ["-o", "root"], 1, "root: Is a directory"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    server: Server, objmapper: Run, tmp_path: Path, uri: str, options: list[str], code: int, says: str
) -> None:
    got = objmapper("get", uri, *options)
    assert (got.returncode, got.stdout) == (code, b"")
    assert says in one_line(got.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "socket", "socket.lock"]


def test_descriptors_are_not_to_be_had_over_tcp(server: Server, objmapper: Run) -> None:
    got = objmapper("get", "/a", "--mode", "fdpass", "--server", server.addresses["tcp"])
    assert got.returncode == 2
    assert "copy" in one_line(got.stderr)


@pytest.mark.parametrize(
    "arguments", [[], ["/a", "--offset", "-1"], ["/a", "--length", "x"], ["/a", "--jobs", "0"], ["/a", "--x"]]
)
def test_wrong_usage_has_its_own_exit_code(server: Server, objmapper: Run, arguments: list[str]) -> None:
    got = objmapper("get", *arguments)
    assert (got.returncode, got.stdout) == (2, b"")
    assert "`objmapper get -h`" in one_line(got.stderr)


def test_a_server_without_room_refuses(objmapper: Run) -> None:
    with fixed_reply_server(b"\x14\0\4busy", keep_open=True) as address:
        got = objmapper("get", "/a", "--server", address)
    assert got.returncode == 6
    assert "busy" in one_line(got.stderr)


def test_a_server_that_says_nothing_is_waited_for_as_long_as_was_said(objmapper: Run) -> None:
    with fixed_reply_server(b"", keep_open=True) as address:
        got = objmapper("get", "/a", "--server", address, "--timeout", "0.2")
    assert got.returncode == 5
    assert "no answer" in one_line(got.stderr)


@pytest.mark.parametrize("answer", [b"\xff\xff", b"\0\0\0\0\0\0\0\0\2half", b"HTTP/1.0 400 Bad Request\r\n\r\n"])
def test_a_server_that_breaks_the_rules_leaves_no_file(objmapper: Run, tmp_path: Path, answer: bytes) -> None:
    with fixed_reply_server(answer, keep_open=False) as address:
        got = objmapper("get", "/a", "--server", address, "-o", "out")
    assert got.returncode in (1, 4)
    one_line(got.stderr)
    assert list(tmp_path.iterdir()) == []


HALF = b"\0" + (1000).to_bytes(8, "big") + b"ten bytes!"


@pytest.mark.parametrize(("uris", "left"), [(["/a"], []), (["/a", "/b"], ["out"])], ids=["one", "many"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_an_interrupted_download_leaves_no_partial_file(
    started: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    uris: list[str],
    left: list[str],
) -> None:
    with fixed_reply_server(HALF, keep_open=True) as address:
        process = started("get", *uris, "--server", address, "-o", "out")
        deadline = time.monotonic() + 30
        while not (has_nameless_file(process.pid, tmp_path) and is_asleep(process.pid)):
            assert time.monotonic() < deadline
        process.send_signal(number)
        assert process.wait(30) == code
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert [path.name for path in tmp_path.rglob("*")] == left


def test_an_interrupt_between_two_pieces_does_not_wait_for_the_rest() -> None:
    with fixed_reply_server(HALF, keep_open=True) as address, Client(address, timeout=20) as client:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), Download(client, "/a") as fetch:
            assert fetch.size == 1000
            raise KeyboardInterrupt
        # As the interpreter does when it ends.
        del fetch
        gc.collect()
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(("transport", "mode"), WAYS)
def test_a_terminal_sees_how_much_of_what_takes_long_is_done(
    server: Server, environment: dict[str, str], root: Path, transport: str, mode: str
) -> None:
    with (root / "long").open("wb") as long:
        long.truncate(1 << 30)
    command = [*COMMAND, "get", "/long", "--mode", mode, "--server", server.addresses[transport]]
    assert b"%|" in terminal_output_while_reading(command, environment, until=b"/long", chunk_size=1 << 20)


def test_only_a_terminal_gets_a_progress_bar(server: Server, objmapper: Run, root: Path) -> None:
    assert objmapper("get", "/big").stderr == b""


def test_not_even_a_kill_leaves_anything(started: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    with fixed_reply_server(HALF, keep_open=True) as address:
        process = started("get", "/a", "--server", address, "-o", "out")
        deadline = time.monotonic() + 30
        while not has_nameless_file(process.pid, tmp_path):
            assert time.monotonic() < deadline
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is needed")
@pytest.mark.parametrize(
    ("arguments", "file"), [(["/a", "-o", "out"], "out"), (["-r", "/tree/", "-o", "new"], "new/b")], ids=["one", "many"]
)
def test_a_synced_file_is_on_disk_before_its_rename(
    server: Server, environment: dict[str, str], root: Path, tmp_path: Path, arguments: list[str], file: str
) -> None:
    (root / "tree").mkdir()
    (root / "tree/b").write_bytes(b"hello")
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,linkat,renameat,rename,mkdir"]
    command = [*strace, *COMMAND, "get", *arguments, "--sync"]
    for expected in (["file", "linkat", "directory"], ["file", "linkat", "rename", "directory"]):
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / file).read_bytes() == b"hello"
        os.utime(tmp_path / file, (1, 1))
        seen = []
        for line in come_back(trace.read_text()):
            call, _, rest = line.partition("(")
            if " = 0" in rest and call == "fsync":
                seen.append("file" if "deleted" in rest else "directory")
            elif " = 0" in rest:
                seen.append(call)
        if file.startswith("new") and "mkdir" in seen:
            # The directory is on the disk before there is anything in it.
            assert seen[:2] == ["mkdir", "directory"]
            seen = seen[2:]
        assert seen == expected
