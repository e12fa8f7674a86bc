"""Clients of version 2 that are greedy, slow or wrong lose their connection; other clients are not affected."""

import itertools
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client.protocol.v2_requests import Operation
from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.raw_client import INVALID_REQUEST, OK, PROTOCOL_ERROR, TIMEOUT, RawClient, descriptors_of
from tests.support.raw_client import request as request_one
from tests.support.raw_client_v2 import (
    CAPABILITY_ERROR,
    COPY,
    FDPASS,
    LIST,
    PUT,
    PUT_DESCRIPTOR,
    SPLICE,
    STAT,
    RawClientV2,
    frame,
    parameter,
)
from tests.support.unfinished_writes import unfinished_writes

HOME = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def strict(model: Concurrency, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of little patience, on a root of its own."""
    root = tmp_path_factory.mktemp("strict")
    (root / "a").write_bytes(b"a")
    (root / "huge").write_bytes(b"huge" * 1_000_000)
    config = Config(
        root=root,
        unix=tmp_path_factory.mktemp("run") / "o.sock",
        tcp="127.0.0.1:0",
        concurrency_model=model,
        admin=None,
        writable=True,
        header_timeout=0.3,
        request_timeout=0.3,
    )
    with Server(config) as server:
        for address in server.addresses.values():
            with RawClientV2(address) as v2:
                assert v2.call(COPY, "/a").status == OK
        yield server


@pytest.mark.parametrize(("kind", "count"), [("extended", 100), ("mixed", 100), ("puts-that-begin", 350)])
def test_clients_that_exhaust_descriptors_starve_no_other_client(model: Concurrency, kind: str, count: int) -> None:
    """As a user who is not root, under RLIMIT_NOFILE 1024: see `tests/support/fd_exhaustion.py`."""
    directory = Path(tempfile.mkdtemp(prefix="objmapper-hoarders-"))
    try:
        command = [sys.executable, "-m", "tests.support.fd_exhaustion", str(model), str(directory), kind, str(count)]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=100, check=False)
        assert done.stdout.strip() == "300 of 300", done.stderr
    finally:
        shutil.rmtree(directory)


def ask_without_reading(address: str, operation: Operation) -> RawClientV2:
    """A client that asks until the server reads no more, and does not read."""
    v2 = RawClientV2(address)
    v2.socket.setblocking(False)
    uri = "/" if operation is LIST else "/huge"
    # It may also have left this one already, where the machine is slow.
    with pytest.raises((BlockingIOError, BrokenPipeError, ConnectionResetError)):
        while True:
            v2.socket.sendall(v2.encode(operation, uri) * 100)
    v2.socket.settimeout(20)
    return v2


def test_a_client_that_does_not_read_is_closed_at_last(strict: Server) -> None:
    before = descriptors_of()
    address = strict.addresses["unix"]
    non_reading = [ask_without_reading(address, operation) for operation in (FDPASS, COPY, SPLICE, STAT, LIST)]
    with RawClientV2(address) as honest:
        assert honest.call(COPY, "/huge").read() == b"huge" * 1_000_000
    assert eventually(lambda: strict.statistics().transports["unix"].connections == 0)
    for v2 in non_reading:
        # What was queued in front of the end can still be read, and nothing need be.
        v2.close()
    assert eventually(lambda: descriptors_of() <= before)
    assert eventually(lambda: strict.statistics().descriptors_in_flight == 0)


def test_a_content_that_stops_coming_ends_the_connection_and_leaves_nothing(strict: Server) -> None:
    before = descriptors_of()
    root = Path(strict.config.root)
    stopped = []
    for address, length in itertools.product(strict.addresses.values(), (0, 1, 4096, 100_000)):
        stopped.append(v2 := RawClientV2(address))
        v2.send(v2.encode(PUT, f"/stopped-{length}", content_len=100_001), bytes(length))
    try:
        for v2 in stopped:
            assert v2.answer().fails(TIMEOUT)
            assert v2.is_closed()
    finally:
        for v2 in stopped:
            v2.close()
    assert not list(root.glob("stopped*"))
    assert unfinished_writes(root) == []
    assert eventually(lambda: descriptors_of() <= before)
    assert eventually(lambda: strict.statistics().descriptors_in_flight == 0)


def send_byte_by_byte(v1: RawClient, rest: bytes) -> threading.Thread:
    """Sends byte by byte, each long before any time limit, until the server has had enough."""

    def send() -> None:
        try:
            for byte in rest:
                v1.socket.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_what_drips_is_timed_as_a_whole(strict: Server) -> None:
    """Also a URI that is skipped because it is too long."""
    began = time.monotonic()
    v2_clients, v1_clients, slow_threads = [], [], []
    for address in strict.addresses.values():
        for length in (4096, 65_535):
            v2_clients.append(v2 := RawClientV2(address))
            slow_threads.append(send_byte_by_byte(v2, frame(1, b"2", b"n" * length)))
        for begun in (request_one(b"2", "n" * 65_535), b"OBJM\2"):
            v1_clients.append(one := RawClient(address))
            slow_threads.append(send_byte_by_byte(one, begun))
    for v2 in v2_clients:
        v2.expect(0)
        assert v2.answer().fails(TIMEOUT)
        assert v2.is_closed()
    for one in v1_clients:
        assert one.reply(b"2").status == TIMEOUT
        assert one.at_end()
    assert time.monotonic() - began < 10
    for v1 in (*v2_clients, *v1_clients):
        # Wakes the thread that drips.
        v1.socket.shutdown(socket.SHUT_RDWR)
    for thread in slow_threads:
        thread.join()
    for v1 in (*v2_clients, *v1_clients):
        v1.close()


def test_descriptors_without_a_put_are_closed_as_they_come(unix: str, root: Path) -> None:
    before = descriptors_of()
    with RawClientV2(unix) as v2, (root / "a").open("rb") as file:
        for _ in range(40):
            socket.send_fds(v2.socket, [v2.encode(STAT, "/a")], [file.fileno()] * 253)
            assert v2.answer().status == OK
        # Within a frame that does not come to an end there may be one that is wanted.
        for byte in v2.encode(PUT_DESCRIPTOR, "/target")[:-1]:
            socket.send_fds(v2.socket, [bytes([byte])], [file.fileno()] * 253)
        # This process holds both ends of the connection, and the file.
        assert eventually(lambda: descriptors_of() <= before + 5), descriptors_of() - before
    assert eventually(lambda: descriptors_of() <= before)


def test_a_descriptor_counts_for_the_put_that_it_came_with(unix: str, root: Path) -> None:
    """Not for a later one that has none."""
    with RawClientV2(unix) as v2, (root / "a").open("rb") as file:
        socket.send_fds(v2.socket, [v2.encode(STAT, "/a")], [file.fileno()] * 3)
        assert v2.answer().status == OK
        assert v2.call(PUT_DESCRIPTOR, "/stolen").fails(INVALID_REQUEST)
    assert not (root / "stolen").exists()


def test_where_there_are_too_few_descriptors_no_put_has_anothers(unix: str, root: Path) -> None:
    with RawClientV2(unix) as v2, (root / "small").open("rb") as file:
        asked = [v2.encode(PUT_DESCRIPTOR, f"/few-{number}") for number in range(5)]
        socket.send_fds(v2.socket, [b"".join(asked)], [file.fileno()] * 3)
        found = sorted(v2.answers(5).values(), key=lambda answer: answer.id)
        assert [answer.status for answer in found] == [INVALID_REQUEST] * 5
        # The server keeps none of the three for a later put.
        assert v2.put_descriptor("/enough", file.fileno()).status == OK
    assert not list(root.glob("few-*"))
    (root / "enough").unlink()


def test_an_id_that_is_used_twice_is_answered_twice(v2: RawClientV2, root: Path) -> None:
    """Telling them apart is the client's affair: the server keeps no account of ids."""
    for _ in range(3):
        v2.send(frame(7, b"2", b"/a"), frame(7, b"2", b"/small"), frame(7, b"2", b"/a"))
        sizes = []
        for _ in range(3):
            v2.expect(7)
            sizes.append(len(v2.answer().read()))
        assert sorted(sizes) == [1, 1, 4096]


@pytest.mark.parametrize("junk", [b"OBJM\2\0\3\0\x10", b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 70_000])
def test_garbage_after_a_hello_is_answered_once_and_closed(v2: RawClientV2, junk: bytes) -> None:
    v2.send(v2.encode(COPY, "/a"))
    assert v2.answer().status == OK
    v2.expect(0)
    v2.socket.settimeout(20)
    sent = threading.Thread(target=lambda: v2.socket.sendall(junk))
    sent.start()
    assert v2.answer().fails(PROTOCOL_ERROR)
    sent.join()
    assert v2.is_closed()


def test_a_client_far_beyond_the_pipeline_gets_the_agreed_number(address: str) -> None:
    with RawClientV2(address, max_pipeline=4) as v2:
        v2.send(b"".join(v2.encode(COPY, "/a") for _ in range(500)))
        v2.expect(0)
        for number in range(1, 5):
            assert v2.answer().id == number
        assert v2.answer().fails(CAPABILITY_ERROR)
        assert v2.is_closed()


@pytest.mark.parametrize("promised", [1 << 62, (1 << 63) - 1])
def test_a_content_that_no_disk_holds_is_refused_before_it_comes(v2: RawClientV2, root: Path, promised: int) -> None:
    v2.expect(1)
    v2.send(frame(1, b"p", b"/enormous", parameters=parameter(0x84, struct.pack(">Q", promised))))
    assert v2.answer().status not in {OK, INVALID_REQUEST}
    assert not (root / "enormous").exists()
