"""Throughput and latency divided by those of minimal servers: rounds take turns, medians of the ratios.

    python benchmarks/against_baseline.py --load PROGRAM --floor-server PROGRAM --floor-epoll PROGRAM
                                          [--concurrency-model MODEL …] [--json]

The baselines are compiled programs that use version 1 of the protocol and check nothing:

* ``--floor-server``: ``PROGRAM unix PATH ROOT`` or ``PROGRAM tcp PORT ROOT``; a blocking thread per connection, a fresh
  open(2) for each descriptor, sendfile(2) for each copy
* ``--floor-epoll``: the same with the number of event loops as a fourth argument; every copy is that of ``o4k``, from
memory
* ``--load``: ``PROGRAM fd|copy|connect PATH|PORT URI CONNECTIONS SECONDS [THREADS [PIPELINE]]``, the same client for
  every server; it prints ``rps=… MBps=… p50_us=… p99_us=… errors=…``

A ratio over 1 means that objmapper is better; "better" is the better baseline of each round.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from objmapper_server import Concurrency, Config, Server

BIG = 100 << 20
READY_WITHIN = 10.0

# The code of a child process, so that the SDK has a separate interpreter: open() and close in a loop.
SDK_LOOP = """
import sys, time
from objmapper_client import Client
address, uri, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
times = []
with Client(address) as client:
    client.open(uri).close()
    end = time.perf_counter() + seconds
    began = time.perf_counter_ns()
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        client.open(uri).close()
        times.append(time.perf_counter_ns() - began)
times.sort()
at = lambda rank: times[int(rank * (len(times) - 1))] / 1000
print(f"sdk rps={len(times) / seconds:.0f} MBps=0 p50_us={at(0.5)} p99_us={at(0.99)} errors=0")
"""


@dataclass(frozen=True)
class Workload:
    """A load that all servers get."""

    name: str
    kind: str
    transport: str
    uri: str
    connections: int
    pipeline: int = 1
    figure: str = "rps"
    # Whether the event-loop baseline supports this load: it always sends 4 KiB.
    by_epoll: bool = True


WORKLOADS = [
    Workload("descriptors, 1 connection", "fd", "unix", "/o4k", 1, figure="p50_us"),
    Workload("descriptors, 8 connections", "fd", "unix", "/o4k", 8),
    Workload("descriptors, 64 connections", "fd", "unix", "/o4k", 64),
    Workload("descriptors, 8 × 16 pipelined", "fd", "unix", "/o4k", 8, pipeline=16),
    Workload("descriptors, a connection each", "connect", "unix", "/o4k", 1),
    Workload("4 KiB over TCP, 8 connections", "copy", "tcp", "/o4k", 8),
    Workload("4 KiB over TCP, 64 connections", "copy", "tcp", "/o4k", 64),
    Workload("100 MiB over TCP, 4 connections", "copy", "tcp", "/big", 4, figure="MBps", by_epoll=False),
]


@dataclass(frozen=True)
class Result:
    """One run of the load generator."""

    rps: float
    MBps: float
    p50_us: float
    p99_us: float
    errors: int

    @classmethod
    def of(cls, line: str) -> "Result":
        """Read the generator's line."""
        found = dict(word.split("=", 1) for word in line.split() if "=" in word)
        values = {name: float(found[name]) for name in ("rps", "MBps", "p50_us", "p99_us")}
        return cls(**values, errors=int(found["errors"]))


@dataclass
class Row:
    """One load: by server the median of each figure; by model and baseline the median ratios."""

    work: Workload
    medians: dict[str, dict[str, float]]
    ratios: dict[str, dict[str, float]]
    p99_ratios: dict[str, dict[str, float]]


def better(figure: str, ours: Result, other: Result) -> float:
    """How many times better `ours` is."""
    mine, theirs = getattr(ours, figure), getattr(other, figure)
    if not mine or not theirs:
        return 0.0
    return float(theirs / mine if figure.endswith("_us") else mine / theirs)


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(family: socket.AddressFamily, address: str | tuple[str, int], process: "subprocess.Popen[bytes]") -> None:
    """Returns when a server listens there."""
    until = time.monotonic() + READY_WITHIN
    while time.monotonic() < until and process.poll() is None:
        with socket.socket(family) as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.01)
    sys.exit(f"{process.args!r} does not listen on {address}")


@contextlib.contextmanager
def yardstick(program: Path, folder: Path, root: Path, extra: Sequence[str]) -> Iterator[dict[str, str]]:
    """Runs a baseline on both transports. Yields its addresses for the load generator."""
    path, port = folder / f"{program.name}.sock", free_port()
    with contextlib.ExitStack() as running:
        for transport, where in (("unix", str(path)), ("tcp", str(port))):
            process = subprocess.Popen([program, transport, where, root, *extra])
            running.callback(process.wait)
            running.callback(process.kill)
            if transport == "unix":
                wait_for(socket.AF_UNIX, where, process)
            else:
                wait_for(socket.AF_INET, ("127.0.0.1", port), process)
        yield {"unix": str(path), "tcp": str(port)}


@contextlib.contextmanager
def objmapper(
    model: Concurrency, optimize_for: Literal["latency", "throughput"], folder: Path, root: Path
) -> Iterator[dict[str, str]]:
    """Runs objmapper on both transports, in this process: its threads do not need the interpreter."""
    config = Config(
        root=root,
        unix=folder / f"{model.value}.sock",
        tcp="127.0.0.1:0",
        admin=None,
        concurrency_model=model,
        optimize_for=optimize_for,
    )
    with Server(config) as server:
        yield {"unix": str(config.unix), "tcp": server.addresses["tcp"].rpartition(":")[2]}


def run(command: Sequence[str | Path]) -> Result:
    """One run, which must be free of errors."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return Result.of(done.stdout)


def in_turn(rounds: int, names: Sequence[str]) -> Iterator[str]:
    """A B C, B C A, C A B …: each comes first in turn."""
    for number in range(rounds):
        at = number % len(names)
        yield from (*names[at:], *names[:at])


def measure(work: Workload, where: dict[str, dict[str, str]], floors: Sequence[str], given: argparse.Namespace) -> Row:
    """Measures all servers in turn, round by round."""
    names = [name for name in where if work.by_epoll or name != "floor-epoll"]
    runs: dict[str, list[Result]] = {name: [] for name in names}
    threads = min(given.load_threads, work.connections)
    for name in in_turn(given.rounds, names):
        target = where[name][work.transport]
        numbers = (work.connections, given.seconds, threads, work.pipeline)
        runs[name].append(run([given.load, work.kind, target, work.uri, *map(str, numbers)]))
        given.bar.update()
    medians = {
        name: {
            figure: statistics.median(getattr(result, figure) for result in results)
            for figure in ("rps", "MBps", "p50_us", "p99_us")
        }
        for name, results in runs.items()
    }

    def ratios(name: str, figure: str) -> dict[str, float]:
        beside = {
            floor: list(map(partial(better, figure), runs[name], runs[floor])) for floor in floors if floor in runs
        }
        beside["better"] = [min(of_round) for of_round in zip(*beside.values(), strict=True)]
        return {floor: statistics.median(values) for floor, values in beside.items()}

    ours = [name for name in names if name not in floors]
    return Row(
        work,
        medians,
        {name: ratios(name, work.figure) for name in ours},
        {name: ratios(name, "p99_us") for name in ours},
    )


def measure_sdk(where: dict[str, str], given: argparse.Namespace) -> tuple[float, float, float]:
    """`Client.open()` and close beside the load generator, both with one connection: two p50 in µs, and their ratio."""
    sdk, load = [], []
    for _ in range(given.rounds):
        script = [sys.executable, "-c", SDK_LOOP, f"unix:{where['unix']}", "/o4k", str(given.seconds)]
        sdk.append(run(script).p50_us)
        load.append(run([given.load, "fd", where["unix"], "/o4k", "1", str(given.seconds)]).p50_us)
        given.bar.update(2)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(sdk, load, strict=True))
    return statistics.median(sdk), statistics.median(load), ratio


def show(rows: list[Row], sdk: tuple[float, float, float], floors: Sequence[str]) -> None:
    """Prints the tables."""
    models = list(rows[0].ratios)
    print(
        f"\n{'work':<33}{'figure':<7}"
        + "".join(f"{name:>14}" for name in floors)
        + "".join(map("{:>29}".format, models))
    )
    for row in rows:
        line = f"{row.work.name:<33}{row.work.figure:<7}"
        for name in floors:
            line += f"{row.medians[name][row.work.figure]:>14,.1f}" if name in row.medians else f"{'–':>14}"
        for name in models:
            beside = "  ".join(
                f"{row.ratios[name][floor]:.2f}" if floor in row.ratios[name] else " –  " for floor in floors
            )
            line += f"{f'{row.medians[name][row.work.figure]:,.1f} ({beside})':>29}"
        print(line)
    print(f"\nin brackets: how many times better than {' and '.join(floors)}; of p50_us, less is better")
    print(f"\n{'p99, the same ratios':<68}" + "".join(map("{:>29}".format, models)))
    for row in rows:
        line = f"{row.work.name:<68}"
        for name in models:
            line += (
                f"{'  '.join(f'{value:.2f}' for floor, value in row.p99_ratios[name].items() if floor != 'better'):>29}"
            )
        print(line)
    print(
        f"\nSDK: Client.open() and close, p50 {sdk[0]:.1f} µs; the load generator on the same server {sdk[1]:.1f} µs; "
        f"ratio {sdk[2]:.2f}"
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed beside the least that a server can cost, as ratios.")
    parser.add_argument("--load", type=Path, required=True, metavar="PROGRAM")
    parser.add_argument("--floor-server", type=Path, required=True, metavar="PROGRAM")
    parser.add_argument("--floor-epoll", type=Path, required=True, metavar="PROGRAM")
    parser.add_argument("--concurrency-model", type=Concurrency, action="append", choices=list(Concurrency))
    parser.add_argument("--optimize-for", choices=["latency", "throughput"], default="throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run (1)")
    parser.add_argument("--load-threads", type=int, default=1, help="threads of the load generator (1)")
    parser.add_argument("--loops", type=int, default=1, help="event loops of --floor-epoll (1)")
    parser.add_argument("--only", metavar="WORD", default="", help="only the work whose name has this in it")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    given = parser.parse_args()
    for program in (given.load, given.floor_server, given.floor_epoll):
        if not os.access(program, os.X_OK):
            parser.error(f"{program} cannot be run")
    given.models = list(dict.fromkeys(given.concurrency_model or [Concurrency.AUTO]))
    given.works = [work for work in WORKLOADS if given.only in work.name]
    if not given.works:
        parser.error(f"no work has {given.only!r} in its name")
    return given


def main() -> int:
    """Start everything, measure in turn, report."""
    given = arguments()
    floors = ["floor-server", "floor-epoll"]
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="objmapper-bench-")))
        root = folder / "root"
        root.mkdir()
        (root / "o4k").write_bytes(os.urandom(4096))
        (root / "big").write_bytes(bytes(BIG))
        where = {
            "floor-server": running.enter_context(yardstick(given.floor_server, folder, root, [])),
            "floor-epoll": running.enter_context(yardstick(given.floor_epoll, folder, root, [str(given.loops)])),
        }
        for model in given.models:
            where[model.value] = running.enter_context(objmapper(model, given.optimize_for, folder, root))
        runs = sum(len(where) - (not work.by_epoll) for work in given.works) * given.rounds + 2 * given.rounds
        given.bar = running.enter_context(tqdm(total=runs, unit="run", disable=None))
        rows = []
        for work in given.works:
            given.bar.set_description(work.name)
            rows.append(measure(work, where, floors, given))
        given.bar.set_description("SDK")
        sdk = measure_sdk(where[given.models[0].value], given)
    if given.json:
        document = {
            "cores": os.cpu_count(),
            "rounds": given.rounds,
            "seconds": given.seconds,
            "work": [asdict(row) for row in rows],
            "sdk": dict(zip(("p50_us", "load_p50_us", "ratio"), sdk, strict=True)),
        }
        print(json.dumps(document, indent=2))
    else:
        show(rows, sdk, floors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
