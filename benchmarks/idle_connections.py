"""Latency, throughput and memory of active connections beside ten thousand idle ones.

    python benchmarks/idle_connections.py [--idle 10000] [--active 64] [--rounds 5] [--seconds 2]

Each round measures a model without and with the idle connections, in turn, when the server has accepted or closed them.
Prints medians. If the threads of server and load share two cores, p99 varies by a factor of three between two equal
runs: use many short rounds.
"""

import argparse
import json
import resource
import socket
import statistics
import time
import urllib.request
from contextlib import ExitStack

from objmapper_cli.commands.bench.own_server import own_server
from objmapper_server.load import LoadPlan, LoadResult, run_load

MODELS = ("thread-pool", "work-stealing", "epoll")


def connect_idle(path: str, count: int, stack: ExitStack) -> None:
    """Opens connections that send nothing; the stack closes them."""
    for _ in range(count):
        idle = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        idle.connect(path)


def wait_for_connections(admin: str, count: int) -> None:
    """Returns when the server has this number of connections, at most a minute later."""
    deadline = time.monotonic() + 60
    connections = -1
    while connections != count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server has {connections} connections, not {count}")
        time.sleep(0.1)
        with urllib.request.urlopen(f"{admin}/stats") as answer:
            connections = json.load(answer)["connections"]


def main() -> None:
    """Measures every model and prints a table."""
    parser = argparse.ArgumentParser(description="idle connections beside active ones")
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--active", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"{options.idle} idle, {options.active} active, descriptors over a Unix socket, medians of {options.rounds}")
    print(f"{'model':<15} {'req/s ratio':>12} {'p99 ratio':>10} {'p99 µs':>9} {'RSS MiB':>9}")
    for model in MODELS:
        flags = ["--concurrency-model", model, "--max-connections", str(options.idle + 1000), "--pool-size", "4"]
        flags += ["--idle-timeout", "3600", "--admin", "127.0.0.1:0"]
        alone: list[LoadResult] = []
        beside: list[LoadResult] = []
        memory = 0
        with own_server({"object": 4096}, *flags) as server:
            address = server.addresses["unix"]
            plan = LoadPlan(
                address=address, dialect="fdpass", uris=("/object",), clients=options.active, duration=options.seconds
            )
            for _ in range(options.rounds):
                wait_for_connections(server.addresses["http"], 0)
                alone.append(run_load(plan))
                with ExitStack() as stack:
                    connect_idle(address.removeprefix("unix:"), options.idle, stack)
                    wait_for_connections(server.addresses["http"], options.idle)
                    beside.append(run_load(plan))
                    memory = max(memory, server.memory())
        rate = statistics.median(b.requests_per_sec / a.requests_per_sec for a, b in zip(alone, beside, strict=True))
        tail = statistics.median(b.p99_us / a.p99_us for a, b in zip(alone, beside, strict=True))
        p99 = statistics.median(result.p99_us for result in beside)
        errors = sum(result.errors for result in alone + beside)
        failed = f" {errors} errors" if errors else ""
        print(f"{model:<15} {rate:>12.2f} {tail:>10.2f} {p99:>9.0f} {memory / 2**20:>9.1f}{failed}")


if __name__ == "__main__":
    main()
