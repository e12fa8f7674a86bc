"""Throughput beside nginx and Redis, and batched descriptors beside a minimal loop: ratios inside one run.

    python -m benchmarks.against_nginx_redis [--floor-epoll PROGRAM] [--rounds 5] [--seconds 1] [--only WORD]

Each server has one worker for the network and listens on 127.0.0.1. The same load generator measures them in turn: A B
C, B C A, … Medians of the rounds. nginx sends files (`sendfile on; open_file_cache`), Redis sends values from memory,
and ``--floor-epoll PROGRAM`` (see against_baseline.py) sends descriptors, up to 64 a message. The ratios are
objmapper's figure divided by the other's: objmapper is better if a rate is over 1 or a p99 under 1.
"""

import argparse
import contextlib
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from tqdm import tqdm

from benchmarks.against_baseline import free_port, in_turn, wait_for
from objmapper_cli.commands.bench.own_server import start_server
from objmapper_server.load import LoadPlan, LoadProtocol, LoadResult, run_load

SIZES = {"o4k": 4096, "big": 100 << 20}
MAX_CLIENTS = 5000

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit; worker_rlimit_nofile 20000;
events {{ worker_connections 10000; multi_accept on; }}
http {{
  access_log off; sendfile on; tcp_nopush off; keepalive_requests 1000000000; keepalive_timeout 1h;
  open_file_cache max=1000 inactive=1h;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=8192; root {root}; }}
}}
"""


@dataclass(frozen=True)
class Peer:
    """A server, and the protocol and address of its load."""

    address: str
    dialect: LoadProtocol


@dataclass(frozen=True)
class Workload:
    """A load for all servers that support it."""

    name: str
    uri: str
    clients: int
    peers: tuple[str, ...]
    pipeline: int = 1
    figure: str = "requests_per_sec"


WORKLOADS = (
    Workload("4 KiB, 64 connections", "/o4k", 64, ("objmapper copy", "nginx", "redis")),
    Workload("4 KiB, 512 connections", "/o4k", 512, ("objmapper copy", "nginx", "redis")),
    Workload("4 KiB, 5,000 connections", "/o4k", MAX_CLIENTS, ("objmapper copy", "nginx", "redis")),
    Workload("100 MiB, 4 connections", "/big", 4, ("objmapper splice", "nginx"), figure="bytes_per_sec"),
    Workload("descriptors, 8 × 64 pipelined", "/o4k", 8, ("objmapper batches", "floor"), pipeline=64),
)


@contextlib.contextmanager
def running(address: tuple[str, int] | str, *command: str | Path) -> Iterator[None]:
    """Runs a program, silently, until the end of the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, address, process)
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def nginx(folder: Path, root: Path) -> Iterator[Peer]:
    """One worker that serves the root."""
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, root=root, port=port), encoding="utf-8")
    with running(("127.0.0.1", port), "nginx", "-c", folder / "nginx.conf"):
        yield Peer(f"tcp://127.0.0.1:{port}", "http")


@contextlib.contextmanager
def redis(root: Path) -> Iterator[Peer]:
    """A server with the small object under the key "/o4k", which is never written to a disk."""
    port = free_port()
    options = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--maxclients", "10000"]
    with running(("127.0.0.1", port), "redis-server", "--port", str(port), *options):
        with socket.create_connection(("127.0.0.1", port)) as client:
            content = (root / "o4k").read_bytes()
            client.sendall(b"*3\r\n$3\r\nSET\r\n$4\r\n/o4k\r\n$%d\r\n%b\r\n" % (len(content), content))
            if (said := client.recv(100)) != b"+OK\r\n":
                sys.exit(f"redis-server does not keep the object: {said!r}")
        yield Peer(f"tcp://127.0.0.1:{port}", "redis")


@contextlib.contextmanager
def floor(program: Path, folder: Path, root: Path) -> Iterator[Peer]:
    """The loop that passes descriptors in batches."""
    path = str(folder / "floor.sock")
    with running(path, program, "unix", path, root, "1", "batch"):
        yield Peer(f"unix:{path}", "fdpass")


def measure(work: Workload, peers: dict[str, Peer], options: argparse.Namespace, bar: "tqdm[Never]") -> None:
    """Measures all servers in turn, round by round, and prints a line for each."""
    names = [name for name in work.peers if name in peers]
    results: dict[str, list[LoadResult]] = {name: [] for name in names}
    for name in in_turn(options.rounds, names):
        plan = LoadPlan(
            address=peers[name].address,
            dialect=peers[name].dialect,
            uris=(work.uri,),
            clients=work.clients,
            pipeline=work.pipeline,
            duration=options.seconds,
        )
        results[name].append(run_load(plan))
        bar.update()
    ours, *others = names
    for name in names:
        rate = statistics.median(getattr(result, work.figure) for result in results[name])
        p50, p99 = (
            statistics.median(getattr(result, part) for result in results[name]) for part in ("p50_us", "p99_us")
        )
        said = f"{rate / 2**20:>9,.0f} MiB/s" if work.figure == "bytes_per_sec" else f"{rate:>9,.0f} /s   "
        line = f"{work.name:<31}{name:<18}{said}  p50 {p50:>9,.0f} µs  p99 {p99:>9,.0f} µs"
        if name in others:
            pairs = list(zip(results[ours], results[name], strict=True))
            rates = statistics.median(getattr(a, work.figure) / getattr(b, work.figure) for a, b in pairs)
            tails = statistics.median(a.p99_us / b.p99_us for a, b in pairs)
            line += f"   objmapper: {rates:.2f} × the rate, {tails:.2f} × the p99"
        errors = sum(result.errors for result in results[name])
        bar.write(line + (f"   {errors} ERRORS" if errors else ""), file=sys.stdout)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed beside nginx and Redis, as ratios inside one run.")
    parser.add_argument("--floor-epoll", type=Path, metavar="PROGRAM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run (1)")
    parser.add_argument("--only", metavar="WORD", default="", help="only the work whose name has this in it")
    options = parser.parse_args()
    for program in ("nginx", "redis-server"):
        if not shutil.which(program):
            parser.error(f"{program} is missing: apt-get install nginx-light redis-server")
    options.works = [work for work in WORKLOADS if options.only in work.name]
    if not options.works:
        parser.error(f"no work has {options.only!r} in its name")
    return options


def main() -> None:
    """Starts all servers, measures, prints."""
    options = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="objmapper-bench-")))
        # nginx's worker is another user.
        folder.chmod(0o755)
        root = folder / "root"
        root.mkdir()
        for name, size in SIZES.items():
            (root / name).write_bytes(bytes(size))
        most = ["--max-connections", str(2 * MAX_CLIENTS)]
        own = stack.enter_context(start_server(root, folder / "o.sock", *most))
        peers = {
            "objmapper copy": Peer(own.addresses["tcp"], "copy"),
            "objmapper splice": Peer(own.addresses["tcp"], "splice"),
            "objmapper batches": Peer(own.addresses["unix"], "fdpass2"),
            "nginx": stack.enter_context(nginx(folder, root)),
            "redis": stack.enter_context(redis(root)),
        }
        if options.floor_epoll:
            peers["floor"] = stack.enter_context(floor(options.floor_epoll, folder, root))
        runs = options.rounds * sum(len(set(work.peers) & set(peers)) for work in options.works)
        with tqdm(total=runs, unit="run", disable=None) as bar:
            for work in options.works:
                bar.set_description(work.name)
                measure(work, peers, options, bar)


if __name__ == "__main__":
    main()
