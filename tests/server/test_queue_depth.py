"""What takes a place in the bounded queue of a pool: requests, and nothing else."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from objmapper_server import Concurrency
from tests.support.eventually import eventually
from tests.support.raw_client import COPY, OK, TIMEOUT, UNAVAILABLE, RawClient, request
from tests.support.raw_client_v2 import hello
from tests.support.server_process import ServerProcess

POOLS = [Concurrency.THREAD_POOL, Concurrency.WORK_STEALING]
CROWD = 50


@pytest.mark.parametrize("model", POOLS)
@pytest.mark.parametrize("message", [request(COPY, "/a"), hello()], ids=["1", "2"])
def test_a_client_that_sends_byte_by_byte_occupies_no_thread(
    root: Path, tmp_path: Path, model: Concurrency, message: bytes
) -> None:
    flags = ("--concurrency-model", model, "--max-queue-depth", "1")
    with ServerProcess(root, tmp_path / "socket", *flags) as server, ExitStack() as stack:
        honest, *crowd = (stack.enter_context(RawClient(server.addresses["unix"])) for _ in range(CROWD + 1))
        assert honest.ask(COPY, "/a").status == OK
        # The first bit finds connections that have said nothing, the others find requests that have begun.
        for bit in (message[:1], message[1:3], message[3:4]):
            with server.stopped():
                for v1 in crowd:
                    v1.send(bit)
                honest.send(request(COPY, "/a"))
            assert honest.reply(COPY).status == OK
        # They are no less understood for that.
        for v1 in crowd:
            v1.send(message[4:])
            assert v1.take(1)


@pytest.mark.parametrize("model", POOLS)
def test_nor_does_a_client_that_times_out(root: Path, tmp_path: Path, model: Concurrency) -> None:
    flags = ("--concurrency-model", model, "--max-queue-depth", "1", "--header-timeout", "0.2")
    with ServerProcess(root, tmp_path / "socket", *flags) as server, ExitStack() as stack:
        honest, *crowd = (stack.enter_context(RawClient(server.addresses["unix"])) for _ in range(CROWD + 1))
        for v1 in crowd:
            v1.send(b"2")
        # A single one that has said nothing yet may take the place for as long as it is looked at.
        assert eventually(lambda: honest.ask(COPY, "/a").status == OK)
        with server.stopped():
            over = time.monotonic() + 0.3
            assert eventually(lambda: time.monotonic() > over)
            for v1 in crowd:
                v1.send(b"\0")
            honest.send(request(COPY, "/a"))
        assert honest.reply(COPY).status == OK
        for v1 in crowd:
            assert v1.reply(COPY).status == TIMEOUT
        # Whatever they send yet is dropped.
        with server.stopped():
            for v1 in crowd:
                v1.send(bytes(100))
            honest.send(request(COPY, "/a"))
        assert honest.reply(COPY).status == OK


@pytest.mark.parametrize("model", POOLS)
def test_requests_do(root: Path, tmp_path: Path, model: Concurrency) -> None:
    flags = ("--concurrency-model", model, "--max-queue-depth", "1")
    with ServerProcess(root, tmp_path / "socket", *flags) as server, ExitStack() as stack:
        crowd = [stack.enter_context(RawClient(server.addresses["unix"])) for _ in range(CROWD)]
        for v1 in crowd:
            # On a busy machine the one place may still be taken by the connection before.
            assert eventually(lambda v1=v1: v1.ask(COPY, "/a").status == OK)  # type: ignore[misc]
        with server.stopped():
            for v1 in crowd:
                v1.send(request(COPY, "/a"))
        statuses = [v1.reply(COPY).status for v1 in crowd]
        assert set(statuses) == {OK, UNAVAILABLE}
        assert statuses.count(OK) < CROWD // 2
