"""UDP between two hosts, which here are network namespaces.

What an address gets that has shown nothing, and what one that has; how large datagrams are, and that none is divided.
"""

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import Client, RequestTimeout
from objmapper_client._udp.connection import UdpConnection
from objmapper_client.protocol.udp import MAX_REMOTE_CHUNK, Error, Pull, Retry, decode_reply, encode_pull
from objmapper_server import Config, Server
from objmapper_server.statistics import Datagrams
from tests.support.malformed_datagrams import junk
from tests.support.raw_client import COPY, request
from tests.support.two_hosts import Host, NotPermitted, two_hosts

CONTENT = random.Random(1).randbytes(1 << 20)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as both:
            yield both
    except NotPermitted as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "a").write_bytes(b"a")
    (root / "large").write_bytes(CONTENT)
    return root


class RemoteClient:
    """A server on the one host; this is used on the other."""

    def __init__(self, server: Server, client: Host) -> None:
        self.server = server
        self.client = client
        self.address = server.addresses["udp"]
        host, _, port = self.address.removeprefix("udp://").rpartition(":")
        self.target = (host.strip("[]"), int(port))

    def socket(self) -> socket.socket:
        """A socket of the client's host that hears this server alone."""
        made = self.client.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.settimeout(10)
        made.connect(self.target)
        return made

    @property
    def datagrams(self) -> Datagrams:
        counts = self.server.statistics().datagrams
        assert counts is not None
        return counts

    def after_settling(self, received: int) -> Datagrams:
        """The counts once this number of datagrams has been received and answered."""
        deadline = time.monotonic() + 20
        while True:
            counts = self.datagrams
            came = counts.plain_received_total + counts.pull_received_total + counts.noise_received_total
            sent = counts.bytes_sent_total
            time.sleep(0.02)
            if came >= received and self.datagrams.bytes_sent_total == sent:
                return self.datagrams
            assert time.monotonic() < deadline, (came, received)


@pytest.fixture
def remote_client(hosts: tuple[Host, Host], root: Path) -> Iterator[RemoteClient]:
    server_host, client_host = hosts
    server = server_host.run(Server(Config(root=root, udp=f"{server_host.address}:0")).__enter__)
    try:
        yield RemoteClient(server, client_host)
    finally:
        server.stop()


def asking(cookie: bytes = b"", *, uri: str = "/large", number: int = 7) -> bytes:
    return encode_pull(Pull(number, 0, 32 * MAX_REMOTE_CHUNK, MAX_REMOTE_CHUNK, cookie, uri))


def received(source: socket.socket, seconds: float = 0.3) -> list[bytes]:
    """What comes within this time."""
    source.settimeout(seconds)
    datagrams = []
    try:
        while True:
            datagrams.append(source.recv(65536))
    except TimeoutError:
        return datagrams


def test_a_reply_without_a_cookie_is_smaller_than_its_request(remote_client: RemoteClient) -> None:
    with remote_client.socket() as source:
        for number in range(1000):
            source.send(asking(random.randbytes(random.choice([0, 16])), number=number))
        counts = remote_client.after_settling(1000)
        answers = [decode_reply(answer, 0) for answer in received(source)]
    assert len(answers) > 200
    assert all(isinstance(answer, Retry) for answer in answers)
    assert counts.retry_sent_total == 1000
    assert (counts.data_sent_total, counts.error_sent_total, counts.reply_sent_total) == (0, 0, 0)
    factor = counts.bytes_sent_total / counts.bytes_received_total
    print(f"amplification before a cookie: {factor:.2f}")
    assert factor < 1.0


def test_no_junk_is_answered_with_more_than_it_was(remote_client: RemoteClient) -> None:
    """One at a time: each answer is known by its question."""
    generator = random.Random(3)
    answered = 0
    with remote_client.socket() as source:
        for number in range(1000):
            datagram = junk(generator)
            source.send(datagram)
            # Noise comes back from nowhere; what comes back for this one is the answer to it.
            source.send(asking(number=number))
            size = 0
            while True:
                answer = source.recv(65536)
                if answer[:8] == b"U\x01\x01\0" + number.to_bytes(4, "big"):
                    break
                size += len(answer)
            assert size <= len(datagram), datagram
            answered += size > 0
    assert answered > 100
    counts = remote_client.datagrams
    assert counts.data_sent_total == counts.reply_sent_total == counts.error_sent_total == 0


def test_a_client_with_a_cookie_gets_the_object(remote_client: RemoteClient) -> None:
    with remote_client.socket() as source:
        source.send(asking())
        (retry,) = received(source)
        answer = decode_reply(retry, 0)
        assert isinstance(answer, Retry)
        source.send(asking(answer.cookie))
        assert len(received(source)) == 32
        source.send(asking(answer.cookie, uri="/none"))
        (error,) = received(source)
        assert isinstance(decode_reply(error, 0), Error)
        source.send(request(COPY, "/a"))
        assert received(source) == []
    with remote_client.socket() as another:
        # Another port: what the first one was given is not good for it.
        another.send(asking(answer.cookie))
        assert [len(answer) for answer in received(another)] == [24]
    assert remote_client.datagrams.untrusted_dropped_total == 1


def test_the_client_shows_its_cookie_by_itself(remote_client: RemoteClient) -> None:
    with Client(remote_client.address) as client:
        assert remote_client.client.run(client.read, "/large") == CONTENT
        assert remote_client.client.run(client.read, "/large", offset=5, length=9) == CONTENT[5:14]
    counts = remote_client.datagrams
    assert counts.retry_sent_total == 1
    assert counts.data_sent_total >= len(CONTENT) // MAX_REMOTE_CHUNK


def test_it_is_the_same_over_ipv6(hosts: tuple[Host, Host], root: Path) -> None:
    server_host, client_host = hosts
    server = server_host.run(Server(Config(root=root, udp=f"[{server_host.address6}]:0")).__enter__)
    try:
        with Client(server.addresses["udp"]) as client:
            assert client_host.run(client.read, "/large") == CONTENT
    finally:
        server.stop()


def test_plain_requests_are_answered_to_networks_that_are_trusted(hosts: tuple[Host, Host], root: Path) -> None:
    server_host, client_host = hosts
    config = Config(root=root, udp=f"{server_host.address}:0", udp_trusted="198.18.0.0/24")
    server = server_host.run(Server(config).__enter__)
    try:
        remote_client = RemoteClient(server, client_host)
        with remote_client.socket() as source:
            source.send(request(COPY, "/a"))
            assert received(source) == [b"\0" + bytes(7) + b"\1a"]
            source.send(request(COPY, "/large"))
            (refusal,) = received(source)
            assert refusal[0] == 0x05
            # Ranges are for those who show a cookie, here too.
            source.send(asking())
            assert [len(answer) for answer in received(source)] == [24]
    finally:
        server.stop()


def test_a_server_on_every_address_answers_from_the_one_that_was_asked(hosts: tuple[Host, Host], root: Path) -> None:
    server_host, client_host = hosts
    for listen, addresses in (
        ("0.0.0.0:0", [server_host.address, server_host.second_address]),
        ("[::]:0", [f"[{server_host.address6}]"]),
    ):
        server = server_host.run(Server(Config(root=root, udp=listen)).__enter__)
        try:
            port = server.addresses["udp"].rpartition(":")[2]
            for address in addresses:
                with Client(f"udp://{address}:{port}") as client:
                    assert client_host.run(client.read, "/large") == CONTENT
        finally:
            server.stop()


def test_an_address_gets_its_bytes_a_second_and_no_more(hosts: tuple[Host, Host], root: Path) -> None:
    server_host, client_host = hosts
    config = Config(root=root, udp=f"{server_host.address}:0", udp_rate_limit=400_000)
    server = server_host.run(Server(config).__enter__)
    try:
        start = time.monotonic()
        with Client(server.addresses["udp"]) as client:
            assert client_host.run(client.read, "/large") == CONTENT
        # The first second's bytes are there at once.
        assert time.monotonic() - start > (len(CONTENT) - 400_000) / 400_000 * 0.8
        counts = server.statistics().datagrams
        assert counts is not None
        assert counts.limited_dropped_total > 0
    finally:
        server.stop()


def evicted(root: Path, count: int, size: int) -> bool:
    """Makes files that are not in the page cache; False where the file system keeps them there."""
    for number in range(count):
        path = root / f"{number}"
        path.write_bytes(random.Random(number).randbytes(size))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            with contextlib.suppress(BlockingIOError, OSError):
                os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
                return False
        finally:
            os.close(descriptor)
    return True


def test_answers_that_wait_for_the_disk_count_towards_the_rate(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    server_host, client_host = hosts
    if not evicted(tmp_path, 200, 30_000):
        pytest.skip("this file system keeps in memory what it is asked to forget")
    rate = 40_000
    config = Config(
        root=tmp_path,
        udp=f"{server_host.address}:0",
        udp_rate_limit=rate,
        cache_size=0,
        async_storage=True,
        # The server refuses questions that it has no room for; here it is to drop them.
        max_queue_depth=1000,
    )
    server = server_host.run(Server(config).__enter__)
    try:
        start = time.monotonic()
        remote_client = RemoteClient(server, client_host)
        with remote_client.socket() as source:
            source.send(encode_pull(Pull(1, 0, 1, MAX_REMOTE_CHUNK, b"", "/0")))
            retry = decode_reply(source.recv(2048), 0)
            assert isinstance(retry, Retry)
            for number in range(200):
                source.send(encode_pull(Pull(number, 0, 30_000, MAX_REMOTE_CHUNK, retry.cookie, f"/{number}")))
            counts = remote_client.after_settling(201)
        # The first second's bytes are there at once, the last answer goes out whole, and the RETRY.
        allowed = rate * (time.monotonic() - start + 1) + 36_000
        assert 30_000 <= counts.bytes_sent_total <= allowed
        assert counts.limited_dropped_total >= 150
    finally:
        server.stop()


def test_a_port_without_a_server_times_out_or_refuses(hosts: tuple[Host, Host]) -> None:
    server_host, client_host = hosts
    with (
        Client(f"udp://{server_host.address}:9", timeout=1) as client,
        pytest.raises((ConnectionError, RequestTimeout)),
    ):
        client_host.run(client.read, "/a")


class PacketCapture:
    """Every packet that the client's host receives, from the link on."""

    def __init__(self, host: Host) -> None:
        # ETH_P_ALL
        self._socket = host.run(socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        # SO_RCVBUFFORCE: for all that comes while another thread has the interpreter.
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
        self._socket.settimeout(0.1)
        self.packets: list[tuple[int, bytes]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "PacketCapture":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                packet, (_, protocol, kind, _, _) = self._socket.recvfrom(65536)
            except TimeoutError:
                if self._stopped.is_set():
                    return
                continue
            if kind == socket.PACKET_HOST:
                self.packets.append((protocol, packet))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_no_datagram_is_divided_or_may_be(hosts: tuple[Host, Host], root: Path, family: socket.AddressFamily) -> None:
    server_host, client_host = hosts
    listen = f"{server_host.address}:0" if family == socket.AF_INET else f"[{server_host.address6}]:0"
    server = server_host.run(Server(Config(root=root, udp=listen)).__enter__)
    try:
        with PacketCapture(client_host) as capture, Client(server.addresses["udp"]) as client:
            # It asks for pieces as large as they go; the server knows better.
            assert client_host.run(client.read, "/large") == CONTENT
            (connection,) = client._pool._idle
            assert isinstance(connection, UdpConnection)
            connection.path.chunk = 60_000
            assert client_host.run(client.read, "/large") == CONTENT
    finally:
        server.stop()
    lengths = []
    for protocol, packet in capture.packets:
        if protocol == 0x0800:
            flags, kind = struct.unpack_from(">H", packet, 6)[0], packet[9]
            assert flags & 0x3FFF == 0, "a fragment"
            if kind == socket.IPPROTO_UDP:
                assert flags & 0x4000, "may be divided on its way"
                lengths.append(struct.unpack_from(">H", packet, 24)[0] - 8)
        elif protocol == 0x86DD:
            assert packet[6] != 44, "a fragment"
            if packet[6] == socket.IPPROTO_UDP:
                lengths.append(struct.unpack_from(">H", packet, 44)[0] - 8)
    assert len(lengths) > 1500
    assert max(lengths) == MAX_REMOTE_CHUNK + 36
