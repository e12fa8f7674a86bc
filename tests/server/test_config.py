"""Settings: what is taken, what is refused and how, and where each value came from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from objmapper_server import Concurrency, Config, ConfigError
from objmapper_server.settings.listen_address import ListenAddress


def test_the_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    config = Config(root=tmp_path, unix=tmp_path / "s")
    assert config.model_dump() == {
        "root": tmp_path,
        "unix": tmp_path / "s",
        "unix_mode": 0o600,
        "tcp": None,
        "udp": None,
        "udp_trusted": (),
        "udp_rate_limit": 128 << 20,
        "admin": None,
        "admin_host": (),
        "admin_token": None,
        "concurrency_model": Concurrency.AUTO,
        "pool_size": 0,
        "max_queue_depth": 100,
        "max_threads": 1000,
        "max_connections": 10_000,
        "allow_uid": (),
        "allow_gid": (),
        "allow_prefix": {},
        "max_connections_per_uid": 0,
        "max_descriptors_per_uid": 0,
        "optimize_for": "throughput",
        "async_storage": True,
        "storage_pool_size": 4,
        "cache_size": 1 << 30,
        "cache_max_age": 60,
        "max_output_buffer": 4 << 20,
        "max_output_memory": 256 << 20,
        "max_object_size": 0,
        "min_upload_rate": 1 << 10,
        "upload_timeout": 3600.0,
        "max_uploads_per_uid": 0,
        "max_reserved_per_uid": 1 << 30,
        "follow_symlinks": False,
        "writable": False,
        "idle_timeout": 60,
        "header_timeout": 10,
        "request_timeout": 30,
        "shutdown_grace": 10,
        "log_format": "text",
        "origins": {},
        "disk_cache": None,
        "disk_cache_size": 10 << 30,
        "access_log": None,
        "access_log_sample": 100,
    }


def test_it_is_frozen(tmp_path: Path) -> None:
    config = Config(root=tmp_path)
    with pytest.raises(ValidationError):
        config.pool_size = 3


def test_code_does_not_read_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJMAPPER_POOL_SIZE", "7")
    monkeypatch.setenv("OBJMAPPER_ADMIN", "127.0.0.1:1")
    config = Config(root=tmp_path)
    assert (config.pool_size, config.admin) == (0, None)
    assert config.sources["pool_size"] == "default"
    assert config.sources["root"] == "the program"


def test_without_a_transport_it_is_the_users_own_socket(tmp_path: Path) -> None:
    config = Config(root=tmp_path)
    assert config.unix == tmp_path / "objmapper" / "objmapper.sock"
    assert config.sources["unix"] == "default"
    assert config.transports == ("unix",)
    assert Config(root=tmp_path, tcp="localhost").unix is None
    assert Config(root=tmp_path, udp="localhost").transports == ("udp",)


@pytest.mark.parametrize("address", ["unix:/elsewhere/socket", "tcp://elsewhere:9999", "not an address"])
def test_where_clients_go_does_not_say_where_a_server_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("OBJMAPPER_SERVER", address)
    assert Config(root=tmp_path).unix == tmp_path / "objmapper" / "objmapper.sock"


def test_flags_win_then_the_environment_then_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "objmapper.toml"
    file.write_text(f'root = "{tmp_path}"\npool_size = 1\nmax_threads = 1\nmax_queue_depth = 1\ncache_size = "1KiB"\n')
    monkeypatch.setenv("OBJMAPPER_POOL_SIZE", "2")
    monkeypatch.setenv("OBJMAPPER_MAX_THREADS", "2")
    monkeypatch.setenv("OBJMAPPER_ASYNC_STORAGE", "true")
    config = Config.load(file=file, pool_size="3", optimize_for=None)
    assert (config.pool_size, config.max_threads, config.max_queue_depth, config.cache_size) == (3, 2, 1, 1024)
    assert config.async_storage is True
    assert config.sources["pool_size"] == "--pool-size"
    assert config.sources["max_threads"] == "OBJMAPPER_MAX_THREADS"
    assert config.sources["max_queue_depth"] == str(file)
    assert config.sources["optimize_for"] == "default"
    assert config.admin == "127.0.0.1:9997"
    assert config.sources["admin"] == "default"


@pytest.mark.parametrize("form", ["http://127.0.0.1:9000", "127.0.0.1:9000", "http://127.0.0.1:9000/"])
def test_the_admin_variable_that_the_client_reads_serves_the_server_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("OBJMAPPER_ADMIN", form)
    monkeypatch.setenv("OBJMAPPER_SERVER", f"unix:{tmp_path}/s")
    assert Config.load(root=tmp_path).admin == "127.0.0.1:9000"


@pytest.mark.parametrize("word", ["none", "off", "OFF"])
def test_what_may_be_absent_can_be_switched_off_by_a_word(tmp_path: Path, word: str) -> None:
    config = Config.load(root=tmp_path, admin=word, unix=word, tcp="127.0.0.1:0")
    assert (config.admin, config.unix) == (None, None)


def test_relative_paths_are_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(root="data", unix="unix:o.sock", admin="unix:admin.sock")
    assert (config.root, config.unix) == (tmp_path / "data", tmp_path / "o.sock")
    assert config.admin == f"unix:{tmp_path}/admin.sock"


WRONG = [
    ("pool_size", -1, r"expected a whole number from 0 .*\(got -1\)"),
    ("pool_size", "many", r"\(got 'many'\)"),
    ("max_queue_depth", 0, r"expected a whole number from 1 .*\(got 0\)"),
    ("max_connections", 0, "from 1"),
    ("max_threads", 2.5, r"\(got 2\.5\)"),
    ("storage_pool_size", 0, "from 1"),
    ("concurrency_model", "thread-pol", r"expected one of .* \(got 'thread-pol'\); did you mean 'thread-pool'?"),
    ("concurrency_model", "tpc=epoll", r"expected one of unix, tcp, udp \(got 'tpc'\); did you mean 'tcp'?"),
    ("concurrency_model", {"tcp": "treads"}, r"\(got 'treads'\)"),
    ("concurrency_model", 7, r"\(got 7\)"),
    ("optimize_for", "latncy", r"expected latency or throughput \(got 'latncy'\); did you mean 'latency'?"),
    ("optimize_for", 1, "latency or throughput"),
    ("async_storage", "maybe", r"expected true or false \(got 'maybe'\)"),
    ("cache_size", "1 XB", r"512MB or 1GiB.*\(got '1 XB'\)"),
    ("cache_size", -1, r"\(got -1\)"),
    ("cache_max_age", 0, "seconds, more than 0"),
    ("max_output_buffer", "64KiB", "bytes, at least 128KiB"),
    ("max_output_memory", 0, "bytes, at least 1MiB"),
    ("idle_timeout", 0, "seconds, more than 0"),
    ("request_timeout", float("nan"), r"\(got nan\)"),
    ("header_timeout", float("inf"), r"\(got inf\)"),
    ("shutdown_grace", -0.1, "seconds, 0 or more"),
    ("tcp", "::1:99", "brackets"),
    ("tcp", "host:99999", r"expected HOST:PORT .*\(got 'host:99999'\)"),
    ("tcp", "", "expected HOST:PORT"),
    ("udp", "host:x", r"expected HOST:PORT .*\(got 'host:x'\)"),
    (
        "udp_trusted",
        "10.0.0.0/33",
        r"expected a network such as .* \('10.0.0.0/33' does not appear to be an IPv4 or IPv6 network\)",
    ),
    ("udp_trusted", ["10.0.0.0/8", "here"], "'here' does not appear"),
    ("udp_trusted", "", "'' does not appear"),
    ("udp_trusted", 7, r"expected networks.*\(got 7\)"),
    ("udp_rate_limit", -1, r"\(got -1\)"),
    ("udp_rate_limit", "fast", r"100MB.*\(got 'fast'\)"),
    ("admin", "unix:", "expected a path"),
    ("admin", "https://x", "expected HOST:PORT"),
    ("unix", "", "expected a path"),
    ("unix", "a\0b", "expected a path without NUL"),
    ("root", None, "the directory whose files are served"),
    ("pol_size", 1, "no such setting; did you mean 'pool_size'?"),
]


@pytest.mark.parametrize(("field", "value", "says"), WRONG, ids=[f"{field}-{value!r}" for field, value, _ in WRONG])
def test_a_wrong_value_is_refused_in_one_line(tmp_path: Path, field: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")) as caught:
        Config(**({"root": tmp_path, "unix": tmp_path / "s"} | {field: value}))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert "\n" not in str(caught.value)


def test_a_refusal_says_where_the_value_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "o.toml"
    file.write_text("max_threads = 0\n")
    with pytest.raises(ConfigError, match=rf"max_threads \(from {file}\): expected a whole number .*\(got 0\)"):
        Config.load(file=file, root=tmp_path)
    with pytest.raises(ConfigError, match=r"max_threads \(from --max-threads\)"):
        Config.load(file=file, root=tmp_path, max_threads="x")
    monkeypatch.setenv("OBJMAPPER_IDLE_TIMEOUT", "soon")
    with pytest.raises(
        ConfigError, match=r"idle_timeout \(from OBJMAPPER_IDLE_TIMEOUT\): expected seconds, more than 0 \(got 'soon'\)"
    ):
        Config.load(root=tmp_path)


def test_mistyped_names_are_refused_with_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "o.toml"
    file.write_text("max_thread = 5\n")
    with pytest.raises(ConfigError, match=r"max_thread \(from .*\): no such setting; did you mean 'max_threads'\?"):
        Config.load(file=file, root=tmp_path)
    monkeypatch.setenv("OBJMAPPER_SOMETHING_ELSE_ENTIRELY", "1")
    monkeypatch.setenv("OBJMAPPER_SERVER", f"unix:{tmp_path}/s")
    assert Config.load(root=tmp_path).pool_size == 0
    monkeypatch.setenv("OBJMAPPER_POOLSIZE", "1")
    with pytest.raises(ConfigError, match=r"OBJMAPPER_POOLSIZE.*did you mean 'POOL_SIZE'\?"):
        Config.load(root=tmp_path)


@pytest.mark.parametrize("content", [b"root = ", b"root = \xff", b"[root]\n"])
def test_a_file_that_is_no_settings_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "o.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"o\.toml"):
        Config.load(file=file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: cannot read '.*/none.toml': No such file"):
        Config.load(file=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("1GiB", 1 << 30), ("1.5 KiB", 1536), (0, 0), ("4096", 4096)],
)
def test_sizes_take_units(tmp_path: Path, text: str | int, size: int) -> None:
    assert Config(root=tmp_path, cache_size=text).cache_size == size


@pytest.mark.parametrize(
    "given_as",
    [
        ["thread-pool", "tcp=epoll"],
        "thread-pool,tcp=epoll",
        {"tcp": "epoll", "unix": Concurrency.THREAD_POOL},
        ("tcp=epoll", "unix=thread-pool"),
    ],
)
def test_models_are_for_all_transports_or_for_one(tmp_path: Path, given_as: list[str]) -> None:
    config = Config(root=tmp_path, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model=given_as)
    assert config.models == {"unix": Concurrency.THREAD_POOL, "tcp": Concurrency.EPOLL}


def test_the_file_and_the_environment_give_models_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "o.toml"
    file.write_text('unix = "/tmp/s"\ntcp = "127.0.0.1:0"\n[concurrency_model]\ntcp = "epoll"\n')
    assert Config.load(file=file, root=tmp_path).models["tcp"] is Concurrency.EPOLL
    monkeypatch.setenv("OBJMAPPER_CONCURRENCY_MODEL", "tcp=work-stealing")
    assert Config.load(file=file, root=tmp_path).models["tcp"] is Concurrency.WORK_STEALING


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost", "localhost", 9999),
        (":80", "", 80),
        ("[::1]", "::1", 9999),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_listening_points(text: str, host: str, port: int) -> None:
    assert ListenAddress.parse(text, 9999) == ListenAddress(host, port)


@given(st.text(max_size=30))
def test_any_text_is_a_listening_point_that_reads_back_or_is_refused(text: str) -> None:
    try:
        point = ListenAddress.parse(text, 9999)
    except ValueError:
        return
    assert ListenAddress.parse(str(point), 1) == point


@pytest.mark.parametrize(
    "given_as", ["10.1.2.3/8, 2001:db8::/32", ["10.0.0.0/8", "2001:db8::/32"], ("10.0.0.0/8,2001:db8::/32",)]
)
def test_networks_are_one_or_several(tmp_path: Path, given_as: str | list[str]) -> None:
    assert Config(root=tmp_path, udp_trusted=given_as).udp_trusted == ("10.0.0.0/8", "2001:db8::/32")


def test_the_file_and_the_environment_give_networks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "o.toml"
    file.write_text('udp = "127.0.0.1"\nudp_trusted = ["10.0.0.0/8"]\n')
    assert Config.load(file=file, root=tmp_path).udp_trusted == ("10.0.0.0/8",)
    assert Config.load(file=file, root=tmp_path).udp == "127.0.0.1:9998"
    monkeypatch.setenv("OBJMAPPER_UDP_TRUSTED", "192.0.2.0/24,::/0")
    assert Config.load(file=file, root=tmp_path).udp_trusted == ("192.0.2.0/24", "::/0")
    monkeypatch.setenv("OBJMAPPER_UDP_TRUSTED", "none")
    assert Config.load(file=file, root=tmp_path).udp_trusted == ()


@pytest.mark.parametrize("given_as", ["thread-per-connection", "udp=thread-per-connection"])
def test_datagrams_have_no_connections_to_give_threads_to(tmp_path: Path, given_as: str) -> None:
    with pytest.raises(ConfigError, match=r"concurrency_model \(from --concurrency-model\): udp has no connections"):
        Config.load(root=tmp_path, udp="127.0.0.1:0", concurrency_model=[given_as])
    with pytest.raises(ConfigError, match="concurrency_model: udp has no connections"):
        Config(root=tmp_path, udp="127.0.0.1:0", concurrency_model=given_as)
    # Where UDP is not served it does not matter.
    assert Config(root=tmp_path, unix=tmp_path / "s", concurrency_model=given_as).models.keys() == {"unix"}


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("666", 0o666), ("0o600", 0o600)])
def test_permissions_are_octal(tmp_path: Path, text: str, mode: int) -> None:
    assert Config(root=tmp_path, unix_mode=text).unix_mode == mode


def test_permissions_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unix_mode"):
        Config(root=tmp_path, unix_mode="rw")


def test_a_secret_is_in_no_message() -> None:
    for wrong in ("short secret", "  a secret of sixteen or more ", "a secret with \x00 in it", 12345678901234567):
        with pytest.raises(ConfigError) as caught:
            Config(root="/", unix="/s", admin_token=wrong)  # type: ignore[arg-type]
        assert str(wrong).strip() not in str(caught.value)
        assert "admin_token" in str(caught.value)
    secrets = {name for name, field in Config.model_fields.items() if not field.repr}
    assert secrets == {"admin_token"}


@pytest.mark.parametrize("name", ["http://x", "a b", "x:80", "", "-x", "*.example", "a/b"])
def test_a_host_name_is_one(name: str) -> None:
    with pytest.raises(ConfigError, match=r"admin_host: expected a host name"):
        Config(root="/", unix="/s", admin_host=[name])
