"""The access log: renamed under a server that writes it, and what happens where it cannot be opened or written."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from objmapper_server import Config, ConfigError, Server
from tests.support import users
from tests.support.raw_client import COPY, NOT_FOUND, OK, RawClient
from tests.support.server_process import ServerProcess
from tests.support.strace import Strace, threads_of, why_not

LOGROTATE = Path(__file__).parent.parent.parent / "packaging" / "logrotate" / "objmapper"


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.005)


def uris_in(*logs: Path) -> list[str]:
    """What the files tell of, in order; each line must be whole, and none may be lost."""
    lines = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    assert all("lost" not in line for line in lines)
    return [line["uri"] for line in lines]


def recorded_more_than(server: Server, count: int) -> bool:
    return server.recorded_requests().last > count


def ask(server: Server | ServerProcess, uri: str) -> None:
    with RawClient(server.addresses["unix"]) as v1:
        assert v1.ask(COPY, uri).status in (OK, NOT_FOUND)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log" / "access.jsonl"


@pytest.fixture
def server(root: Path, tmp_path: Path, log: Path) -> Iterator[Server]:
    config = Config.load(
        environment=False,
        root=root,
        unix=tmp_path / "s",
        admin=f"unix:{tmp_path}/admin",
        access_log=log,
        access_log_sample=1,
    )
    with Server(config) as server:
        yield server


def test_no_line_is_lost_or_torn_where_it_is_renamed_under_load(root: Path, tmp_path: Path, log: Path) -> None:
    ended = threading.Event()
    requested: list[list[str]] = [[] for _ in range(4)]

    def load(address: str, uris: list[str], index: int) -> None:
        with RawClient(address) as v1:
            # Not faster than a single core can write.
            while not ended.wait(0.001):
                uri = f"/none-{index}-{len(uris)}"
                assert v1.ask(COPY, uri).status == NOT_FOUND
                uris.append(uri)

    with ServerProcess(root, tmp_path / "s", "--access-log", str(log), "--access-log-sample", "1") as server:
        clients = [
            threading.Thread(target=load, args=(server.addresses["unix"], uris, index))
            for index, uris in enumerate(requested)
        ]
        for client in clients:
            client.start()
        renamed: list[Path] = []
        try:
            while len(renamed) < 15:
                wait_for(lambda: log.stat().st_size > 0)
                renamed.append(log.rename(log.with_suffix(f".{len(renamed)}")))
                os.kill(server.pid, signal.SIGHUP)
                wait_for(log.exists)
        finally:
            ended.set()
            for client in clients:
                client.join()
        server.process.terminate()
        assert server.process.wait(30) == 0
    expected = sorted(uri for uris in requested for uri in uris)
    assert sorted(uris_in(*renamed, log)) == expected
    assert len(expected) > 200


def test_once_a_reload_is_answered_the_renamed_file_is_left_alone(server: Server, tmp_path: Path, log: Path) -> None:
    ask(server, "/a")
    wait_for(lambda: log.stat().st_size)
    before = log.rename(tmp_path / "before")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "admin"))) as client:
        assert client.post("http://localhost/reload").status_code == 200
    held = {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}
    assert str(log) in held
    assert str(before) not in held
    ask(server, "/b")
    server.stop()
    assert (uris_in(before), uris_in(log)) == (["/a"], ["/b"])


@pytest.mark.skipif(why_not() != "", reason=why_not() or "strace works")
def test_replies_during_the_stop_are_in_the_log(server: Server, tmp_path: Path, log: Path) -> None:
    # A thread that sends an answer returns from that a third of a second later, and records the request then.
    with (
        RawClient(server.addresses["unix"]) as v1,
        Strace(threads_of(os.getpid()), tmp_path / "calls", "sendto:delay_exit=300000"),
    ):
        assert v1.ask(COPY, "/a").status == OK
        server.stop()
    assert "(DELAYED)" in (tmp_path / "calls").read_text()
    assert uris_in(log) == ["/a"]


def test_settings_that_are_wrong_do_not_keep_it_from_being_reopened(root: Path, tmp_path: Path, log: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text("")
    with Server(Config.load(file=file, root=root, unix=tmp_path / "s", access_log=log, admin="none")) as server:
        file.write_text("idle_timeout = 0")
        log.unlink()
        with pytest.raises(ConfigError):
            server.reload()
        assert log.exists()
    config = Config(root=root, unix=tmp_path / "s", access_log=log)
    with Server(config) as server:
        log.unlink()
        with pytest.raises(ValueError, match="a program set"):
            server.reload()
        assert log.exists()


def test_where_it_cannot_be_opened_the_old_file_is_written_on(
    server: Server, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = log.rename(log.with_suffix(".1"))
    log.mkdir()
    server.reload()
    shutil.move(log.parent, log.parent.with_name("elsewhere"))
    server.reload()
    ask(server, "/a")
    server.stop()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"cannot reopen the access log {log}, so the server writes to the old file: Is a directory",
        f"cannot reopen the access log {log}, so the server writes to the old file: No such file or directory",
    ]
    assert uris_in(log.parent.with_name("elsewhere") / before.name) == ["/a"]


@pytest.mark.skipif(bool(users.why_no_command()), reason=users.why_no_command() or "it can be tried")
def test_without_permission_the_old_file_is_written_on(root: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        shutil.copytree(root, home / "root")
        logs = home / "log"
        logs.mkdir()
        for each in (home, logs):
            os.chown(each, users.UID, users.UID)
        log = logs / "access.jsonl"
        flags = ("--access-log", str(log), "--access-log-sample", "1")
        with ServerProcess(home / "root", home / "s", *flags, by=users.COMMAND) as server:
            before = log.rename(logs / "before")
            os.chown(logs, 0, 0)
            logs.chmod(0o755)
            os.kill(server.pid, signal.SIGHUP)
            assert server.process.stderr is not None
            messages = server.process.stderr.readline()
            assert messages.startswith(
                f"objmapper: cannot reopen the access log {log}, so the server writes to the old file: "
            )
            assert messages.endswith(": Permission denied\n")
            ask(server, "/a")
            server.process.terminate()
            assert server.process.wait(30) == 0
        assert uris_in(before) == ["/a"]


def test_a_full_disk_does_not_end_it(server: Server, log: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log.unlink()
    log.symlink_to("/dev/full")
    server.reload()
    for _ in range(2):
        seen = server.recorded_requests().last
        ask(server, "/unrecorded")
        wait_for(partial(recorded_more_than, server, seen))
        wait_for(lambda: "cannot write" in caplog.text)
    log.unlink()
    server.reload()
    ask(server, "/a")
    wait_for(lambda: log.stat().st_size)
    server.stop()
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["uri"] == "/a"
    assert sum(line.get("lost", 0) for line in lines) + len(lines) == 3
    messages = [record.getMessage() for record in caplog.records if "access log" in record.getMessage()]
    assert messages == [
        f"cannot write the access log {log}, so requests are not recorded: No space left on device",
        f"the access log {log} is written again",
    ]


def test_a_line_that_was_torn_is_taken_back(root: Path, tmp_path: Path, log: Path) -> None:
    """A limit on file sizes cuts the last line that it lets through, as a full disk does."""
    flags = ("--access-log", str(log), "--access-log-sample", "1")
    limited = ["prlimit", "--fsize=1000", "--"]
    with ServerProcess(root, tmp_path / "s", *flags, by=limited) as server:
        for _ in range(20):
            ask(server, "/a")
        assert server.process.stderr is not None
        assert "so requests are not recorded: File too large" in server.process.stderr.readline()
        full = log.rename(log.with_suffix(".1"))
        os.kill(server.pid, signal.SIGHUP)
        wait_for(log.exists)
        ask(server, "/b")
        server.process.terminate()
        assert server.process.wait(30) == 0
    written = uris_in(full)
    assert full.read_bytes().endswith(b"\n")
    assert 0 < full.stat().st_size <= 1000
    (line,) = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    assert (line["uri"], line["lost"]) == ("/b", 20 - len(written))


def test_a_pipe_without_a_reader_is_refused_at_start(root: Path, tmp_path: Path, log: Path) -> None:
    os.mkfifo(log)
    command = [sys.executable, "-m", "objmapper_cli", "serve", str(root), "--unix", str(tmp_path / "s"), "--no-admin"]
    ended = subprocess.run(
        [*command, "--access-log", str(log)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"objmapper: {log}: no process reads this pipe; start its reader first (No such device or address)\n"
    )


def test_a_pipe_whose_reader_is_gone_is_not_waited_for_at_a_reload(server: Server, log: Path) -> None:
    log.unlink()
    os.mkfifo(log)
    server.reload()
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    server.reload()
    ask(server, "/a")
    server.stop()
    with open(reader, "rb") as pipe:
        assert [json.loads(line)["uri"] for line in pipe] == ["/a"]


def test_a_reader_that_does_not_read_holds_up_nothing(root: Path, tmp_path: Path, log: Path) -> None:
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    with ServerProcess(root, tmp_path / "s", "--access-log", str(log), "--access-log-sample", "1") as server:
        # More than the pipe takes.
        for _ in range(fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) // 100):
            ask(server, "/a")
        assert server.process.stderr is not None
        assert "so requests are not recorded: the pipe is full" in server.process.stderr.readline()
        os.kill(server.pid, signal.SIGHUP)
        server.process.terminate()
        assert server.process.wait(30) == 0
    with open(reader, "rb") as pipe:
        lines = [json.loads(line) for line in pipe]
    assert {line["uri"] for line in lines} == {"/a"}


@pytest.mark.skipif(
    shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="no logrotate here"
)
def test_logrotate_rotates_it_as_it_is_shipped(root: Path, tmp_path: Path, log: Path) -> None:
    with ServerProcess(root, tmp_path / "s", "--access-log", str(log), "--access-log-sample", "1") as server:
        text = LOGROTATE.read_text()
        user, group = log.parent.owner(), log.parent.group()
        replaced = {
            "/var/log/objmapper/": f"{log.parent}/",
            "su objmapper objmapper": f"su {user} {group}",
            "systemctl reload objmapper.service": f"kill -HUP {server.pid}",
            "systemctl --quiet is-active objmapper.service": "true",
        }
        for shipped, here in replaced.items():
            assert shipped in text
            text = text.replace(shipped, here)
        (tmp_path / "rotate").write_text(text)
        (tmp_path / "rotate").chmod(0o644)
        log.parent.chmod(0o755)
        command = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(tmp_path / "rotate")]
        environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        for uri in ("/first", "/second"):
            ask(server, uri)
            wait_for(lambda: log.exists() and log.stat().st_size)
            rotated = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
            assert (rotated.returncode, rotated.stderr) == (0, "")
            wait_for(log.exists)
        assert sorted(each.name for each in log.parent.iterdir()) == [
            "access.jsonl",
            "access.jsonl.1",
            "access.jsonl.2.gz",
        ]
        assert uris_in(log.with_suffix(".jsonl.1")) == ["/second"]
