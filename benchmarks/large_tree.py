"""Start-up and requests of a server with a million objects, beside one with a thousand.

    python benchmarks/large_tree.py [--objects 1000000] [--rounds 5] [--seconds 1]

Both trees have a thousand directories, and both servers get requests for one object of each, in turn: descriptors over
a
Unix socket; medians of the rounds, and of the ratios of each round.
"""

import argparse
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from objmapper_cli.commands.bench.own_server import OwnServer, start_server
from objmapper_server.load import LoadPlan, LoadResult, run_load

DIRECTORIES = 1000
SMALL = 1000


def grow(root: Path, objects: int) -> tuple[str, ...]:
    """Makes a tree. Returns the URI of one object in each of its directories."""
    chosen = []
    for number in tqdm(range(objects), desc=f"{objects:,} objects", unit="file", leave=False, disable=None):
        place, name = number % DIRECTORIES, number // DIRECTORIES
        folder = root / f"{place:03}"
        if name == 0:
            folder.mkdir(parents=True)
            chosen.append(f"/{place:03}/{name}")
        (folder / str(name)).write_bytes(b"object")
    return tuple(chosen)


def main() -> None:
    """Measures both in turn and prints two lines."""
    parser = argparse.ArgumentParser(description="a large tree beside a small one")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="objmapper-bench-")))
        plans: dict[int, LoadPlan] = {}
        servers: dict[int, OwnServer] = {}
        ready: dict[int, float] = {}
        for objects in (SMALL, options.objects):
            uris = grow(scratch / str(objects), objects)
            began = time.monotonic()
            servers[objects] = stack.enter_context(start_server(scratch / str(objects), scratch / f"{objects}.sock"))
            ready[objects] = time.monotonic() - began
            plans[objects] = LoadPlan(
                address=servers[objects].addresses["unix"],
                dialect="fdpass",
                uris=uris,
                clients=options.clients,
                duration=options.seconds,
            )
            run_load(plans[objects])  # from here on both have the same objects in the kernel's caches
        results: dict[int, list[LoadResult]] = {objects: [] for objects in plans}
        for number in tqdm(range(options.rounds), unit="round", disable=None):
            for objects in sorted(plans, reverse=number % 2 == 1):
                results[objects].append(run_load(plans[objects]))
        for objects, of_tree in results.items():
            rate, p99 = (
                statistics.median(getattr(r, part) for r in of_tree) for part in ("requests_per_sec", "p99_us")
            )
            ratio = statistics.median(
                r.requests_per_sec / s.requests_per_sec for r, s in zip(of_tree, results[SMALL], strict=True)
            )
            memory = servers[objects].memory() / 2**20
            print(
                f"{objects:>9,} objects: ready after {ready[objects]:.2f} s, {memory:.1f} MiB, "
                f"{rate:,.0f} requests/s ({ratio:.2f}), p99 {p99:,.0f} µs, errors {sum(r.errors for r in of_tree)}"
            )


if __name__ == "__main__":
    main()
