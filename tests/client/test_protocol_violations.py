"""A server of version 1 that lies: the error says which rule was broken, the connection is closed, no descriptor is
left."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import (
    Client,
    ConnectionFailed,
    ObjectNotFound,
    RemoteProtocolError,
    RequestTimeout,
    ServerBusy,
    ServerFailed,
    UnsupportedOperation,
)
from tests.support.both_clients import Call, Caller, call_in_task, call_in_thread
from tests.support.fake_server_v2 import answer_all, fake_server_v2, wait_for_end
from tests.support.misbehaving_server import Script, hang_up, misbehaving_server, passes, say

FILE = __file__
Read = Callable[..., bytes]


@pytest.fixture(params=[call_in_thread, call_in_task], ids=["thread", "task"])
def call(request: pytest.FixtureRequest) -> Caller:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def read(call: Caller) -> Read:
    def read(address: str, mode: str, **options: Any) -> bytes:
        data: bytes = call(address, ("read", "/x"), mode=mode, **options)[0]
        return data

    return read


@pytest.mark.parametrize(
    ("mode", "script", "words"),
    [
        ("fdpass", say(b"\0"), "passed 0 descriptors where one was expected"),
        ("fdpass", passes(b"\0", 2, FILE), "passed 2 descriptors where one was expected"),
        ("fdpass", passes(b"\0", 200, FILE), "passed 200 descriptors"),
        ("fdpass", passes(b"\0\0", 1, FILE), "more than requested"),
        ("fdpass", passes(b"\0", 1, "/"), "not a regular file"),
        ("fdpass", passes(b"\1\0\1x", 1, FILE), "not requested"),
        ("copy", passes(b"\0" + bytes(8), 1, FILE), "not requested"),
        ("copy", passes(b"\0" + bytes(7) + b"\1a", 1, FILE), "not requested"),
        ("copy", say(b"\0" + bytes(7) + b"\1ab"), "more content than announced"),
        ("copy", say(b"\0" + b"\xff" * 8), "more than any file"),
    ],
)
def test_a_broken_rule_is_named(read: Read, tmp_path: Path, mode: str, script: Script, words: str) -> None:
    with misbehaving_server(tmp_path, script) as address, pytest.raises(RemoteProtocolError, match=words):
        read(address, mode)


def test_a_content_that_ends_early_is_a_broken_connection(read: Read, tmp_path: Path) -> None:
    promised = b"\0" + bytes(7) + b"\4ab"
    with misbehaving_server(tmp_path, *[hang_up(promised)] * 3) as address, pytest.raises(ConnectionFailed):
        read(address, "copy")


def test_a_server_that_never_answers_costs_the_timeout(read: Read, tmp_path: Path) -> None:
    start = time.monotonic()
    with misbehaving_server(tmp_path, wait_for_end) as address, pytest.raises(RequestTimeout):
        read(address, "copy", timeout=0.3)
    assert 0.2 < time.monotonic() - start < 5


def test_a_server_that_stops_midway_costs_the_timeout(read: Read, tmp_path: Path) -> None:
    with misbehaving_server(tmp_path, say(b"\0" + bytes(7) + b"\4ab")) as address, pytest.raises(RequestTimeout):
        read(address, "copy", timeout=0.3)


def test_a_connection_that_ends_before_an_answer_is_tried_again(read: Read, tmp_path: Path) -> None:
    good = say(b"\0" + bytes(7) + b"\1a")
    with misbehaving_server(tmp_path, hang_up(), hang_up(), good) as address:
        assert read(address, "copy") == b"a"


def test_tries_end_after_three(read: Read, tmp_path: Path) -> None:
    with misbehaving_server(tmp_path, *[hang_up()] * 3) as address, pytest.raises(ConnectionFailed):
        read(address, "copy")


def test_after_the_first_byte_of_an_answer_there_is_no_other_try(read: Read, tmp_path: Path) -> None:
    good = say(b"\0" + bytes(7) + b"\1a")
    with misbehaving_server(tmp_path, hang_up(b"\0\0"), good) as address, pytest.raises(ConnectionFailed):
        read(address, "copy")


def test_a_busy_server_is_asked_again(read: Read, tmp_path: Path) -> None:
    def busy_then_good(connection: Any) -> None:
        connection.sendall(b"\x14\0\4busy")
        connection.recv(5000)
        say(b"\0" + bytes(7) + b"\1a")(connection)

    with misbehaving_server(tmp_path, busy_then_good) as address:
        assert read(address, "copy") == b"a"


def test_a_server_that_stays_busy_is_reported(read: Read, tmp_path: Path) -> None:
    def always_busy(connection: Any) -> None:
        for _ in range(3):
            connection.sendall(b"\x14\0\4busy")
            connection.recv(5000)

    with misbehaving_server(tmp_path, always_busy) as address, pytest.raises(ServerBusy, match="/x: busy"):
        read(address, "copy")


@pytest.mark.parametrize(("status", "kind"), [(0x01, ObjectNotFound), (0x10, ServerFailed), (0x99, ServerFailed)])
def test_a_status_is_its_error(read: Read, tmp_path: Path, status: int, kind: type[Exception]) -> None:
    with misbehaving_server(tmp_path, say(bytes([status]) + b"\0\4word")) as address, pytest.raises(kind, match="word"):
        read(address, "copy")


def test_an_old_server_hands_out_objects_and_says_what_it_lacks(call: Caller, tmp_path: Path) -> None:
    found = b"\0" + bytes(7) + b"\4abcd"

    def two(connection: Any) -> None:
        connection.sendall(found)
        connection.recv(5000)
        say(found)(connection)

    with misbehaving_server(tmp_path, two) as address:
        calls: list[Call] = [("read", "/x", {"offset": 1, "length": 2}), ("stream", "/x", {"chunk_size": 3})]
        assert call(address, *calls, mode="copy") == [b"bc", [b"abc", b"d"]]
    lacking: list[Call] = [
        ("stat", "/x"),
        ("list",),
        ("delete", "/x"),
        ("put", "/x", b"a"),
        ("put", "/x", bytes(1 << 20)),
    ]
    for operation in lacking:
        with (
            misbehaving_server(tmp_path) as address,
            pytest.raises(UnsupportedOperation, match=f"{operation[0]} is not supported: .*version 1"),
        ):
            call(address, operation)


def test_an_old_server_is_asked_for_many_one_by_one(call: Caller, tmp_path: Path) -> None:
    def many(connection: Any) -> None:
        for _ in range(3):
            connection.sendall(b"\0" + bytes(7) + b"\1a")
            connection.recv(5000)
        connection.sendall(b"\1\0\4word")
        wait_for_end(connection)

    with misbehaving_server(tmp_path, many) as address:
        *objects, error = call(address, ("open_many", ["/a", "/b", "/c", "/none"]), mode="copy")[0]
        for found in objects:
            assert (found.read(), found.etag, found.mtime) == (b"a", None, None)
            found.close()
        assert isinstance(error, ObjectNotFound)


def test_a_server_that_was_replaced_by_a_newer_one_is_noticed(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/misbehaving.sock", mode="copy") as client:
        with misbehaving_server(tmp_path, hang_up(b"\0" + bytes(7) + b"\1a")):
            assert client.read("/x") == b"a"
        with fake_server_v2(tmp_path, answer_all, name="misbehaving.sock"):
            assert client.read("/later") == b"/later"
            assert client.stat("/later").size == 6
