"""The clients against a real server: what a program sees."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import (
    Client,
    ConnectionFailed,
    InvalidRequest,
    LocalProtocolError,
    Mode,
    ObjectNotFound,
    PermissionDenied,
    RequestTimeout,
    UnsupportedMode,
)
from objmapper_server import Config, Server
from tests.support.both_clients import Caller

SIZES = {"empty": 0, "small": 1000, "large": 3_000_000}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for name, size in SIZES.items():
        (root / name).write_bytes(os.urandom(size))
    (root / "directory").mkdir()
    return root


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("run") / "o.sock"
    with Server(Config(root=root, unix=path, tcp="127.0.0.1:0")) as server:
        for address in server.addresses.values():
            with Client(address) as client:
                client.read("/small")
        yield server


@pytest.fixture(params=["unix", "tcp"])
def address(server: Server, request: pytest.FixtureRequest) -> str:
    return server.addresses[request.param]


@pytest.mark.parametrize("name", SIZES)
def test_every_verb_gives_the_object(call: Caller, address: str, root: Path, name: str) -> None:
    content, uri = (root / name).read_bytes(), f"/{name}"
    buffer = bytearray(len(content) + 5)
    whole, size, chunks, found = call(
        address, ("read", uri), ("readinto", uri, buffer), ("stream", uri, {"chunk_size": 4096}), ("open", uri)
    )
    assert whole == content == b"".join(chunks) == buffer[:size]
    assert size == len(content)
    assert max(map(len, chunks), default=0) <= 4096
    with found:
        assert (found.size, found.read(), found.uri) == (len(content), content, uri)
        assert found.view() == content
        assert found.mode is (Mode.FDPASS if address.startswith("unix") else Mode.COPY)
        assert found.mtime == int((root / name).stat().st_mtime)
        assert found.etag == call(address, ("stat", uri))[0].etag


@pytest.mark.parametrize("mode", [None, "copy", "splice"])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (10, 20), (5, None), (0, 1 << 18), (7, 1 << 18), (7, 1_000_000), (2_999_990, 100), (9_999_999, 5)],
)
def test_a_range_is_what_a_slice_would_be(
    call: Caller, address: str, root: Path, mode: str | None, offset: int, length: int | None
) -> None:
    content = (root / "large").read_bytes()
    expected = content[offset:] if length is None else content[offset : offset + length]
    buffer = bytearray(3_000_000 if length is None else length)
    asked = {"offset": offset, "length": length, "mode": mode}
    announced: list[int] = []
    read, chunks, count = call(
        address,
        ("read", "/large", asked),
        ("stream", "/large", asked | {"chunk_size": 70_000, "announce": announced.append}),
        ("readinto", "/large", buffer, {"offset": offset, "mode": mode}),
    )
    assert read == b"".join(chunks) == buffer[:count] == expected
    assert announced == [len(expected)]


@pytest.mark.parametrize("given", [{"offset": -1}, {"offset": -1, "mode": "copy"}])
def test_no_range_begins_before_the_object(call: Caller, address: str, given: dict[str, object]) -> None:
    for operation in ("read", "stream"):
        with pytest.raises(LocalProtocolError, match="must be >= 0"):
            call(address, (operation, "/small", given | ({"mode": "copy"} if "tcp" in address else {})))


def test_many_are_opened_in_one_round_trip_with_errors_among_them(call: Caller, address: str, root: Path) -> None:
    names = ["small", "none", "large", "directory", "empty", "../x", ""] * 100
    results = call(address, ("open_many", [f"/{name}" if name else "" for name in names]))[0]
    for name, result in zip(names, results, strict=True):
        if name in SIZES:
            with result:
                assert result.size == SIZES[name]
                assert result.pread(9, 0) == (root / name).read_bytes()[:9]
        else:
            kinds = {
                "none": ObjectNotFound,
                "directory": PermissionDenied,
                "../x": InvalidRequest,
                "": LocalProtocolError,
            }
            assert type(result) is kinds[name]


@pytest.mark.parametrize(
    ("uri", "kind"),
    [("/none", ObjectNotFound), ("/directory", PermissionDenied), ("/../x", InvalidRequest), ("", LocalProtocolError)],
)
def test_a_refusal_is_its_error_and_the_connection_stays(address: str, uri: str, kind: type[Exception]) -> None:
    with Client(address, max_connections=1) as client:
        client.read("/small")
        connection = client._pool.shared
        with pytest.raises(kind):
            client.read(uri)
        client.read("/small")
        assert client._pool.shared is connection is not None


def test_a_missing_object_is_a_missing_file(address: str) -> None:
    with Client(address) as client, pytest.raises(FileNotFoundError) as caught:
        client.read("/none")
    assert caught.value.errno == 2


def test_descriptors_do_not_pass_over_tcp(server: Server) -> None:
    with Client(server.addresses["tcp"], mode="fdpass") as client, pytest.raises(UnsupportedMode, match="Unix"):
        client.read("/small")


def test_a_missing_server_is_a_failed_connection(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="not reached"):
        Client(tmp_path / "none").read("/x")
    with pytest.raises(ConnectionFailed, match="unknown host"):
        Client("tcp://no-such-host.invalid:1").read("/x")


def test_descriptors_close_on_exec(address: str) -> None:
    with Client(address) as client, client.open("/small") as found:
        assert not os.get_inheritable(found.fileno())
        assert client._pool.shared is not None
        assert not client._pool.shared.connection.socket.get_inheritable()


def test_a_pool_that_is_used_up_waits_and_then_says_so(address: str) -> None:
    with Client(address, max_connections=1, timeout=0.8, mode="copy") as client:
        chunks = client.stream("/large", chunk_size=1000)
        next(chunks)
        with pytest.raises(RequestTimeout, match="max_connections"):
            client.read("/small")
        chunks.close()
        assert client.read("/small")


def test_a_stream_left_early_costs_its_connection_alone(address: str) -> None:
    with Client(address, max_connections=1, mode="copy") as client:
        for _ in range(5):
            for _chunk in client.stream("/large", chunk_size=1000):
                break
        assert client.read("/small")


def test_a_connection_that_the_server_closed_is_replaced(root: Path, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", idle_timeout=0.6)
    with Server(config) as server, Client(server.addresses["unix"], attempts=1) as client:
        client.read("/small")
        closed = threading.Event()
        while not closed.is_set():
            if server.statistics().transports["unix"].connections == 0:
                closed.set()
        assert client.read("/small") == (root / "small").read_bytes()
