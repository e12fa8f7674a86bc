"""``objmapper serve`` as a process: what it says, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Run, ServeProcess, one_line
from tests.support.raw_client import COPY, OK, RawClient, request

Serve = Callable[..., ServeProcess]


def test_it_says_in_one_line_where_it_listens(serve: Serve, root: Path, tmp_path: Path) -> None:
    served = serve(root, "--unix", "socket", "--tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    line = rf"objmapper: ready unix:{tmp_path}/socket tcp://127\.0\.0\.1:\d+ admin http://127\.0\.0\.1:\d+\n"
    assert re.fullmatch(line, served.ready)
    assert served.output_lines == [served.ready]
    for transport in ("unix", "tcp"):
        with RawClient(served.address(transport)) as v1:
            assert v1.ask(COPY, "/a").content == b"hello"
    assert httpx.get(f"{served.admin}/readyz", trust_env=False).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(serve: Serve, root: Path, tmp_path: Path, number: signal.Signals) -> None:
    served = serve(root, "--unix", "socket", "--no-admin")
    with RawClient(served.address("unix")) as v1:
        assert v1.ask(COPY, "/a").status == OK
        served.process.send_signal(number)
        assert v1.at_end()
    output, errors = served.process.communicate(timeout=30)
    assert (served.process.returncode, output, errors) == (0, b"", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


def wait_until_draining(admin: str) -> None:
    deadline = time.monotonic() + 30
    with httpx.Client(base_url=admin, trust_env=False) as client:
        while client.get("/readyz").status_code != 503:
            assert time.monotonic() < deadline


def test_requests_in_progress_are_finished(serve: Serve, root: Path) -> None:
    served = serve(root, "--unix", "socket", "--admin", "127.0.0.1:0")
    with RawClient(served.address("unix")) as v1:
        v1.send(request(COPY, "/big"))
        v1.take(9)
        served.process.send_signal(signal.SIGTERM)
        wait_until_draining(served.admin)
        assert v1.take(20 << 20) == (root / "big").read_bytes()
    assert served.process.wait(30) == 0


@pytest.mark.parametrize("cut_short", ["second signal", "grace over"])
def test_it_does_not_wait_for_ever(serve: Serve, root: Path, cut_short: str) -> None:
    grace = "60" if cut_short == "second signal" else "0.2"
    served = serve(root, "--unix", "socket", "--admin", "127.0.0.1:0", "--shutdown-grace", grace)
    with RawClient(served.address("unix")) as v1:
        v1.send(request(COPY, "/big"))
        v1.take(9)
        served.process.send_signal(signal.SIGTERM)
        if cut_short == "second signal":
            wait_until_draining(served.admin)
            served.process.send_signal(signal.SIGTERM)
        _, errors = served.process.communicate(timeout=20)
    assert served.process.returncode == 1
    assert "before all pending requests were finished" in one_line(errors)


def test_it_starts_again_where_another_was_killed(serve: Serve, root: Path, tmp_path: Path) -> None:
    first = serve(root, "--unix", "socket", "--admin", "unix:admin")
    first.process.kill()
    first.process.wait()
    assert (tmp_path / "socket").is_socket()
    second = serve(root, "--unix", "socket", "--admin", "unix:admin")
    with RawClient(second.address("unix")) as v1:
        assert v1.ask(COPY, "/a").status == OK


def test_without_flags_it_is_the_users_own_socket(
    serve: Serve, root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    del environment["OBJMAPPER_SERVER"]
    served = serve(root, "--no-admin")
    assert served.ready == f"objmapper: ready unix:{tmp_path}/objmapper/objmapper.sock\n"


def test_settings_come_from_file_environment_and_flags(
    serve: Serve, root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "o.toml").write_text(f'root = "{root}"\nunix = "from-file"\n[concurrency_model]\ntcp = "epoll"\n')
    environment["OBJMAPPER_UNIX"] = "from-environment"
    environment["OBJMAPPER_ADMIN"] = "127.0.0.1:0"
    served = serve("--config", "o.toml", "--tcp", "127.0.0.1:0", "--concurrency-model", "unix=thread-pool")
    assert served.address("unix") == f"unix:{tmp_path}/from-environment"
    figures = httpx.get(f"{served.admin}/stats", trust_env=False).json()
    assert figures["concurrency_model"]["unix"] == "thread-pool"


def test_what_was_fitted_is_said_before(serve: Serve, root: Path) -> None:
    served = serve(root, "--unix", "socket", "--no-admin", "--max-connections", "1000000")
    assert any("max_connections lowered" in line for line in served.output_lines[:-1])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["root", "--pool-size", "-1"],
            2,
            r"\(from --pool-size\): expected a whole number from 0 .*\(got '-1'\)",
        ),
        (["root", "--concurrency-model", "epol"], 2, "did you mean 'epoll'"),
        (["root", "--config", "none.toml"], 2, "cannot read 'none.toml': No such file"),
        ([], 2, "root: required"),
        (["nowhere", "--unix", "s"], 1, r"/nowhere: cannot serve this root \(No such file or directory\)"),
        (["root", "--unix", "no/such/s"], 1, "no/such/s"),
        (["root", "--unix", "x" * 200], 1, "107"),
        (["root", "--tcp", "no.such.host.invalid:1"], 1, "unknown host 'no.such.host.invalid'"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    objmapper: Run, root: Path, arguments: list[str], code: int, says: str
) -> None:
    got = objmapper("serve", *arguments, "--no-admin")
    assert (got.returncode, got.stdout) == (code, b"")
    assert re.search(says, one_line(got.stderr))


@pytest.mark.parametrize("flag", ["--tcp", "--udp", "--admin"])
def test_a_taken_port_is_said_in_one_line(objmapper: Run, root: Path, tmp_path: Path, flag: str) -> None:
    kind = socket.SOCK_DGRAM if flag == "--udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        no_admin = [] if flag == "--admin" else ["--no-admin"]
        got = objmapper("serve", root, "--unix", "s", flag, address, *no_admin)
    assert got.returncode == 1
    assert re.search(rf"{address}: .*\(Address already in use\); choose another", one_line(got.stderr))
    assert not (tmp_path / "s").exists()


def next_line(served: ServeProcess) -> str:
    assert served.process.stderr is not None
    return served.process.stderr.readline().decode()


def test_a_hangup_reads_the_settings_again(serve: Serve, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text("idle_timeout = 60\n")
    served = serve(root, "--unix", "socket", "--admin", "127.0.0.1:0", "--config", "o.toml")
    with RawClient(served.address("unix")) as v1:
        assert v1.ask(COPY, "/a").status == OK
        file.write_text("idle_timeout = 0.2\ncache_size = 5\n")
        served.process.send_signal(signal.SIGHUP)
        assert next_line(served) == (
            "objmapper: settings reloaded, changed: idle_timeout; needs a restart: cache_size\n"
        )
        assert v1.at_end()
    file.write_text("idle_timeout = soon\n")
    served.process.send_signal(signal.SIGHUP)
    assert next_line(served).startswith("objmapper: reload failed, settings unchanged: --config: 'o.toml' is not TOML")
    served.process.send_signal(signal.SIGTERM)
    _, errors = served.process.communicate(timeout=30)
    assert (served.process.returncode, errors) == (0, b"")


def test_messages_can_be_json(started: Callable[..., subprocess.Popen[bytes]], root: Path, tmp_path: Path) -> None:
    process = started(
        "serve", root, "--unix", "s", "--no-admin", "--log-format", "json", "--max-connections", "1000000"
    )
    assert process.stderr is not None
    fitted, ready = (json.loads(process.stderr.readline()) for _ in range(2))
    assert fitted["level"] == "info"
    assert fitted["message"].startswith("max_connections lowered")
    assert ready["event"] == "ready"
    assert ready["addresses"] == {"unix": f"unix:{tmp_path}/s"}
    assert datetime.fromisoformat(ready["time"]).tzinfo is not None
    failed = started("serve", root, "--unix", "s", "--no-admin", "--log-format", "json")
    _, errors = failed.communicate(timeout=30)
    assert failed.returncode == 1
    assert (json.loads(errors)["level"], errors.count(b"\n")) == ("error", 1)
    process.terminate()
    assert process.communicate(timeout=30)[1] == b""


def test_a_program_that_starts_it_reads_where_it_listens(serve: Serve, root: Path, tmp_path: Path) -> None:
    served = serve(root, "--unix", "s", "--tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json")
    assert served.process.stdout is not None
    document = json.loads(served.process.stdout.readline())
    addresses = {"unix": f"unix:{tmp_path}/s", "tcp": served.address("tcp")}
    assert document == {"pid": served.process.pid, "addresses": addresses, "admin": served.admin}
