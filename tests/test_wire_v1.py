"""The whole of version 1, in every model, over Unix and TCP: what a client sees does not depend on the model."""

import fcntl
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.models import MODELS
from tests.support.raw_client import (
    COPY,
    FDPASS,
    FORBIDDEN,
    INVALID_MODE,
    INVALID_REQUEST,
    NOT_FOUND,
    OK,
    PROTOCOL_ERROR,
    SPLICE,
    TIMEOUT,
    UNAVAILABLE,
    URI_TOO_LONG,
    RawClient,
    descriptors_of,
    request,
)

TRANSPORTS = ["unix", "tcp"]
MODES = {"unix": [FDPASS, COPY, SPLICE], "tcp": [COPY, SPLICE]}
EITHER_WAY = [(transport, mode) for transport in TRANSPORTS for mode in MODES[transport]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    generator = random.Random(1)
    for name, size in {"a": 1, "empty": 0, "small": 4096, "large": 300_000, "huge": 9_000_000}.items():
        (root / name).write_bytes(generator.randbytes(size))
    (root / "directory").mkdir()
    (root / "directory" / "nested é").write_bytes(b"nested")
    os.mkfifo(root / "fifo")
    (root / "inside").symlink_to("a")
    (root / "outside").symlink_to("/etc/passwd")
    (root / "away").symlink_to("/etc")
    return root


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> Concurrency:
    return Concurrency(request.param)


@pytest.fixture(scope="module")
def server(root: Path, model: Concurrency, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server a model; whatever the tests did to it, in the end it has not one descriptor more than at first."""
    socket_path = tmp_path_factory.mktemp("run") / "o.sock"
    config = Config(root=root, unix=socket_path, tcp="127.0.0.1:0", concurrency_model=model, admin=None)
    with Server(config) as server:
        for address in server.addresses.values():
            # Once it has answered, it has opened all that it needs: what is open after a test was opened by it.
            with RawClient(address) as v1:
                assert v1.ask(COPY, "/a").status == OK
        yield server


@pytest.fixture(params=TRANSPORTS)
def v1(server: Server, request: pytest.FixtureRequest) -> Iterator[RawClient]:
    with RawClient(server.addresses[request.param]) as v1:
        yield v1


@pytest.mark.parametrize(("transport", "mode"), EITHER_WAY)
@pytest.mark.parametrize("name", ["a", "empty", "small", "large", "huge", "directory/nested é"])
def test_an_object_arrives_whole(server: Server, root: Path, transport: str, mode: bytes, name: str) -> None:
    with RawClient(server.addresses[transport]) as v1:
        assert v1.ask(mode, f"/{name}").read() == (root / name).read_bytes()


@pytest.mark.parametrize("mode", [COPY, SPLICE])
def test_requests_sent_ahead_are_answered_in_order(v1: RawClient, root: Path, mode: bytes) -> None:
    names = ["a", "missing", "large", "empty", "small", "huge"] * 10
    v1.socket.settimeout(30)
    sender = threading.Thread(target=lambda: v1.send(*(request(mode, name) for name in names)))
    sender.start()
    for name in names:
        reply = v1.reply(mode)
        if name == "missing":
            assert reply.status == NOT_FOUND
        else:
            assert reply.read() == (root / name).read_bytes()
    sender.join()


def test_descriptors_errors_and_contents_keep_their_order(server: Server, root: Path) -> None:
    plan = [(FDPASS, "small"), (COPY, "a"), (FDPASS, "none"), (SPLICE, "large"), (FDPASS, "large")] * 40
    with RawClient(server.addresses["unix"]) as v1:
        v1.send(*(request(mode, name) for mode, name in plan))
        for mode, name in plan:
            reply = v1.reply(mode)
            if name == "none":
                assert reply.status == NOT_FOUND
            else:
                assert reply.read() == (root / name).read_bytes()


def test_a_request_may_come_byte_by_byte(v1: RawClient, root: Path) -> None:
    for byte in request(COPY, "/small") + request(COPY, "/a"):
        v1.send(bytes([byte]))
    assert v1.reply(COPY).read() == (root / "small").read_bytes()
    assert v1.reply(COPY).read() == (root / "a").read_bytes()


def test_the_documented_bytes(server: Server) -> None:
    with RawClient(server.addresses["unix"]) as v1:
        v1.send(bytes.fromhex("31 0002 2f61"))
        assert v1.take(1) == b"\0"
        os.close(v1.descriptors.pop())
        v1.send(bytes.fromhex("32 0002 2f61"))
        assert v1.take(9) == bytes.fromhex("00 0000000000000001")
        v1.take(1)


def test_a_passed_descriptor_is_a_fresh_read_only_open_file(server: Server) -> None:
    with RawClient(server.addresses["unix"]) as v1:
        first, second = v1.ask(FDPASS, "/small").descriptor, v1.ask(FDPASS, "/small").descriptor
        assert first is not None
        assert second is not None
        assert stat.S_ISREG(os.fstat(first).st_mode)
        flags = fcntl.fcntl(first, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == os.O_RDONLY
        assert not flags & os.O_NONBLOCK
        os.read(first, 100)
        assert os.lseek(second, 0, os.SEEK_CUR) == 0
        os.close(first)
        os.close(second)


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("/missing", NOT_FOUND),
        ("/a/below-a-file", NOT_FOUND),
        ("/directory", FORBIDDEN),
        ("/fifo", FORBIDDEN),
        ("/inside", FORBIDDEN),
        ("/outside", FORBIDDEN),
        ("/away/passwd", FORBIDDEN),
        ("/../etc/passwd", INVALID_REQUEST),
        ("/directory/../a", INVALID_REQUEST),
        ("/./a", INVALID_REQUEST),
        ("//a", INVALID_REQUEST),
        ("/directory/", INVALID_REQUEST),
        ("/", INVALID_REQUEST),
        ("", INVALID_REQUEST),
        ("/a\0b", INVALID_REQUEST),
        (b"/\xff", INVALID_REQUEST),
        ("/" + "n" * 256, INVALID_REQUEST),
        ("/" + "n/" * 2047 + "n", NOT_FOUND),
        ("/" + "n" * 5000, URI_TOO_LONG),
        ("n" * 65535, URI_TOO_LONG),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_refused_uri_has_its_status_and_the_connection_goes_on(v1: RawClient, uri: str | bytes, status: int) -> None:
    reply = v1.ask(COPY, uri)
    assert reply.status == status, reply
    assert reply.content.decode()
    assert v1.ask(COPY, "/a").status == OK


def test_a_file_without_permission_is_forbidden(root: Path, model: Concurrency, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "secret").chmod(0)
    with (
        Server(Config(root=tmp_path, unix=tmp_path / "s", concurrency_model=model, admin=None)) as server,
        RawClient(server.addresses["unix"]) as v1,
    ):
        assert v1.ask(COPY, "/secret").status == FORBIDDEN


def test_fdpass_over_tcp_is_an_invalid_mode_and_the_connection_goes_on(server: Server) -> None:
    with RawClient(server.addresses["tcp"]) as v1:
        assert v1.ask(FDPASS, "/a").status == INVALID_MODE
        assert v1.ask(COPY, "/a").status == OK


@pytest.mark.parametrize("junk", [b"9\0\2/a", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"O" * 70_000])
def test_a_malformed_request_gets_one_reply_and_a_close(v1: RawClient, junk: bytes) -> None:
    v1.send(request(COPY, "/a"), junk)
    assert v1.reply(COPY).status == OK
    assert v1.reply(COPY).status == PROTOCOL_ERROR
    assert v1.at_end()


def test_a_client_that_ends_its_side_still_gets_its_answers(v1: RawClient, root: Path) -> None:
    v1.send(request(SPLICE, "/large"), request(COPY, "/a"))
    v1.socket.shutdown(socket.SHUT_WR)
    assert v1.reply(SPLICE).read() == (root / "large").read_bytes()
    assert v1.reply(COPY).status == OK
    assert v1.at_end()


def test_a_client_that_leaves_midway_costs_nothing(server: Server) -> None:
    before = descriptors_of()
    for transport in TRANSPORTS:
        for _ in range(20):
            with RawClient(server.addresses[transport]) as v1:
                v1.send(request(SPLICE, "/huge"), b"2\0")
        with RawClient(server.addresses[transport]) as last:
            # Connections that came before it were accepted before it.
            assert last.ask(COPY, "/a").status == OK
    assert eventually(lambda: descriptors_of() <= before)


def test_descriptors_that_a_client_sends_are_not_taken_in(server: Server, root: Path) -> None:
    before = descriptors_of()
    with RawClient(server.addresses["unix"]) as v1, (root / "a").open("rb") as file:
        try:
            socket.send_fds(v1.socket, [request(COPY, "/a")], [file.fileno()] * 10)
        except PermissionError:  # Linux 6.16 and later refuse on the server's behalf
            v1.send(request(COPY, "/a"))
        assert v1.reply(COPY).status == OK
        # This process holds both ends of the connection, and the file.
        assert eventually(lambda: descriptors_of() <= before + 3)
    assert eventually(lambda: descriptors_of() <= before)


def test_many_clients_at_once_get_the_right_bytes(server: Server, root: Path) -> None:
    names = ["a", "small", "large", "empty"]
    contents = {name: (root / name).read_bytes() for name in names}

    def converse(number: int) -> int:
        transport = TRANSPORTS[number % 2]
        generator = random.Random(number)
        with RawClient(server.addresses[transport], timeout=60) as v1:
            for _ in range(50):
                name, mode = generator.choice(names), generator.choice(MODES[transport])
                assert v1.ask(mode, f"/{name}").read() == contents[name]
        return 50

    before = server.statistics().total.requests_total
    with ThreadPoolExecutor(32) as threads:
        assert sum(threads.map(converse, range(32))) == 1600
    # Each request is counted exactly once.
    assert eventually(lambda: server.statistics().total.requests_total == before + 1600)


def test_an_object_that_changes_is_noticed_at_once(server: Server, root: Path) -> None:
    target = root / "changing"
    with RawClient(server.addresses["tcp"]) as v1:
        for version in range(20):
            beside = root / "beside"
            beside.write_bytes(b"%d" % version)
            beside.rename(target)
            for _ in range(3):
                assert v1.ask(COPY, "/changing").read() == b"%d" % version
        target.write_bytes(b"in place")
        assert v1.ask(COPY, "/changing").read() == b"in place"
        target.unlink()
        assert v1.ask(COPY, "/changing").status == NOT_FOUND


def test_a_hot_object_comes_from_memory_and_is_still_validated(server: Server, root: Path) -> None:
    (root / "hot").write_bytes(b"hot")
    os.utime(root / "hot", (1, 1))
    hits = server.statistics().cache_hits_total
    with RawClient(server.addresses["unix"]) as v1:
        # A file whose change time is too young is not kept yet.
        assert eventually(
            lambda: v1.ask(COPY, "/hot").read() == b"hot" and server.statistics().cache_hits_total > hits + 5
        )
        (root / "hot").write_bytes(b"tepid")
        assert v1.ask(COPY, "/hot").read() == b"tepid"


def test_a_client_that_never_reads_does_not_hold_others_up(server: Server) -> None:
    with RawClient(server.addresses["unix"]) as non_reading_unix, RawClient(server.addresses["tcp"]) as non_reading_tcp:
        non_reading_unix.send(request(FDPASS, "/a") * 2000)
        non_reading_tcp.send(request(SPLICE, "/huge") * 20)
        for transport in TRANSPORTS:
            with RawClient(server.addresses[transport], timeout=5) as honest:
                for _ in range(50):
                    assert honest.ask(COPY, "/small").status == OK


def test_a_slow_frame_ends_after_the_header_timeout(root: Path, model: Concurrency, tmp_path: Path) -> None:
    config = Config(
        root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model=model, admin=None, header_timeout=0.2
    )
    with Server(config) as server:
        for transport in TRANSPORTS:
            with RawClient(server.addresses[transport]) as v1:
                start = time.monotonic()
                v1.send(b"2")
                assert v1.take(1)[0] == TIMEOUT
                v1.take(struct.unpack(">H", v1.take(2))[0])
                assert v1.at_end()
                assert time.monotonic() - start < 5
        assert server.statistics().transports["unix"].timeouts_total == 1


def test_an_idle_connection_is_closed(root: Path, model: Concurrency, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", concurrency_model=model, admin=None, idle_timeout=0.8)
    with Server(config) as server, RawClient(server.addresses["unix"]) as v1:
        assert v1.ask(COPY, "/a").status == OK
        assert v1.at_end()


def test_a_connection_over_the_limit_gets_an_error(root: Path, model: Concurrency, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", concurrency_model=model, admin=None, max_connections=2)
    with Server(config) as server:
        address = server.addresses["unix"]
        with RawClient(address) as first, RawClient(address) as second:
            assert first.ask(COPY, "/a").status == OK
            assert second.ask(COPY, "/a").status == OK
            with RawClient(address) as third:
                assert third.reply(COPY).status == UNAVAILABLE
                assert third.at_end()
            # The server counts once it has replied.
            assert eventually(lambda: server.statistics().transports["unix"].rejected_total == 1)
        assert eventually(lambda: server.statistics().transports["unix"].connections == 0)
        with RawClient(address) as again:
            assert again.ask(COPY, "/a").status == OK


def test_draining_answers_what_has_come_and_refuses_what_comes(root: Path, model: Concurrency, tmp_path: Path) -> None:
    config = Config(root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model=model, admin=None)
    with Server(config) as server:
        addresses = server.addresses
        connections = [RawClient(addresses[transport]) for transport in TRANSPORTS for _ in range(8)]
        for v1 in connections:
            assert v1.ask(COPY, "/a").status == OK
            v1.send(request(SPLICE, "/large") * 4)
        with ThreadPoolExecutor(1) as thread:
            drained = thread.submit(server.drain, timeout=30)
            for v1 in connections:
                for _ in range(4):
                    assert v1.reply(SPLICE).read() == (root / "large").read_bytes()
                assert v1.at_end()
                v1.close()
            assert drained.result()
        for address in addresses.values():
            with pytest.raises(ConnectionError):
                RawClient(address)


def test_a_stopped_server_leaves_nothing(root: Path, model: Concurrency, tmp_path: Path) -> None:
    before = descriptors_of()
    threads = len(list(Path("/proc/self/task").iterdir()))
    config = Config(root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model=model, admin=None)
    with Server(config) as server:
        connections = [RawClient(address) for address in server.addresses.values()]
        for v1 in connections:
            assert v1.ask(COPY, "/a").status == OK
    for v1 in connections:
        assert v1.at_end()
        v1.close()
    assert list(tmp_path.iterdir()) == []
    assert eventually(lambda: descriptors_of() <= before)
    assert eventually(lambda: len(list(Path("/proc/self/task").iterdir())) <= threads)


def test_the_model_changes_while_requests_are_under_way(root: Path, model: Concurrency, tmp_path: Path) -> None:
    """A hundred switches under load: no connection is dropped, no request fails."""
    config = Config(root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", concurrency_model=model, admin=None)
    content = (root / "small").read_bytes()
    stop = threading.Event()

    def converse(number: int, address: str) -> int:
        served = 0
        transport = address.partition(":")[0]
        with RawClient(address, timeout=30) as v1:
            while not stop.is_set():
                mode = MODES[transport][served % len(MODES[transport])]
                assert v1.ask(mode, "/small").read() == content
                served += 1
        return served

    with Server(config) as server, ThreadPoolExecutor(8) as threads:
        conversations = [
            threads.submit(converse, number, server.addresses[TRANSPORTS[number % 2]]) for number in range(8)
        ]
        generator = random.Random(3)
        try:
            for _ in range(100):
                seen = server.statistics().total.requests_total
                choice = generator.choice(MODELS)
                server.set_concurrency(unix=choice, tcp=generator.choice(MODELS))
                assert eventually(lambda seen=seen: server.statistics().total.requests_total > seen + 20)  # type: ignore[misc]
                assert server.statistics().transports["unix"].model == choice
        finally:
            stop.set()
        served = sum(conversation.result() for conversation in conversations)
        totals = server.statistics()
        assert totals.total.requests_total == served
        assert totals.total.errors_total == {}
        assert sum(state.connections_total for state in totals.transports.values()) == 8


def test_a_hundred_hoarders_do_not_starve_an_honest_client(model: Concurrency) -> None:
    """As a user who is not root, under RLIMIT_NOFILE 1024: see `tests/support/fd_exhaustion.py`."""
    directory = Path(tempfile.mkdtemp(prefix="objmapper-hoarders-"))
    try:
        command = [sys.executable, "-m", "tests.support.fd_exhaustion", str(model), str(directory), "version-1", "100"]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=100)
        assert done.stdout.strip() == "300 of 300", done.stderr
    finally:
        shutil.rmtree(directory)
