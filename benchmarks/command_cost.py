"""The run time of `objmapper get`, beside an empty typer program and cp; an array beside Plasma's; in turns.

``python benchmarks/command_cost.py [--rounds 7] [--plasma PYTHON]``. Every round measures all of it once, one after the
other; shown are medians, and the median of the ratios within the rounds. PYTHON is an interpreter with pyarrow 11,
the last that had Plasma (``pip install pyarrow==11.0.0 'numpy<2'``); its store is started beside it.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from objmapper_client import Client

SMALL, LARGE, ARRAY = 1 << 10, 1 << 30, 64 << 20
PROGRAMS = 10
Measure = Callable[[], float]
TYPER = """
import typer

app = typer.Typer()


@app.command()
def main() -> None:
    pass


app()
"""
PLASMA = """
import statistics, sys, time
import numpy as np
import pyarrow.plasma as plasma
client = plasma.connect(sys.argv[1])
name = plasma.ObjectID(b"4" * 20)
client.create_and_seal(name, b"\\1" * int(sys.argv[2]))
print("ready", flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        array = np.frombuffer(client.get_buffers([name])[0], dtype=np.float64)
        array[0], array[-1]
        times.append(time.perf_counter() - start)
        del array
    print(statistics.median(times), flush=True)
"""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server in a process of its own. Its Unix address."""
    (folder / "root").mkdir()
    for name, size in {"small": SMALL, "array": ARRAY, "large": LARGE}.items():
        with (folder / "root" / name).open("wb") as file:
            for _ in range(max(1, size >> 20)):
                file.write(os.urandom(min(size, 1 << 20)))
    command = [sys.executable, "-m", "objmapper_cli", "serve", str(folder / "root"), "--unix", str(folder / "socket")]
    with subprocess.Popen([*command, "--no-admin"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            if not any(line.startswith("objmapper: ready") for line in server.stderr):
                sys.exit("the server does not start")
            yield f"unix:{folder}/socket"
        finally:
            server.terminate()


@contextmanager
def plasma(python: str, folder: Path) -> Iterator[Measure]:
    """A Plasma store, and a process that is connected to it and measures on request."""
    find = [python, "-c", "import pyarrow; print(pyarrow.__path__[0])"]
    home = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    store = [f"{home}/plasma-store-server", "-m", str(4 * ARRAY), "-s", str(folder / "plasma")]
    with subprocess.Popen(store, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            while not (folder / "plasma").exists():
                if server.poll() is not None:
                    sys.exit("the Plasma store does not start")
                time.sleep(0.01)
            command = [python, "-W", "ignore", "-c", PLASMA, str(folder / "plasma"), str(ARRAY)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
                assert peer.stdin is not None
                assert peer.stdout is not None
                stdin, stdout = peer.stdin, peer.stdout
                if stdout.readline() != "ready\n":
                    sys.exit("the interpreter for Plasma does not work")

                def measure() -> float:
                    print(500, file=stdin, flush=True)
                    return float(stdout.readline())

                yield measure
                stdin.close()
        finally:
            server.terminate()


def program(*command: str) -> float:
    """The median run time of a program, in seconds."""
    return statistics.median(once(*command) for _ in range(PROGRAMS))


def once(*command: str) -> float:
    """The run time of a program, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def copied(target: Path, *command: str) -> float:
    """The run time of a program that makes a file of this name."""
    taken = once(*command, str(target))
    if target.stat().st_size != LARGE:
        sys.exit(f"{command[0]} made {target.stat().st_size} bytes")
    target.unlink()
    return taken


def saved(client: Client, target: Path) -> float:
    """The time in which a running program makes the same file, in seconds."""
    start = time.perf_counter()
    with client.open("/large") as found:
        found.save(target)
    taken = time.perf_counter() - start
    target.unlink()
    return taken


def array(client: Client) -> float:
    """The median time from a request to a readable array, in seconds."""
    times = []
    for _ in range(500):
        start = time.perf_counter()
        with client.open("/array") as found:
            seen = np.frombuffer(found.view(), dtype=np.float64)
        _ = seen[0], seen[-1]
        times.append(time.perf_counter() - start)
        del seen
    return statistics.median(times)


def main() -> None:
    """Measures, and prints a table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--plasma", metavar="PYTHON", help="an interpreter that has Plasma")
    arguments.add_argument("--only", default="", metavar="PATTERN", help="measure only what matches this")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    results: dict[str, list[float]] = {}
    objmapper = str(Path(sys.executable).parent / "objmapper")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        address = stack.enter_context(serving(folder))
        client = stack.enter_context(Client(address))
        empty = folder / "empty.py"
        empty.write_text(TYPER)
        get, large = [objmapper, "get", "--server", address], str(folder / "root" / "large")
        todo: dict[str, tuple[Measure, str]] = {
            "empty Python program": (lambda: program(sys.executable, "-c", ""), ""),
            "objmapper --version": (lambda: program(objmapper, "--version"), "empty Python program"),
            "empty typer program": (lambda: program(sys.executable, str(empty)), ""),
            "get of 1 KiB": (lambda: program(*get, "/small"), "empty typer program"),
            "cp of 1 GiB": (lambda: copied(folder / "copy", "cp", large), ""),
            "save of 1 GiB, no start": (lambda: saved(client, folder / "saved"), "cp of 1 GiB"),
            "get -o of 1 GiB": (lambda: copied(folder / "got", *get, "/large", "-o"), "cp of 1 GiB"),
            "get --sync -o of 1 GiB": (lambda: copied(folder / "got", *get, "/large", "--sync", "-o"), "cp of 1 GiB"),
            "array of 64 MiB": (lambda: array(client), "array of 64 MiB, Plasma"),
        }
        if given.plasma is not None:
            measure = stack.enter_context(plasma(given.plasma, folder))
            todo = {"array of 64 MiB, Plasma": (measure, ""), **todo}
        todo = {name: what for name, what in todo.items() if re.search(given.only, name)}
        for _ in range(given.rounds):
            for name, (measure, _beside) in todo.items():
                results.setdefault(name, []).append(measure())
    if given.json:
        print(json.dumps(results))
        return
    for name, (_, beside) in todo.items():
        ratio = ""
        if beside in results:
            within = statistics.median(a / b for a, b in zip(results[name], results[beside], strict=True))
            ratio = f"{within:6.2f} × {beside}"
        print(f"{name:26} {statistics.median(results[name]) * 1e3:10.3f} ms  {ratio}")


if __name__ == "__main__":
    main()
