"""Starting, switching, draining, forking: what the machine cannot give, and what comes at the same time."""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from objmapper_client import Client
from objmapper_server import Concurrency, Config, Server
from tests.support import users
from tests.support.eventually import eventually
from tests.support.raw_client import COPY, request
from tests.support.server_process import ServerProcess

MODELS = [
    Concurrency.EPOLL,
    Concurrency.THREAD_POOL,
    Concurrency.WORK_STEALING,
    Concurrency.THREAD_PER_CONNECTION,
]
ANSWER = b"\0" + (7).to_bytes(8, "big") + b"content"
#: UNAVAILABLE.
BUSY = b"\x14"
ASKED = request(COPY, "/a")
HOME = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a").write_bytes(b"content")
    return tmp_path / "root"


def config(root: Path, model: Concurrency, **changes: object) -> Config:
    settings = {"tcp": "127.0.0.1:0", "admin": None, "pool_size": 4, "concurrency_model": model, **changes}
    return Config(root=root, unix=root.parent / "socket", **settings)  # type: ignore[arg-type]


@contextmanager
def descriptors_for(more: int) -> Iterator[None]:
    """In the block this process may open this number of further files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1 + more, before[1]))
    try:
        # Those below the highest that are free.
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for descriptor in taken[len(taken) - more :]:
            os.close(descriptor)
        del taken[len(taken) - more :]
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connected(server: Server) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(server.addresses["unix"].removeprefix("unix:"))
    return client


def answered(client: socket.socket) -> None:
    client.sendall(ASKED)
    assert client.recv(len(ANSWER), socket.MSG_WAITALL) == ANSWER


@pytest.mark.parametrize("more", [0, 1, 3])
@pytest.mark.parametrize("successor", MODELS)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_cannot_start_leaves_the_one_before(
    root: Path, model: Concurrency, successor: Concurrency, more: int
) -> None:
    if model is successor or (successor is Concurrency.THREAD_PER_CONNECTION and more):
        pytest.skip("it needs no more")
    with Server(config(root, model)) as server, connected(server) as client:
        answered(client)
        with descriptors_for(more), pytest.raises(OSError, match="ulimit -n") as caught:
            server.set_concurrency(unix=successor)
        assert "socket" in str(caught.value)
        assert server.statistics().transports["unix"].concurrency_model == model
        answered(client)
        with connected(server) as other:
            answered(other)
        server.set_concurrency(unix=successor)
        assert server.statistics().transports["unix"].concurrency_model == successor
        answered(client)


@pytest.mark.parametrize("model", MODELS)
def test_a_start_without_descriptors_fails_and_leaves_nothing(root: Path, model: Concurrency) -> None:
    threads, open_before = threading_count(), len(os.listdir("/proc/self/fd"))
    for more in range(3, 60):
        server = Server(config(root, model))
        with descriptors_for(more):
            try:
                server.start()
            except OSError:
                assert not (root.parent / "socket").exists()
                assert len(os.listdir("/proc/self/fd")) <= open_before + more + 200
                continue
            server.stop()
            break
    else:
        raise AssertionError("it never started")
    assert eventually(lambda: threading_count() == threads)
    assert len(os.listdir("/proc/self/fd")) == open_before


def threading_count() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(users.why_no_command() != "", reason=users.why_no_command() or "commands run as another user")
@pytest.mark.parametrize("model", [Concurrency.THREAD_POOL, Concurrency.WORK_STEALING])
def test_a_start_without_threads_fails_and_says_what_to_do(model: Concurrency) -> None:
    # A user of its own: the limit is on all threads of a user.
    uid = 400_000 + os.getpid() % 100_000
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="objmapper-few-threads-") as place:
        os.chown(place, uid, uid)
        program = (
            "from pathlib import Path; from objmapper_server import Concurrency, Config, Server\n"
            f"config = Config(root=Path({place!r}), unix=Path({place + '/s'!r}), admin=None, pool_size=64, "
            f"concurrency_model=Concurrency({str(model)!r}))\n"
            "try:\n    Server(config).start()\nexcept OSError as error:\n    print(error)\n"
        )
        drop_privileges = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
        command = ["prlimit", "--nproc=20", *drop_privileges, sys.executable, "-c", program]
        result = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60, check=False)
    assert "cannot start a thread" in result.stdout, result
    assert "ulimit -u" in result.stdout
    assert result.returncode == 0


@pytest.mark.skipif(users.why_no_command() != "", reason=users.why_no_command() or "commands run as another user")
def test_a_server_that_can_have_no_further_thread_drains_and_ends(root: Path) -> None:
    uid = 400_000 + os.getpid() % 100_000
    drop_privileges = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="objmapper-no-thread-") as place:
        os.chown(place, uid, uid)
        with ServerProcess(Path(place), Path(place, "s"), by=drop_privileges) as server:
            subprocess.run([*drop_privileges, "prlimit", "--pid", str(server.pid), "--nproc=1"], check=True, timeout=60)
            server.process.terminate()
            assert server.process.stderr is not None
            assert server.process.wait(30) == 0
            assert server.process.stderr.read() == ""


@pytest.mark.parametrize("successor", MODELS)
@pytest.mark.parametrize("model", MODELS)
def test_a_drain_right_after_a_switch_answers_every_session(
    root: Path, model: Concurrency, successor: Concurrency
) -> None:
    if model is successor:
        pytest.skip("no switch")
    for _ in range(3):
        with Server(config(root, model, max_threads=32)) as server:
            clients = [connected(server) for _ in range(300)]
            try:
                # Those that are idle, and those that have asked.
                assert eventually(lambda server=server: server.statistics().connections_total == 300)  # type: ignore[misc]
                for client in clients[::2]:
                    client.sendall(ASKED)
                server.set_concurrency(unix=successor)
                assert server.drain(30)
                for number, client in enumerate(clients):
                    # A pool may say that it is busy; it never says nothing.
                    answer = b"".join(iter(lambda client=client: client.recv(100), b""))  # type: ignore[misc]
                    assert (answer == ANSWER or answer[:1] == BUSY) if number % 2 == 0 else answer == b"", number
                assert server.statistics().connections == 0
            finally:
                for client in clients:
                    client.close()


@pytest.mark.parametrize("model", MODELS)
def test_a_drain_goes_past_refusals_in_the_backlog(root: Path, model: Concurrency) -> None:
    with Server(config(root, model, max_connections=5)) as server:
        clients = [connected(server) for _ in range(40)]
        try:
            assert server.drain(20)
            refused = 0
            for client in clients:
                client.settimeout(20)
                with suppress(ConnectionError):
                    # Refused with a word, or closed: none is left open.
                    refused += client.recv(100) != b""
                    while client.recv(100):
                        pass
            # The server refuses where it accepts faster than it closes idle connections.
            assert eventually(lambda: server.statistics().rejected_total >= refused)
        finally:
            for client in clients:
                client.close()


def cpu() -> float:
    return sum(os.times()[:2])


@pytest.mark.parametrize("how", ["stop", "drop", "exit"])
@pytest.mark.parametrize("model", MODELS)
def test_a_fork_leaves_the_server_as_it_is(root: Path, model: Concurrency, how: str) -> None:
    with Server(config(root, model)) as server, connected(server) as client, connected(server) as leaving:
        answered(client)
        answered(leaving)
        child = os.fork()
        if child == 0:
            code = 1
            with suppress(BaseException):
                assert "process" in repr(server)
                if how == "stop":
                    server.stop()
                elif how == "drop":
                    server.__dict__.clear()
                else:
                    with suppress(RuntimeError):
                        server.statistics()
                        raise AssertionError("a fork has no figures")
                code = 0
            # The child's copies of all sockets stay open for a while.
            time.sleep(1.5)
            os._exit(code)
        leaving.close()
        before = cpu()
        time.sleep(1)
        # It waits, and nothing else.
        assert cpu() - before < 0.5
        answered(client)
        with Client(server.addresses["unix"]) as another:
            assert another.read("/a") == b"content"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (root.parent / "socket").exists()
        answered(client)


def test_a_drain_for_ever_can_be_asked_for(root: Path) -> None:
    with Server(config(root, Concurrency.EPOLL)) as server:
        assert server.drain(1e19)
    with Server(config(root, Concurrency.EPOLL)) as server:
        server.watch_requests(1e19, 1e19)
        with pytest.raises(ValueError, match="timeout"):
            server.drain(-1)
        with pytest.raises(ValueError, match="timeout"):
            server.drain(float("nan"))


def test_other_threads_run_while_an_engine_that_was_not_stopped_is_dropped(root: Path) -> None:
    server = Server(config(root, Concurrency.THREAD_PER_CONNECTION))
    server.start()
    clients = [connected(server) for _ in range(50)]
    for client in clients:
        answered(client)
    ran: list[float] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            ran.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=run)
    thread.start()
    # What holds it besides the engine goes first, without a stop.
    logs = [server._event_log]
    for log in logs:
        assert log is not None
        log.stop()
    before = time.monotonic()
    server.__dict__.clear()
    after = time.monotonic()
    ended.set()
    thread.join()
    for client in clients:
        client.close()
    if after - before > 0.05:
        assert sum(before < moment < after for moment in ran) >= 5


@pytest.mark.parametrize("model", [Concurrency.THREAD_POOL, Concurrency.WORK_STEALING])
def test_refused_requests_are_counted_each(root: Path, model: Concurrency) -> None:
    settings = config(root, model, pool_size=1, max_queue_depth=1)
    with Server(settings) as server:
        clients = [connected(server) for _ in range(60)]
        refused = 0
        try:
            deadline = time.monotonic() + 20
            while refused < 100 and time.monotonic() < deadline:
                for client in clients:
                    client.sendall(ASKED * 20)
                for client in clients:
                    for _ in range(20):
                        status = client.recv(1, socket.MSG_WAITALL)
                        if status == b"\0":
                            client.recv(15, socket.MSG_WAITALL)
                        else:
                            refused += 1
                            length = int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big")
                            client.recv(length, socket.MSG_WAITALL)
            assert refused >= 100
            assert eventually(lambda: server.statistics().rejected_total == refused)
        finally:
            for client in clients:
                client.close()


def test_a_connection_gets_the_thread_of_one_that_has_ended(root: Path) -> None:
    with Server(config(root, Concurrency.THREAD_PER_CONNECTION, max_threads=1)) as server:
        for _ in range(200):
            with connected(server) as client:
                answered(client)
