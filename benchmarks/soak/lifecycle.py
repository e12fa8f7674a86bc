"""Models that change, drains, stops and forks at random, under load and without descriptors: at rest nothing is left.

    python -m benchmarks.soak.lifecycle [--seconds 300] [--seed N]

A server after the other lives in this process, under the native load generator. While it serves, its model changes, a
fork of the process stops or drops its copy, or the process has no descriptors left while the model is to change: that
raises OSError, or succeeds. Then the server drains or stops. When it rests, and when it has ended, there must be no
connection, no descriptor, no thread more than before, no memory that grows with each life, and no work. Ends with 1
where anything is not so.
"""

import argparse
import contextlib
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.soak.slow_writers import MODELS
from benchmarks.soak.vitals import Vitals
from objmapper_client import Client
from objmapper_server import Config, Server
from objmapper_server._engine import Load
from objmapper_server.load import LoadPlan, _native

#: Clients of the load, half of them with requests ahead.
CLIENTS = 8
#: Actions of one life.
ACTIONS = 8
#: Seconds in which what ended must be gone, and seconds in which the processor time at rest is read.
PATIENCE, REST = 20.0, 0.5
#: Processor seconds that a server without clients may use in REST: some ticks of its clocks.
IDLE = 0.15
#: Bytes by which the process may have grown over its first life, whatever the number of lives.
GROWTH = 48 << 20


def threads() -> int:
    """Return the threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def within(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within the patience."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def uses_processor() -> float:
    """Return the processor seconds of a moment."""
    before = sum(os.times()[:2])
    time.sleep(REST)
    return sum(os.times()[:2]) - before


@contextlib.contextmanager
def without_descriptors(more: int) -> Iterator[None]:
    """In the block the process may open so many files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    highest = max(int(place.name) for place in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(min(more, len(taken))):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Soak:
    """What the lives so far came to."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self.root = root
        self.first: Vitals | None = None

    def live(self) -> None:
        """Runs one server from start to end."""
        before, threads_before = Vitals.of(), threads()
        model = self.random.choice(MODELS)
        config = Config(
            root=self.root, unix=self.root.parent / "socket", tcp="127.0.0.1:0", admin=None, concurrency_model=model
        )
        with Server(config) as server:
            loads = [self.load(server, transport) for transport in ("unix", "tcp")]
            for _ in range(ACTIONS):
                self.random.choice([self.switch, self.switch, self.fork, self.exhaust])(server)
            if self.random.random() < 0.5:
                self.counts["drains"] += 1
                self.check(server.drain(PATIENCE), "a drain did not end")
            elif self.random.random() < 0.5:
                self.rest(server, loads)
            self.counts["lives"] += 1
        for load in loads:
            load.stop()
            self.counts["answers"] += load.finish()["requests"]
        del loads, load
        self.check(within(lambda: threads() <= threads_before), f"{threads()} threads, {threads_before} before")
        after = before.now(os.getpid())
        self.check(after.descriptors <= before.descriptors, f"{after}, and before {before}")
        self.first = self.first or after
        self.check(after.resident < self.first.resident + GROWTH, f"{after}, and after the first life {self.first}")
        self.check(uses_processor() < IDLE, "the process works though nothing serves")

    def load(self, server: Server, transport: str) -> Load:
        """Begin a load on a transport."""
        plan = LoadPlan(
            address=server.addresses[transport],
            dialect="fdpass2" if transport == "unix" else "copy2",
            uris=("/small", "/large"),
            clients=CLIENTS,
            pipeline=self.random.choice([1, 16]),
            duration=3600,
        )
        return Load(_native(plan))

    def switch(self, server: Server) -> None:
        """Change the model of a transport."""
        transport = self.random.choice(["unix", "tcp"])
        server.set_concurrency(**{transport: self.random.choice(MODELS)})
        self.counts["switches"] += 1

    def exhaust(self, server: Server) -> None:
        """Change it while there are no descriptors, or few."""
        with without_descriptors(self.random.randrange(6)):
            try:
                self.switch(server)
            except OSError:
                self.counts["switches that failed"] += 1
            time.sleep(0.05)

    def fork(self, server: Server) -> None:
        """Have a fork of the process end its copy of the server."""
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                if self.random.random() < 0.5:
                    server.stop()
                else:
                    server.__dict__.clear()
                time.sleep(0.05)
            os._exit(0)
        os.waitpid(child, 0)
        self.counts["forks"] += 1

    def rest(self, server: Server, loads: list[Load]) -> None:
        """Ends the load and looks at the server: it has nothing left, does nothing, and serves."""
        for load in loads:
            load.stop()
            load.finish()
        self.check(
            within(lambda: server.statistics().connections == 0),
            "connections at rest",
        )
        self.check(uses_processor() < IDLE, "the server works though nothing is connected")
        with Client(server.addresses["unix"], timeout=PATIENCE) as client:
            self.check(client.read("/small") == b"small", "another content")
        self.counts["rests"] += 1

    def check(self, is_right: bool, otherwise: str) -> None:
        """Take note of what is wrong."""
        if not is_right:
            self.wrong.append(f"life {self.counts['lives']}: {otherwise}")


def main() -> int:
    """Lives until the time is over, then a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="objmapper-lifecycle-") as name:
        root = Path(name) / "root"
        root.mkdir()
        (root / "small").write_bytes(b"small")
        (root / "large").write_bytes(b"large" * 40_000)
        soak = Soak(root, given.seed)
        until = time.monotonic() + given.seconds
        while time.monotonic() < until and not soak.wrong:
            soak.live()
        figures = ", ".join(f"{count:,} {name}" for name, count in sorted(soak.counts.items()))
        print(f"seed {given.seed}: {figures}\n  {soak.first} after the first life, {Vitals.of()} at the end")
    for line in soak.wrong:
        print(f"  {line}")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
