"""Settings that are read again while a server runs: what changes, what waits for a restart, and what a slip does."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objmapper_client import Client
from objmapper_server import Concurrency, Config, ConfigError, Server
from objmapper_server.errors import NotRunning
from objmapper_server.settings.access_rules import AccessRules
from objmapper_server.settings.reload import RELOADABLE, Reloaded
from tests.support.raw_client import COPY, OK, UNAVAILABLE, RawClient
from tests.support.server_process import ServerProcess

TOKEN = "a token of sixteen characters"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "o.toml"
    write(path)
    return path


def write(path: Path, **settings: object) -> None:
    values = {"tcp": '"127.0.0.1:0"', "admin_token": f'"{TOKEN}"', **settings}
    path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))


@pytest.fixture
def server(file: Path, root: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(Config.load(file=file, root=root, unix=tmp_path / "s", admin="127.0.0.1:0")) as server:
        yield server


def client_of(server: Server, token: str = TOKEN) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=server.admin_address or "", headers=headers, trust_env=False)


def test_what_was_not_changed_does_not_change(server: Server) -> None:
    assert server.reload() == Reloaded((), ())
    assert str(server.reload()) == "nothing changed"


def test_limits_change_for_connections_that_are_open(server: Server, file: Path) -> None:
    with RawClient(server.addresses["unix"]) as idle:
        assert idle.ask(COPY, "/a").status == OK
        write(file, idle_timeout=0.2)
        assert server.reload().changed == ("idle_timeout",)
        assert idle.at_end()
    assert server.config.sources["idle_timeout"] == str(file)


def test_a_slow_request_is_timed_by_the_new_limit(server: Server, file: Path) -> None:
    write(file, header_timeout=0.2)
    server.reload()
    with RawClient(server.addresses["tcp"]) as slow:
        slow.send(b"2\0")
        assert slow.take(1) == b"\x13"


def test_a_changed_connection_limit_drops_no_connection(server: Server, file: Path) -> None:
    with RawClient(server.addresses["unix"]) as first, RawClient(server.addresses["unix"]) as second:
        assert first.ask(COPY, "/a").status == second.ask(COPY, "/a").status == OK
        write(file, max_connections=1)
        assert server.reload().changed == ("max_connections",)
        assert server.statistics().max_connections == 1
        with RawClient(server.addresses["unix"]) as third:
            assert third.reply(COPY).status == UNAVAILABLE
        assert first.ask(COPY, "/a").status == second.ask(COPY, "/a").status == OK


def test_models_follow_the_file_also_where_they_were_set_meanwhile(server: Server, file: Path) -> None:
    server.set_concurrency(unix=Concurrency.WORK_STEALING)
    assert server.config.sources["concurrency_model"] == "set while it runs"
    write(file, concurrency_model='"tcp=thread-pool"')
    assert server.reload().changed == ("concurrency_model",)
    assert server.statistics().concurrency_model == {"unix": "epoll", "tcp": "thread-pool"}
    assert server.config.sources["concurrency_model"] == str(file)


def test_what_needs_a_restart_is_named_and_stays(server: Server, file: Path, tmp_path: Path) -> None:
    write(file, tcp='"127.0.0.1:1"', cache_size=5, idle_timeout=30)
    assert server.reload() == Reloaded(("idle_timeout",), ("tcp", "cache_size"))
    assert str(server.reload()) == "nothing changed; needs a restart: tcp, cache_size"
    assert server.config.tcp == "127.0.0.1:0"


def test_flags_and_environment_go_on_winning(
    server: Server, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, unix='"/elsewhere"', idle_timeout=30)
    monkeypatch.setenv("OBJMAPPER_IDLE_TIMEOUT", "40")
    assert server.reload() == Reloaded(("idle_timeout",), ())
    assert server.config.idle_timeout == 40
    assert server.config.sources["idle_timeout"] == "OBJMAPPER_IDLE_TIMEOUT"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("idle_timeout = 0", r"idle_timeout \(from .*o\.toml\): expected seconds, more than 0 \(got 0\)"),
        ("idle_timeuot = 5", r"no such setting; did you mean 'idle_timeout'"),
        ("idle_timeout = ", "is not TOML"),
        (None, "cannot read"),
    ],
)
def test_a_slip_changes_nothing_and_is_named(
    server: Server, file: Path, content: str | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = server.config
    if content is None:
        file.unlink()
    else:
        file.write_text(f"request_timeout = 3\n{content}\n")
    with pytest.raises(ConfigError, match=says):
        server.reload()
    assert server.config is before
    with client_of(server) as client:
        answer = client.post("/reload")
    assert answer.status_code == 422
    assert "\n" not in answer.json()["detail"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert caplog.records[0].getMessage().startswith("reload failed, settings unchanged: ")


def test_the_token_changes_at_once(server: Server, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    other = "another token, as long"
    write(file, admin_token=f'"{other}"', idle_timeout=7)
    with client_of(server) as client:
        answer = client.post("/reload")
        assert answer.json() == {"changed": ["admin_token", "idle_timeout"], "needs_restart": []}
        assert client.post("/reload").status_code == 401
    with client_of(server, other) as client:
        assert client.post("/reload").status_code == 200
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("objmapper_server")]
    assert ours[0] == "settings reloaded, changed: admin_token, idle_timeout"
    assert TOKEN not in caplog.text


def test_a_programs_own_settings_are_not_read_again(config: Config) -> None:
    with Server(config) as server, pytest.raises(ValueError, match="a program set"):
        server.reload()


def test_a_server_that_drains_changes_nothing_any_more(server: Server, file: Path) -> None:
    server.drain(timeout=10)
    write(file, idle_timeout=3)
    with client_of(server) as client:
        assert client.post("/reload").status_code == 409
    assert server.config.idle_timeout == 60


def test_what_can_change_is_a_setting() -> None:
    assert set(Config.model_fields) >= RELOADABLE


def test_the_settings_in_force_say_where_they_came_from(server: Server, file: Path, root: Path) -> None:
    with client_of(server) as client:
        document = client.get("/config").json()
        assert list(document) == list(Config.model_fields)
        assert document["root"] == {"value": str(root), "origin": "ROOT", "changeable": False}
        assert document["tcp"] == {"value": "127.0.0.1:0", "origin": str(file), "changeable": False}
        assert document["idle_timeout"] == {"value": 60.0, "origin": "default", "changeable": True}
        assert document["unix_mode"]["value"] == "0600"
        assert document["admin_token"] == {"value": "********", "origin": str(file), "changeable": True}
        assert TOKEN not in client.get("/config").text
        server.set_concurrency(tcp=Concurrency.THREAD_POOL)
        assert client.get("/config").json()["concurrency_model"] == {
            "value": {"unix": "epoll", "tcp": "thread-pool"},
            "origin": "set while it runs",
            "changeable": True,
        }


def test_it_is_read_again_while_it_is_asked(server: Server, file: Path) -> None:
    with RawClient(server.addresses["unix"]) as unix, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(server.addresses["unix"].removeprefix("unix:"))
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            write(file, idle_timeout=50 + os.urandom(1)[0], concurrency_model='"work-stealing"')
            server.reload()
            assert unix.ask(COPY, "/a").status == OK
            write(file, concurrency_model='"epoll"')
            server.reload()
            assert unix.ask(COPY, "/a").status == OK


@pytest.mark.parametrize(
    "content",
    ['access_log = "~nosuchuser/x"', 'unix = "~nosuchuser/x"', f"root = {'[' * 20000}", "a." * 20000 + "b = 1", "\0"],
)
def test_no_file_ends_a_server_that_reads_it_again(root: Path, tmp_path: Path, content: str) -> None:
    file = tmp_path / "o.toml"
    write(file)
    with ServerProcess(root, tmp_path / "s", "--config", str(file)) as server:
        file.write_text(content)
        server.process.send_signal(signal.SIGHUP)
        assert server.process.stderr is not None
        line = server.process.stderr.readline()
        assert re.match(r"objmapper: reload failed, settings unchanged: |objmapper: settings reloaded", line), line
        with Client(server.addresses["unix"]) as client:
            assert client.read("/a") == b"hello"
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.process.stderr.read()


VALUES = st.one_of(
    st.text(max_size=12).map(json.dumps),
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(
        [
            '"~nosuchuser"',
            "1979-05-27",
            "07:32:00",
            "[]",
            "{}",
            "[[1]]",
            "{a = 1}",
            '"9e999GB"',
            "9" * 5000,
            '"\\u0000"',
        ]
    ),
)


@given(written=st.dictionaries(st.sampled_from(list(Config.model_fields)), VALUES, max_size=3))
@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_taken_or_refused_in_one_line(file: Path, root: Path, written: dict[str, str]) -> None:
    file.write_text("".join(f"{name} = {value}\n" for name, value in written.items()), errors="surrogatepass")
    wrong = None
    try:
        AccessRules.from_config(Config.load(file=file, environment=False, root=root))
    except ConfigError as error:
        wrong = str(error)
    assert wrong is None or "\n" not in wrong


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_late_in_a_drain_ends_nothing(root: Path, tmp_path: Path, number: signal.Signals) -> None:
    with (
        ServerProcess(root, tmp_path / "s", "--shutdown-grace", "1") as server,
        RawClient(server.addresses["unix"]) as v1,
    ):
        # A request that is never finished keeps the drain going for its grace.
        v1.send(b"2\0")
        server.process.terminate()
        assert v1.at_end()
        server.process.send_signal(number)
        assert server.process.wait(30) in (0, 1)


def test_a_stop_and_reloads_at_once_end_in_order(root: Path, tmp_path: Path, file: Path) -> None:
    for _ in range(10):
        server = Server(Config.load(file=file, root=root, unix=tmp_path / "s", admin=None, access_log=tmp_path / "log"))
        server.start()
        failures: list[BaseException] = []

        def reload_until_ended(server: Server = server, failures: list[BaseException] = failures) -> None:
            while True:
                try:
                    server.reload()
                except (ValueError, NotRunning):
                    return
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=reload_until_ended) for _ in range(3)]
        for thread in threads:
            thread.start()
        server.stop()
        for thread in threads:
            thread.join(30)
        assert failures == []


#: Run by root: everything is imported before the user changes, because root's own Python may be closed to others.
RELOAD_WITHOUT_THREADS = """
import os, resource, sys
from pathlib import Path
from objmapper_server import Config, Server
import objmapper_server.access_log, objmapper_server.statistics, encodings.idna
folder = Path(sys.argv[1])
os.setgroups([])
os.setresgid(64321, 64321, 64321)
os.setresuid(64321, 64321, 64321)
file = folder / "o.toml"
common = 'tcp = "127.0.0.1:0"\\npool_size = 60\\n'
file.write_text(common + 'concurrency_model = "thread-per-connection"')
with Server(Config.load(file=file, environment=False, root=folder, unix=folder / "s", admin="none")) as server:
    file.write_text(common + 'concurrency_model = "unix=epoll,tcp=thread-pool"\\nmax_connections = 7')
    # Room for the loops of the first transport, not for the pool of the second.
    resource.setrlimit(resource.RLIMIT_NPROC, (len(os.listdir("/proc/self/task")) + 10,) * 2)
    before = server.config, server.statistics().max_connections
    try:
        server.reload()
    except OSError as error:
        assert "thread" in str(error), error
    else:
        raise AssertionError("the models changed")
    assert (server.config, server.statistics().max_connections) == before
    print(*server.statistics().concurrency_model.values())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes a user that has no other threads")
def test_a_change_that_fails_midway_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, 64321, 64321)
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o011:
            parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", RELOAD_WITHOUT_THREADS, str(folder)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "thread-per-connection thread-per-connection\n"), done.stderr
