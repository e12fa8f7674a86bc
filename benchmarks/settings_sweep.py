"""The effect of each setting on this machine: servers that differ in one setting, under the same load, in turns.

    python benchmarks/settings_sweep.py [--rounds 5] [--seconds 1] [--knob pool_size …]

Every line is the median of the rounds; within a round the servers take turns, so that other load on the machine affects
all of them. For `async_storage` and `storage_pool_size` the objects leave the page cache before each round, which needs
a file system with a disk behind it (a tmpfs has none).
"""

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from objmapper_cli.commands.bench.own_server import OwnServer, start_server
from objmapper_server.load import LoadPlan, LoadResult, run_load

COLD_FILES = 400
COLD_SIZE = 256 << 10


@dataclass(frozen=True)
class SweptSetting:
    """A setting, the compared values, and the load that shows its effect."""

    name: str
    values: tuple[str, ...]
    load: str
    flags: tuple[str, ...]
    measure: Callable[[OwnServer, float], Mapping[str, float]]


def hot(server: OwnServer, seconds: float, clients: int, transport: str = "unix", pipeline: int = 1) -> LoadResult:
    """A closed loop over an object in memory."""
    dialect = "fdpass" if transport == "unix" else "copy"
    return run_load(
        LoadPlan(
            address=server.addresses[transport],
            dialect=dialect,  # type: ignore[arg-type]
            uris=("/object",),
            clients=clients,
            pipeline=pipeline,
            duration=seconds,
        )
    )


def rate_and_tail(clients: int, transport: str = "unix", pipeline: int = 1) -> Callable[..., Mapping[str, float]]:
    """Requests a second and latency of this number of clients."""

    def measure(server: OwnServer, seconds: float) -> Mapping[str, float]:
        result = hot(server, seconds, clients, transport, pipeline)
        return {
            "requests/s": result.requests_per_sec,
            "p50 µs": result.p50_us,
            "p99 µs": result.p99_us,
            "refused/s": result.refused / result.elapsed,
        }

    return measure


def beside_cold_reads(server: OwnServer, seconds: float) -> Mapping[str, float]:
    """Hot requests while other clients read objects that are not in memory; both in copy mode over TCP."""
    cold = tuple(f"/cold/{number}" for number in range(COLD_FILES))
    for uri in cold:
        descriptor = os.open(server.root / uri[1:], os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    address = server.addresses["tcp"]
    reading = LoadPlan(address=address, dialect="copy", uris=cold, clients=8, requests=COLD_FILES, duration=60)
    with ThreadPoolExecutor(1) as pool:
        reads = pool.submit(run_load, reading)
        result = hot(server, seconds, 4, "tcp")
        slow = reads.result()
    return {"hot p50 µs": result.p50_us, "hot p99 µs": result.p99_us, "cold requests/s": slow.requests_per_sec}


SWEPT_SETTINGS = (
    SweptSetting(
        "pool_size",
        ("1", "2", "4", "16"),
        "thread-pool, descriptors, 64 clients",
        ("--concurrency-model", "thread-pool"),
        rate_and_tail(64),
    ),
    SweptSetting(
        "max_queue_depth",
        ("4", "100", "10000"),
        "thread-pool of 2, descriptors, 256 clients",
        ("--concurrency-model", "thread-pool", "--pool-size", "2"),
        rate_and_tail(256),
    ),
    SweptSetting(
        "optimize_for",
        ("throughput", "latency"),
        "thread-per-connection, descriptors, 1 client",
        ("--concurrency-model", "thread-per-connection"),
        rate_and_tail(1),
    ),
    SweptSetting(
        "optimize_for",
        ("throughput", "latency"),
        "auto, descriptors, 64 clients",
        (),
        rate_and_tail(64),
    ),
    SweptSetting(
        "max_threads",
        ("8", "32"),
        "thread-per-connection, descriptors, 32 clients (those beyond the threads wait)",
        ("--concurrency-model", "thread-per-connection"),
        rate_and_tail(32),
    ),
    SweptSetting("cache_size", ("0", "1GiB"), "auto, 4 KiB copies over TCP, 64 clients", (), rate_and_tail(64, "tcp")),
    SweptSetting(
        "async_storage",
        ("off", "on"),
        f"epoll, 4 clients on a hot object beside 8 that read {COLD_FILES} cold ones of 256 KiB",
        ("--concurrency-model", "epoll"),
        beside_cold_reads,
    ),
    SweptSetting(
        "storage_pool_size",
        ("1", "4", "16"),
        f"the same, by cold reads of {COLD_FILES} objects",
        ("--concurrency-model", "epoll"),
        beside_cold_reads,
    ),
)


def flags_for(name: str, value: str) -> list[str]:
    """A setting as a flag of the command."""
    if name == "async_storage":
        return ["--async-storage" if value == "on" else "--no-async-storage"]
    return [f"--{name.replace('_', '-')}", value]


def show(setting: SweptSetting, rounds: int, seconds: float, scratch: Path) -> None:
    """Measures one knob and prints its table."""
    root = scratch / "root"
    with ExitStack() as stack:
        servers = {
            value: stack.enter_context(
                start_server(root, scratch / f"{value}.sock", *setting.flags, *flags_for(setting.name, value))
            )
            for value in setting.values
        }
        figures: dict[str, list[Mapping[str, float]]] = {value: [] for value in setting.values}
        for _ in range(rounds):
            for value, server in servers.items():
                figures[value].append(setting.measure(server, seconds))
    columns = list(figures[setting.values[0]][0])
    print(f"\n{setting.name}: {setting.load}\n\n| {setting.name} | {' | '.join(columns)} |")
    print("|---|" + "--:|" * len(columns))
    for value in setting.values:
        cells = [f"{statistics.median(row[column] for row in figures[value]):,.0f}" for column in columns]
        print(f"| {value} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measures the chosen settings."""
    parser = argparse.ArgumentParser(description="what each knob does")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--knob", action="append", choices=sorted({setting.name for setting in SWEPT_SETTINGS}))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="objmapper-knobs-") as name:
        scratch = Path(name)
        (scratch / "root" / "cold").mkdir(parents=True)
        (scratch / "root" / "object").write_bytes(os.urandom(4096))
        os.utime(scratch / "root" / "object", (1, 1))
        for number in range(COLD_FILES):
            (scratch / "root" / "cold" / str(number)).write_bytes(os.urandom(COLD_SIZE))
        os.sync()
        for setting in SWEPT_SETTINGS:
            if options.knob is None or setting.name in options.setting:
                show(setting, options.rounds, options.seconds, scratch)


if __name__ == "__main__":
    main()
