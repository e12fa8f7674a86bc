"""Objects over UDP against TCP and against memcached's UDP get: 1 KiB objects a second, 64 MiB in MB a second.

    python benchmarks/udp.py [--rounds 5] [--seconds 2] [--clients 8,64]

The servers take turns, round after round. Prints medians, and their ratios. Clients and servers are on one machine,
over loopback.
"""

import argparse
import shutil
import socket
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from objmapper_cli.commands.bench.own_server import own_server
from objmapper_client import Client
from objmapper_server.load import LoadPlan, LoadProtocol, run_load

KEY, SIZE, LARGE = "object", 1024, 64 << 20
Contender = Callable[[], float]


def main() -> None:
    """Measures and prints two tables."""
    parser = argparse.ArgumentParser(description="UDP")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--clients", default="8,64")
    options = parser.parse_args()
    with (
        own_server({KEY: SIZE, "large": LARGE}, "--udp", "127.0.0.1:0") as server,
        memcached() as peer,
    ):
        udp, tcp = server.addresses["udp"], server.addresses["tcp"]

        def small(address: str, dialect: LoadProtocol, clients: int, uri: str = f"/{KEY}") -> Contender:
            plan = LoadPlan(address=address, dialect=dialect, uris=(uri,), clients=clients, duration=options.seconds)

            def measure() -> float:
                result = run_load(plan)
                if result.errors:
                    print(f"{address} {dialect}: {result.errors} lost or failed")
                return result.requests_per_sec

            return measure

        for clients in map(int, options.clients.split(",")):
            contenders = {
                "UDP, a datagram": small(udp, "copy", clients),
                "UDP, pulled": small(udp, "pull", clients),
                "TCP, copy": small(tcp, "copy", clients),
            }
            if peer is not None:
                contenders["memcached, UDP get"] = small(peer, "memcached", clients, KEY)
            table(f"{SIZE} B objects, {clients} clients: requests/s", rounds(contenders, options.rounds), "TCP, copy")

        def volume(address: str, dialect: LoadProtocol) -> Contender:
            plan = LoadPlan(address=address, dialect=dialect, uris=("/large",), duration=options.seconds)
            return lambda: run_load(plan).bytes_per_sec / 1e6

        def by_sdk(address: str) -> Contender:
            def measure() -> float:
                with Client(address) as client:
                    start = time.perf_counter()
                    assert len(client.read("/large")) == LARGE
                    return LARGE / (time.perf_counter() - start) / 1e6

            return measure

        contenders = {
            "UDP, pulled by the load generator": volume(udp, "pull"),
            "TCP, copied to the load generator": volume(tcp, "copy"),
        }
        table("64 MiB, one client: MB/s", rounds(contenders, options.rounds), "TCP, copied to the load generator")
        contenders = {"UDP, Client.read": by_sdk(udp), "TCP, Client.read": by_sdk(tcp)}
        table("64 MiB by the SDK: MB/s", rounds(contenders, options.rounds), "TCP, Client.read")


def rounds(contenders: dict[str, Contender], count: int) -> dict[str, list[float]]:
    """The figures of all servers in all rounds."""
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        for name, measure in contenders.items():
            figures[name].append(measure())
    return figures


def table(title: str, figures: dict[str, list[float]], yardstick: str) -> None:
    """Medians, and their ratios to the baseline."""
    unit = statistics.median(figures[yardstick])
    print(f"\n{title}")
    for name, all_of_it in figures.items():
        median = statistics.median(all_of_it)
        print(f"  {name:<36}{median:>12,.0f}  {median / unit:>5.2f}  ({min(all_of_it):,.0f} to {max(all_of_it):,.0f})")


@contextmanager
def memcached() -> Iterator[str | None]:
    """Debian's memcached with the object, on a free port; None if it is not installed."""
    command = shutil.which("memcached")
    if command is None:
        print("memcached is not installed: no peer")
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    flags = ["-l", "127.0.0.1", "-p", str(port), "-U", str(port), "-u", "nobody", "-t", "1", "-m", "64"]
    with subprocess.Popen([command, *flags]) as process:
        try:
            store(port)
            yield f"udp://127.0.0.1:{port}"
        finally:
            process.terminate()


def store(port: int) -> None:
    """Puts the object into memcached, once it is up."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(f"set {KEY} 0 0 {SIZE}\r\n".encode() + bytes(SIZE) + b"\r\n")
                assert connection.recv(100) == b"STORED\r\n"
                return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
