"""Goodput, waiting times and rejections of a server under ten times its peak load.

    python benchmarks/overload.py [--factor 10] [--clients 64] [--seconds 5]

First the peak: a closed loop in which every client has 16 pending requests. Then an open loop, in which requests are
due at FACTOR times the peak. Clients and server share a machine, so a request must cost the server more than the
client, or the generator is overloaded: the object lies hundreds of directories deep, which takes the kernel a while to
walk. In the second part the generator takes processor time from the server, so the ratio of goodput to peak is too low.
"""

import argparse
import json
import os
import urllib.request
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from objmapper_cli.commands.bench.own_server import start_server
from objmapper_server.load import LoadPlan, run_load

MODELS = ("thread-pool", "work-stealing", "epoll")


def main() -> None:
    """Measures every model and prints a table."""
    parser = argparse.ArgumentParser(description="overload")
    parser.add_argument("--factor", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--depth", type=int, default=400)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--ahead", type=int, default=1000, help="requests that a client sends ahead of their answers")
    parser.add_argument("--model", action="append", choices=MODELS)
    options = parser.parse_args()
    uri = "/d" * options.depth + "/object"
    print(
        f"1 KiB copies over TCP, {options.depth} directories deep, {options.clients} clients, queue of {options.queue}"
    )
    columns = ("peak/s", "offered/s", "goodput/s", "of peak", "queue p99 ms", "refusals/s", "refusal p50 ms")
    print(f"{'model':<15}" + "".join(f"{name:>15}" for name in columns))
    for model in options.model or MODELS:
        with TemporaryDirectory() as scratch:
            root = Path(scratch, "root")
            root.mkdir()
            make_deep(root, options.depth)
            admin = f"127.0.0.1:{free_port()}"
            flags = ["--concurrency-model", model, "--max-queue-depth", str(options.queue), "--admin", admin]
            with start_server(root, Path(scratch, "o.sock"), *flags) as server:
                plan = LoadPlan(address=server.addresses["tcp"], dialect="copy", uris=(uri,), duration=options.seconds)
                peak = run_load(replace(plan, clients=8, pipeline=16))
                rate = options.factor * peak.requests_per_sec
                over = run_load(replace(plan, clients=options.clients, pipeline=options.ahead, rate=rate))
                stats: dict[str, Any] = json.load(urllib.request.urlopen(f"http://{admin}/stats"))
        wait = stats["transports"]["tcp"]["p99_queue_wait_us"] / 1000
        figures = (
            f"{peak.requests_per_sec:,.0f}",
            f"{(over.requests + over.refused) / over.elapsed:,.0f}",
            f"{over.requests_per_sec:,.0f}",
            f"{over.requests_per_sec / peak.requests_per_sec:.0%}",
            f"{wait:.2f}",
            f"{over.refused / over.elapsed:,.0f}",
            f"{over.refusal_p50_us / 1000:.2f}",
        )
        print(f"{model:<15}" + "".join(f"{figure:>15}" for figure in figures), flush=True)


def make_deep(root: Path, depth: int) -> None:
    """An object below `depth` directories."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("object", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=here)
    os.write(file, bytes(1024))
    os.close(file)
    os.close(here)


def free_port() -> int:
    """A free TCP port."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
