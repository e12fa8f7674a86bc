"""Sockets that stay open when their session has ended: they cost no processor time, they are counted, they do not stay
for ever."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.models import MODELS
from tests.support.raw_client import FDPASS, UNAVAILABLE, RawClient, request
from tests.support.server_process import HOME, ServerProcess

#: Of a second, by a server that has nothing to do. One that spins takes all of it.
IDLE = 0.3
#: A program that serves itself, forks, and has its client leave while the child has copies of all sockets.
FORKS = """
import os, signal, socket, sys, time
from objmapper_server import Config, Server
from tests.support.eventually import eventually
from tests.support.raw_client import COPY, RawClient

with Server(Config(root=sys.argv[1], unix=sys.argv[2], concurrency_model=sys.argv[3])) as server:
    connections = [RawClient("unix:" + sys.argv[2]) for _ in range(20)]
    for v1 in connections:
        assert v1.ask(COPY, "/a").status == 0
    child = os.fork()
    if not child:
        signal.pause()
    for v1 in connections:
        v1.socket.shutdown(socket.SHUT_RDWR)
    assert eventually(lambda: server.statistics().connections == 0)
    began = time.process_time()
    time.sleep(1)
    print(time.process_time() - began)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Concurrency:
    return Concurrency(request.param)


@contextlib.contextmanager
def unread(address: str, count: int, descriptors: int = 1) -> Iterator[list[RawClient]]:
    """Clients that ask for descriptors, read none, and say that they send nothing more."""
    with contextlib.ExitStack() as clients:
        connections = [clients.enter_context(RawClient(address)) for _ in range(count)]
        for v1 in connections:
            v1.send(request(FDPASS, "/a") * descriptors)
            v1.socket.shutdown(socket.SHUT_WR)
        yield connections


def ended(v1: RawClient) -> bool:
    """Whether the server has ended the connection; what it has sent stays unread."""
    v1.socket.setblocking(False)
    try:
        return v1.socket.send(b"x", socket.MSG_NOSIGNAL) == 0
    except BrokenPipeError:
        return True
    except BlockingIOError:
        return False


def processor_time(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_clients_that_read_nothing_and_send_nothing_more_cost_no_time(
    root: Path, tmp_path: Path, model: Concurrency
) -> None:
    with (
        ServerProcess(root, tmp_path / "socket", "--concurrency-model", model) as server,
        unread(server.addresses["unix"], 8, descriptors=3),
    ):
        # Whatever it does about them, it has done within that time.
        time.sleep(0.5)
        before = processor_time(server.pid)
        time.sleep(1)
        assert processor_time(server.pid) - before < IDLE


def test_they_count_as_connections_until_they_leave(config: Config, model: Concurrency) -> None:
    limited = config.replace("test", concurrency_model=model, max_connections=4)
    with Server(limited) as server:
        address = server.addresses["unix"]
        with unread(address, 4) as connections:
            assert eventually(lambda: server.statistics().requests_total == 4)
            assert eventually(lambda: all(map(ended, connections)))
            statistics = server.statistics()
            assert (statistics.connections, statistics.transports["unix"].connections) == (4, 4)
            assert statistics.descriptors_in_flight == 4
            with RawClient(address) as one_more:
                assert one_more.reply(FDPASS).status == UNAVAILABLE
            connections[0].close()
            assert eventually(lambda: server.statistics().connections == 3)
            with RawClient(address) as another:
                assert another.ask(FDPASS, "/a").read() == b"hello"
        assert eventually(lambda: server.statistics().connections == 0)
        assert server.statistics().descriptors_in_flight == 0


def test_they_have_the_time_for_a_request_to_read(config: Config, model: Concurrency) -> None:
    with (
        Server(config.replace("test", concurrency_model=model, request_timeout=1)) as server,
        unread(server.addresses["unix"], 3) as connections,
    ):
        assert eventually(lambda: server.statistics().requests_total == 3)
        assert eventually(lambda: server.statistics().connections == 0)
        statistics = server.statistics()
        assert (statistics.descriptors_in_flight, statistics.timeouts_total) == (0, 3)
        # What was passed is still theirs.
        assert [v1.reply(FDPASS).read() for v1 in connections] == [b"hello"] * 3


@pytest.mark.parametrize("model", MODELS)
def test_a_forked_process_that_has_the_sockets_too_costs_no_time(
    root: Path, tmp_path: Path, model: Concurrency
) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        FORKS,
        str(root),
        str(tmp_path / "socket"),
        model,
    ]
    run = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < IDLE
