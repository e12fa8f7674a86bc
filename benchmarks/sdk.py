"""The cost of the Python SDK: the native generator, `Client` and `AsyncClient` with one server, in turns.

``python benchmarks/sdk.py [--rounds 5] [--load FLOOR_LOAD] [--json]``. Every round measures all of them once, one after
the other. Prints the medians of the rounds, and the ratios within them: the time of one request of the SDK, divided by
that of the native generator, or of the client in C (--load). "no SDK" is the cost of the interpreter and the necessary
system calls. 64 threads share a `Client`, 64 tasks an `AsyncClient`: one connection each.
"""

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from objmapper_client import AsyncClient, Client, Mode, Object
from objmapper_client.protocol import encode_request
from objmapper_server.load import LoadPlan, run_load

OBJECTS = 1000
MANY = 64
CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
Measure = Callable[[], float]


@contextmanager
def serving(model: str) -> Iterator[tuple[str, str]]:
    """A server in a process of its own, with objects of 4 KiB. Its Unix and its TCP address."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "root")
        root.mkdir()
        for number in range(OBJECTS):
            (root / f"{number:04}").write_bytes(b"4" * 4096)
        arguments = ["serve", str(root), "--unix", f"{directory}/socket", "--tcp", "127.0.0.1:0", "--no-admin"]
        command = [sys.executable, "-m", "objmapper_cli", *arguments, "--concurrency-model", model]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            try:
                words = next(line for line in server.stderr if line.startswith("objmapper: ready")).split()
                yield tuple(word for word in words if word.startswith(("unix:", "tcp:")))[:2]  # type: ignore[misc]
            finally:
                server.terminate()


def native(address: str, dialect: Any, requests: int) -> float:
    """The median of one request at a time, in µs."""
    return run_load(LoadPlan(address=address, dialect=dialect, uris=("/0000",), requests=requests, duration=60)).p50_us


def in_c(load: str, address: str) -> float:
    """The median of one descriptor at a time for a client in C that uses version 1 and checks nothing, in µs."""
    command = [load, "fd", address.removeprefix("unix:"), "/0000", "1", "0.5"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(said.partition("p50_us=")[2].split()[0])


def one_at_a_time(step: Callable[[], object], requests: int) -> float:
    """The median of one step, in µs."""
    times = []
    clock = time.perf_counter
    for _ in range(requests):
        start = clock()
        step()
        times.append(clock() - start)
    return statistics.median(times) * 1e6


def without_sdk(address: str, requests: int) -> float:
    """The median of one descriptor at a time for a minimal Python program that checks nothing, in µs."""
    number = struct.Struct("@i")
    request = encode_request(Mode.FDPASS, "/0000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(address.removeprefix("unix:"))

        def step() -> None:
            connection.send(request)
            _, [(_, _, passed)], _, _ = connection.recvmsg(512, socket.CMSG_SPACE(number.size), CLOEXEC)
            os.close(number.unpack(passed)[0])

        return one_at_a_time(step, requests)


def opened(client: Client) -> Callable[[], object]:
    """A step: an object is opened and closed."""
    return lambda: client.open("/0000").close()


async def open_alone(address: str, requests: int) -> float:
    """The median of one open and close under asyncio, in µs."""
    times = []
    clock = time.perf_counter
    async with AsyncClient(address) as client:
        for _ in range(requests):
            start = clock()
            (await client.open("/0000")).close()
            times.append(clock() - start)
    return statistics.median(times) * 1e6


def open_in_threads(address: str, requests: int) -> float:
    """Opens a second, by MANY threads with one client."""
    with Client(address, mode="fdpass") as client:
        step, each = opened(client), requests // MANY
        threads = [threading.Thread(target=lambda: [step() for _ in range(each)]) for _ in range(MANY)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return each * MANY / (time.perf_counter() - start)


async def open_in_tasks(address: str, requests: int) -> float:
    """Opens a second, by MANY tasks with one client."""
    each = requests // MANY

    async def work() -> None:
        for _ in range(each):
            (await client.open("/0000")).close()

    async with AsyncClient(address, mode="fdpass") as client:
        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(MANY)))
        return each * MANY / (time.perf_counter() - start)


def open_together(address: str, requests: int) -> float:
    """Opens a second, a thousand at a time."""
    uris = [f"/{number:04}" for number in range(OBJECTS)]
    with Client(address) as client:
        start = time.perf_counter()
        for _ in range(max(1, requests // OBJECTS)):
            for found in client.open_many(uris):
                assert isinstance(found, Object)
                found.close()
        return max(1, requests // OBJECTS) * OBJECTS / (time.perf_counter() - start)


def under(loop: str, main: Callable[[], Coroutine[Any, Any, float]]) -> float:
    """Runs it under asyncio's loop, or uvloop's."""
    if loop == "asyncio":
        return asyncio.run(main())
    import uvloop

    return float(uvloop.run(main()))


def measures(unix: str, tcp: str, requests: int, client: Client, over_tcp: Client) -> dict[str, Measure]:
    """The measurements, by name."""
    found: dict[str, Measure] = {
        "open, native": lambda: native(unix, "fdpass", requests),
        "open, no SDK": lambda: without_sdk(unix, requests),
        "open, Client": lambda: one_at_a_time(opened(client), requests),
        "read 4 KiB over TCP, native": lambda: native(tcp, "copy", requests),
        "read 4 KiB over TCP, Client": lambda: one_at_a_time(lambda: over_tcp.read("/0000"), requests),
        "stat, Client": lambda: one_at_a_time(lambda: client.stat("/0000"), requests),
        f"opens/s, {MANY} threads": lambda: open_in_threads(unix, requests),
        "opens/s, open_many": lambda: open_together(unix, requests),
    }
    for loop in ("asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])):
        found[f"open, AsyncClient, {loop}"] = partial(under, loop, partial(open_alone, unix, requests))
        found[f"opens/s, {MANY} tasks, {loop}"] = partial(under, loop, partial(open_in_tasks, unix, requests))
    return found


def main() -> None:
    """Measures, and prints a table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--requests", type=int, default=5000)
    arguments.add_argument("--model", default="auto")
    arguments.add_argument("--load", metavar="FLOOR_LOAD", help="compare with this client in C, too")
    arguments.add_argument("--only", default="", help="measure only what has this in its name")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    results: dict[str, list[float]] = {}
    with (
        serving(given.model) as (unix, tcp),
        Client(unix) as client,
        Client(tcp) as over_tcp,
    ):
        todo = measures(unix, tcp, given.requests, client, over_tcp)
        if given.load is not None:
            todo = {"open, C": lambda: in_c(given.load, unix), **todo}
        for _ in range(given.rounds):
            for name, measure in todo.items():
                if given.only in name:
                    gc.collect()
                    results.setdefault(name, []).append(measure())
    compared = {
        name: [ours / theirs for ours, theirs in zip(values, results[base], strict=True)]
        for name, values in results.items()
        for base in [yardstick(name, results)]
        if base in results and base != name
    }
    if given.json:
        print(json.dumps({"rounds": results, "compared": compared}))
        return
    for name, values in sorted(results.items()):
        against = f"{statistics.median(compared[name]):8.2f} × {yardstick(name, results)}" if name in compared else ""
        print(f"{name:40} {statistics.median(values):12,.1f} {'/s' if '/s' in name else 'µs'}  {against}")


def yardstick(name: str, measured: Mapping[str, object]) -> str:
    """The baseline of a measurement."""
    if name.startswith("opens/s"):
        return f"opens/s, {MANY} threads"
    return "read 4 KiB over TCP, native" if "TCP" in name else "open, C" if "open, C" in measured else "open, native"


if __name__ == "__main__":
    main()
