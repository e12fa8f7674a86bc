"""``objmapper config``: what is in force, and what a file would come to."""

import json
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.cli.conftest import Run, one_line

TOKEN = "a token of sixteen characters"


def rows(output: bytes) -> dict[str, list[str]]:
    return {name: rest for name, *rest in (line.split(maxsplit=2) for line in output.decode().splitlines())}


def test_a_running_servers_settings(objmapper: Run, root: Path, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", admin=f"unix:{tmp_path}/admin", admin_token=TOKEN, pool_size=3)
    with Server(config) as server:
        server.set_concurrency(unix=Concurrency.THREAD_POOL)
        got = objmapper("config", "--admin", f"unix:{tmp_path}/admin")
        document = json.loads(objmapper("config", "--json", "--admin", f"unix:{tmp_path}/admin").stdout)
    assert (got.returncode, got.stderr) == (0, b"")
    shown = rows(got.stdout)
    assert shown["pool_size"] == ["3", "the program"]
    assert shown["idle_timeout"] == ["60.0", "default"]
    assert shown["tcp"] == ["none", "default"]
    assert shown["concurrency_model"] == ["unix=thread-pool", "set while it runs"]
    assert shown["admin_token"][0] == "********"
    assert TOKEN.encode() not in got.stdout
    assert document["root"] == {"value": str(root), "origin": "the program", "changeable": False}


def test_without_a_server_those_of_here_and_now(
    objmapper: Run, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment |= {"OBJMAPPER_IDLE_TIMEOUT": "7", "OBJMAPPER_ADMIN_TOKEN": TOKEN}
    # The default endpoint's port, where the machine of the tests may have a server of its own, is not asked.
    environment["OBJMAPPER_ADMIN"] = ""
    got = objmapper("config")
    if got.stderr:
        assert "http://127.0.0.1:9997: no server answers" in one_line(got.stderr)
        shown = rows(got.stdout)
        assert shown["idle_timeout"] == ["7.0", "OBJMAPPER_IDLE_TIMEOUT"]
        assert shown["root"] == ["none", "not given"]
        assert TOKEN.encode() not in got.stdout
    assert got.returncode == 0


def test_a_server_that_was_named_must_be_there(objmapper: Run, environment: dict[str, str]) -> None:
    assert objmapper("config", "--admin", "127.0.0.1:1").returncode == 4
    environment["OBJMAPPER_ADMIN"] = "127.0.0.1:1"
    assert objmapper("config").returncode == 4


def test_a_file_that_is_right(objmapper: Run, environment: dict[str, str], tmp_path: Path) -> None:
    environment["OBJMAPPER_IDLE_TIMEOUT"] = "soon"
    (tmp_path / "o.toml").write_text("idle_timeout = 5\n[concurrency_model]\ntcp = 'epoll'\n")
    got = objmapper("config", "--check", "o.toml")
    assert (got.returncode, one_line(got.stderr)) == (0, "o.toml: valid")
    assert rows(got.stdout)["idle_timeout"] == ["5.0", "o.toml"]
    assert json.loads(objmapper("config", "--check", "o.toml", "--json").stdout)["idle_timeout"]["value"] == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("idle_timeout = 0", "idle_timeout (from o.toml): expected seconds, more than 0 (got 0.0)"),
        ("max_thread = 5", "did you mean 'max_threads'"),
        ("root = ''", "root (from o.toml): expected a path"),
        ("what", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(objmapper: Run, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "o.toml").write_text(content.replace("= 0", "= 0.0"))
    got = objmapper("config", "--check", "o.toml")
    assert (got.returncode, got.stdout) == (2, b"")
    assert says in one_line(got.stderr)
