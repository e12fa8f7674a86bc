"""strace(1) on threads of a server: what they ask of the kernel, and calls that fail or kill where a test wants it."""

import os
import re
import select
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ENTRY = re.compile(r"^(?:(\d+) +)?(\w+)\(", re.MULTILINE)
UNFINISHED = " <unfinished ...>"
#: The first 15 bytes of their names are all that the kernel keeps. The clock's thread serves no client.
CLOCK = "objmapper-clock"


class Call(NamedTuple):
    """A system call of a thread: its `ordinal`-th of this name, from 1."""

    thread: str
    name: str
    ordinal: int


def why_not() -> str:
    """Why strace cannot be used here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=getcwd:error=EIO:when=1", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip()}"


def threads_of(pid: int) -> dict[int, str]:
    """The threads of a server that serve, with their names."""
    tasks = {int(task.name): (task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()}
    return {task: name for task, name in tasks.items() if name.startswith("objmapper-") and name != CLOCK}


class Strace:
    """Within the block these threads are traced; `inject` is what ``strace -e inject=`` takes."""

    def __init__(self, threads: Iterable[int], log: Path, inject: str | None = None) -> None:
        self.log = log
        attach = [argument for thread in sorted(threads) for argument in ("-p", str(thread))]
        assert attach, "there is no such thread"
        # Without -f, which would attach it to the other threads as well.
        command = ["strace", "-s", "0", "-o", str(log), *(["-e", f"inject={inject}"] if inject else []), *attach]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        left = len(attach) // 2
        for line in self.process.stderr:
            left -= line.endswith("attached\n")
            if left == 0:
                break
        else:
            self.__exit__()
            raise AssertionError(f"strace did not attach: {command}")

    def __enter__(self) -> "Strace":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            # It lets the threads go; killed it would take them along.
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate()

    def calls(self, names: dict[int, str]) -> list[Call]:
        """What the threads have asked for, in order."""
        counts: Counter[tuple[str, str]] = Counter()
        found = []
        for thread, name in ENTRY.findall(self.log.read_text()):
            counts[thread, name] += 1
            # Of a single thread there is no id.
            found.append(Call(names[int(thread or next(iter(names)))], name, counts[thread, name]))
        return found

    def injected(self) -> int:
        """How many calls failed because a test wanted it."""
        return self.log.read_text().count("(INJECTED)")


def come_back(log: str) -> Iterator[str]:
    """The calls in a log of ``strace -f`` that have come back, a line each, whatever another thread did in between."""
    begun = dict[str, str]()
    for line in log.splitlines():
        thread, _, call = line.partition(" ")
        call = call.lstrip()
        if call.endswith(UNFINISHED):
            begun[thread] = call.removesuffix(UNFINISHED)
        elif call.startswith("<... "):
            yield begun.pop(thread) + call.partition(" resumed>")[2]
        else:
            yield call


def await_death(pid: int, seconds: float) -> bool:
    """Whether the process ends within `seconds`."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
