"""A million malformed datagrams: no crash, no state, and no reply larger than its request.

    python -m benchmarks.soak.malformed_datagrams [--datagrams 1000000]

Cut, oversized, forged, repeated and random datagrams go to a server on loopback while an honest client fetches an
object repeatedly; then from another network namespace, if the program can make one (root and iproute2), where it counts
every byte that comes back.
"""

import argparse
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from benchmarks.soak.process_resources import ProcessResources
from objmapper_cli.commands.bench.own_server import start_server
from objmapper_client import Client
from objmapper_server import Config, Server
from tests.support.malformed_datagrams import junk
from tests.support.two_hosts import Host, NotPermitted, two_hosts

SIZE = 200_000
#: Datagrams that are made beforehand; each goes out many times.
DISTINCT = 20_000


def main() -> None:
    """Sends to a server on loopback, then to one on another host, and prints the results."""
    parser = argparse.ArgumentParser(description="junk")
    parser.add_argument("--datagrams", type=int, default=1_000_000)
    options = parser.parse_args()
    generator = random.Random(7)
    datagrams = [junk(generator) for _ in range(DISTINCT)]
    content = generator.randbytes(SIZE)
    with TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        for name in ("a", "small"):
            (root / name).write_bytes(content)
        (root / "directory").mkdir()
        with start_server(root, Path(scratch, "o.sock"), "--udp", "127.0.0.1:0") as server:
            address = server.addresses["udp"]
            with honest_client(address, content) as fetched:
                # Each kind once: what a server keeps for good, buffers and the cache, it has then.
                send_datagrams(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), address, datagrams, DISTINCT)
                before = ProcessResources.of(server.pid)
                seconds = send_datagrams(
                    socket.socket(socket.AF_INET, socket.SOCK_DGRAM), address, datagrams, options.datagrams
                )
                after = ProcessResources.of(server.pid)
            print(
                f"loopback: {options.datagrams:,} datagrams in {seconds:.0f} s; meanwhile {len(fetched)} objects were "
                f"fetched and right; {before} → {after}"
            )
            assert fetched
            assert after.descriptors <= before.descriptors
            assert after.resident <= before.resident + (1 << 20)
        try:
            with two_hosts() as (server_host, client_host):
                send_from_other_host(server_host, client_host, root, datagrams, options.datagrams)
        except NotPermitted as error:
            print(f"another host: not measured: {error}")


def send_from_other_host(server_host: Host, client_host: Host, root: Path, datagrams: list[bytes], count: int) -> None:
    """The same from an address that is not loopback."""
    server = server_host.run(Server(Config(root=root, udp=f"{server_host.address}:0")).__enter__)
    try:
        source = client_host.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        seconds = send_datagrams(source, server.addresses["udp"], datagrams, count)
        counts = server.statistics().datagrams
        assert counts is not None
        factor = counts.bytes_sent_total / counts.bytes_received_total
        print(
            f"another host: {count:,} datagrams in {seconds:.0f} s; received {counts.bytes_received_total:,} bytes, "
            f"sent {counts.bytes_sent_total:,}: amplification {factor:.2f}; {counts.retry_sent_total:,} RETRY, "
            f"{counts.data_sent_total} DATA, {counts.error_sent_total} ERROR, {counts.reply_sent_total} replies"
        )
        assert factor <= 1.0
        assert counts.data_sent_total == counts.error_sent_total == counts.reply_sent_total == 0
        with Client(server.addresses["udp"]) as client:
            assert client_host.run(client.read, "/small") == (root / "small").read_bytes()
    finally:
        server.stop()


def send_datagrams(source: socket.socket, address: str, datagrams: list[bytes], count: int) -> float:
    """Sends this number of datagrams, and discards the replies. Returns the seconds that it took."""
    host, _, port = address.removeprefix("udp://").rpartition(":")
    start = time.monotonic()
    with source, tqdm(total=count, unit="datagram", unit_scale=True, leave=False, disable=None) as bar:
        source.connect((host, int(port)))
        for sent in range(0, count, 1000):
            for at in range(sent, min(sent + 1000, count)):
                source.send(datagrams[at % len(datagrams)])
            bar.update(1000)
            drain(source)
    return time.monotonic() - start


def drain(source: socket.socket) -> None:
    """Receives waiting datagrams, without blocking."""
    try:
        while True:
            source.recv(65536, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return


@contextmanager
def honest_client(address: str, content: bytes) -> Iterator[list[int]]:
    """A client that fetches the object all the time; its list grows by one for each that was right."""
    fetched: list[int] = []
    stop = threading.Event()

    def fetch() -> None:
        with Client(address, timeout=60) as client:
            while not stop.is_set():
                assert client.read("/small") == content
                fetched.append(len(fetched))

    thread = threading.Thread(target=fetch)
    thread.start()
    try:
        yield fetched
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
