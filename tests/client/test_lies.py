"""A server that lies: the error says which rule was broken, the connection is closed, no descriptor is left."""

import asyncio
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    DescriptorLimit,
    ObjectNotFound,
    RemoteProtocolError,
    RequestTimeout,
    ServerBusy,
    ServerFailed,
    UnixAddress,
    _exchange,
    _waiting,
)
from objmapper_client._transport import Connection
from objmapper_client.protocol import Mode
from tests.client.lying_server import Script, hang_up, lying_server, passes, say, wait_for_end

FILE = __file__
Read = Callable[..., bytes]


def read_sync(address: str, mode: str, **options: Any) -> bytes:
    with Client(address, mode=mode, **options) as client:
        return client.read("/x")


def read_async(address: str, mode: str, **options: Any) -> bytes:
    async def read() -> bytes:
        async with AsyncClient(address, mode=mode, **options) as client:
            return await client.read("/x")

    return asyncio.run(read())


@pytest.fixture(params=[read_sync, read_async], ids=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("mode", "script", "words"),
    [
        ("fdpass", say(b"\0"), "passed 0 descriptors where one was due"),
        ("fdpass", passes(b"\0", 2, FILE), "passed 2 descriptors where one was due"),
        ("fdpass", passes(b"\0", 200, FILE), "passed 200 descriptors"),
        ("fdpass", passes(b"\0\0", 1, FILE), "more than it was asked for"),
        ("fdpass", passes(b"\0", 1, "/"), "no regular file"),
        ("fdpass", passes(b"\1\0\1x", 1, FILE), "not asked for"),
        ("copy", passes(b"\0" + bytes(8), 1, FILE), "not asked for"),
        ("copy", passes(b"\0" + bytes(7) + b"\1a", 1, FILE), "not asked for"),
        ("copy", say(b"\0" + bytes(7) + b"\1ab"), "more content than it promised"),
        ("copy", say(b"\0" + b"\xff" * 8), "more than any file"),
    ],
)
def test_a_broken_rule_is_named(read: Read, tmp_path: Path, mode: str, script: Script, words: str) -> None:
    with lying_server(tmp_path, script) as address, pytest.raises(RemoteProtocolError, match=words):
        read(address, mode)


def test_a_content_that_ends_early_is_a_broken_connection(read: Read, tmp_path: Path) -> None:
    promised = b"\0" + bytes(7) + b"\4ab"
    with lying_server(tmp_path, *[hang_up(promised)] * 3) as address, pytest.raises(ConnectionFailed):
        read(address, "copy")


def test_a_server_that_never_answers_costs_the_timeout(read: Read, tmp_path: Path) -> None:
    start = time.monotonic()
    with lying_server(tmp_path, wait_for_end) as address, pytest.raises(RequestTimeout):
        read(address, "copy", timeout=0.3)
    assert 0.2 < time.monotonic() - start < 5


def test_a_server_that_stops_midway_costs_the_timeout(read: Read, tmp_path: Path) -> None:
    with lying_server(tmp_path, say(b"\0" + bytes(7) + b"\4ab")) as address, pytest.raises(RequestTimeout):
        read(address, "copy", timeout=0.3)


def test_a_connection_that_ends_before_an_answer_is_tried_again(read: Read, tmp_path: Path) -> None:
    good = say(b"\0" + bytes(7) + b"\1a")
    with lying_server(tmp_path, hang_up(), hang_up(), good) as address:
        assert read(address, "copy") == b"a"


def test_tries_end_after_three(read: Read, tmp_path: Path) -> None:
    with lying_server(tmp_path, *[hang_up()] * 3) as address, pytest.raises(ConnectionFailed):
        read(address, "copy")


def test_after_the_first_byte_of_an_answer_there_is_no_other_try(read: Read, tmp_path: Path) -> None:
    good = say(b"\0" + bytes(7) + b"\1a")
    with lying_server(tmp_path, hang_up(b"\0\0"), good) as address, pytest.raises(ConnectionFailed):
        read(address, "copy")


def test_a_busy_server_is_asked_again(read: Read, tmp_path: Path) -> None:
    def busy_then_good(connection: Any) -> None:
        connection.sendall(b"\x14\0\4busy")
        connection.recv(5000)
        say(b"\0" + bytes(7) + b"\1a")(connection)

    with lying_server(tmp_path, busy_then_good) as address:
        assert read(address, "copy") == b"a"


def test_a_server_that_stays_busy_is_reported(read: Read, tmp_path: Path) -> None:
    def always_busy(connection: Any) -> None:
        for _ in range(3):
            connection.sendall(b"\x14\0\4busy")
            connection.recv(5000)

    with lying_server(tmp_path, always_busy) as address, pytest.raises(ServerBusy, match="/x: busy"):
        read(address, "copy")


@pytest.mark.parametrize(("status", "kind"), [(0x01, ObjectNotFound), (0x10, ServerFailed), (0x99, ServerFailed)])
def test_a_status_is_its_error(read: Read, tmp_path: Path, status: int, kind: type[Exception]) -> None:
    with lying_server(tmp_path, say(bytes([status]) + b"\0\4word")) as address, pytest.raises(kind, match="word"):
        read(address, "copy")


def test_a_process_at_its_descriptor_limit_is_told_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(ours, UnixAddress("pair"))
    taken: list[int] = []
    with theirs, open(FILE, "rb") as file:
        socket.send_fds(theirs, [b"\0"], [file.fileno()])
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            # Not one for the waiter either: it sleeps in poll(2), which needs none.
            with pytest.raises(DescriptorLimit, match="limit"):
                _waiting.run(_exchange.begin(connection, b"request", "/x", Mode.FDPASS), 5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
            connection.close()
