"""Model switches, drains, stops and forks at random, under load and without resources: no leak at rest.

    python -m benchmarks.soak.lifecycle [--seconds 300] [--seed N]

One server after the other runs in this process, over Unix, TCP and UDP, under the native load generator and clients
that look at each answer: readers over each transport, writers that put, read and delete an object of their own. While
it serves, its models change one by one or with its settings, which are read again; a fork of the process stops or drops
its copy; or the process has no descriptors or may start no thread while a model is to change: that succeeds, or raises
and leaves the settings as they were. Likewise a server is started. Then the server drains or stops.

Requests fail only for lack of descriptors, no response is wrong, and the last writes are in the root when the server
has ended. At rest, and after its end, there must be no more connections, descriptors and threads than before, no memory
that grows with each server, and no work. Ends with 1 if one of these fails. Root has no limit on threads, so a run by
root continues as another user.
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

from benchmarks.soak.lifecycle_clients import CONTENTS, Clients
from benchmarks.soak.process_resources import ProcessResources
from objmapper_client import Client
from objmapper_server import Concurrency, Config, ConfigError, Server
from objmapper_server._engine import Load
from objmapper_server.load import LoadPlan, LoadProtocol, native_plan
from tests.support.models import MODELS

#: Clients of the load for each transport, half of them with requests ahead.
CLIENTS = 8
LOAD_PROTOCOLS: dict[str, LoadProtocol] = {"unix": "fdpass2", "tcp": "copy2", "udp": "pull"}
#: Actions of one life.
ACTIONS = 8
#: Seconds in which what ended must be gone, and seconds in which the processor time at rest is read.
TIMEOUT, REST = 20.0, 0.5
#: Processor seconds that a server without clients may use in REST: some ticks of its clocks.
IDLE = 0.15
#: Bytes by which the process may have grown over its first life, whatever the number of lives.
GROWTH = 48 << 20
#: Of a run by root: a user for each process, without other threads. Below 65534, so that it is there in a container.
FIRST_USER, USERS = 60_000, 5_000


def threads() -> list[str]:
    """Return the threads of this process, by name."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            names.append((task / "comm").read_text(encoding="utf-8").strip())
    return names


def threads_of_user() -> int:
    """Return the threads of this process's user, as RLIMIT_NPROC counts them."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == os.getuid():
                count += len(list((process / "task").iterdir()))
    return count


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true in time."""
    until = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def cpu_seconds() -> float:
    """Return the processor seconds of a moment."""
    before = sum(os.times()[:2])
    time.sleep(REST)
    return sum(os.times()[:2]) - before


@contextlib.contextmanager
def without_descriptors(more: int) -> Iterator[None]:
    """In the block the process may open this number of files."""
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


@contextlib.contextmanager
def without_threads(more: int) -> Iterator[None]:
    """In the block the process may start this number of threads."""
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (threads_of_user() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)


class Soak:
    """The results so far."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self.root = root
        self.file = root.parent / "objmapper.toml"
        self.first: ProcessResources | None = None

    def run_lifecycle(self) -> None:
        """Runs one server from start to end."""
        before, threads_before = ProcessResources.of(), threads()
        self.write_settings()
        config = Config.load(
            file=self.file, environment=False, root=self.root, unix=self.root.parent / "socket", admin="none"
        )
        self.start_without_resources(config)
        with Server(config) as server:
            clients = Clients(server.addresses)
            loads = [self.load(server, transport) for transport in LOAD_PROTOCOLS]
            for _ in range(ACTIONS):
                act = self.random.choice([self.switch, self.switch, self.reload, self.fork, self.exhaust, self.exhaust])
                act(server, clients)
            clients.end_udp()
            if self.random.random() < 0.5:
                self.counts["drains"] += 1
                clients.is_ending.set()
                self.check(server.drain(TIMEOUT), "a drain did not end")
            elif self.random.random() < 0.5:
                self.check_idle(server, clients, loads)
            clients.is_ending.set()
            self.counts["lives"] += 1
        clients.end(self.root)
        self.counts += clients.counts
        for wrong in clients.wrong:
            self.check(False, wrong)
        for load in loads:
            load.stop()
            self.counts["answers to the load"] += load.finish()["requests"]
        del clients, loads, load
        self.check_ended(before, threads_before)

    def check_ended(self, before: ProcessResources, threads_before: list[str]) -> None:
        """Looks at the process, which has no server any more."""
        self.check(
            wait_until(lambda: len(threads()) <= len(threads_before)), f"{threads()}, and before {threads_before}"
        )
        after = before.now(os.getpid())
        self.check(after.descriptors <= before.descriptors, f"{after}, and before {before}")
        self.first = self.first or after
        self.check(after.resident < self.first.resident + GROWTH, f"{after}, and after the first life {self.first}")
        self.check(cpu_seconds() < IDLE, "the process works though nothing serves")
        left = sorted(place.name for place in self.root.iterdir() if f"/{place.name}" not in CONTENTS)
        self.check(not [name for name in left if not name.startswith(".")], f"left in the root: {left}")

    def write_settings(self) -> None:
        """Writes other settings into the file."""
        models = ",".join(f"{transport}={self.model(transport).value}" for transport in LOAD_PROTOCOLS)
        self.file.write_text(
            f'tcp = "127.0.0.1:0"\nudp = "127.0.0.1:0"\nwritable = true\nconcurrency_model = "{models}"\n'
            f"max_connections = {self.random.randrange(200, 400)}\n",
            encoding="utf-8",
        )

    def model(self, transport: str) -> Concurrency:
        """Return a model that can serve a transport."""
        return self.random.choice(
            [model for model in MODELS if transport != "udp" or model is not Concurrency.THREAD_PER_CONNECTION]
        )

    def without_resources(self) -> contextlib.AbstractContextManager[None]:
        """Takes descriptors or threads away, but for some."""
        return self.random.choice([without_descriptors, without_threads])(self.random.randrange(12))

    def start_without_resources(self, config: Config) -> None:
        """Start a server where there is not enough for one, or just enough."""
        with self.without_resources():
            try:
                with Server(config):
                    pass
            except OSError:
                self.counts["starts that failed"] += 1
            else:
                self.counts["starts in want"] += 1

    def load(self, server: Server, transport: str) -> Load:
        """Begin a load on a transport."""
        plan = LoadPlan(
            address=server.addresses[transport],
            dialect=LOAD_PROTOCOLS[transport],
            uris=tuple(CONTENTS),
            clients=CLIENTS,
            pipeline=self.random.choice([1, 16]) if transport != "udp" else 1,
            duration=3600,
        )
        return Load(native_plan(plan))

    def switch(self, server: Server, _: Clients) -> None:
        """Change the model of a transport."""
        transport = self.random.choice(list(LOAD_PROTOCOLS))
        server.set_concurrency(**{transport: self.model(transport)})
        self.counts["switches"] += 1

    def reload(self, server: Server, _: Clients) -> None:
        """Have the server read other settings."""
        self.write_settings()
        server.reload()
        self.counts["reloads"] += 1

    def exhaust(self, server: Server, clients: Clients) -> None:
        """Change models or settings while there are no descriptors, or no threads, or few."""
        act = self.random.choice([self.switch, self.reload])
        before = server.config
        # Threads are the server's own; clients have theirs.
        want = self.random.choice([without_descriptors, without_threads])
        if want is without_descriptors:
            clients.may_fail.set()
        with want(self.random.randrange(6)):
            try:
                act(server, clients)
                self.counts["changes in want"] += 1
            except (OSError, ConfigError):
                self.counts["changes that failed"] += 1
                self.check(server.config == before, "a change that failed has changed the settings")
            time.sleep(0.05)
        clients.may_fail.clear()

    def fork(self, server: Server, _: Clients) -> None:
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

    def check_idle(self, server: Server, clients: Clients, loads: list[Load]) -> None:
        """Ends the load and looks at the server: it has nothing left, does nothing, and serves."""
        clients.end(self.root)
        for load in loads:
            load.stop()
            load.finish()
        self.check(wait_until(lambda: server.statistics().connections == 0), "connections at rest")
        self.check(cpu_seconds() < IDLE, "the server works though nothing is connected")
        for address in server.addresses.values():
            with Client(address, timeout=TIMEOUT) as client:
                for name, content in CONTENTS.items():
                    self.check(client.read(name) == content, "another content")
        self.counts["rests"] += 1

    def check(self, is_right: bool, violation: str) -> None:
        """Record an error if the check fails."""
        if not is_right:
            self.wrong.append(f"life {self.counts['lives']}: {violation}")


def become_other_user() -> None:
    """Have this process run again as a user who has no other threads and is not exempt from limits.

    It may still read a Python that only root may read.
    """
    user = str(FIRST_USER + os.getpid() % USERS)
    command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
    command += ["--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override"]
    try:
        os.execvp(command[0], [*command, sys.executable, "-m", "benchmarks.soak.lifecycle", *sys.argv[1:]])
    except FileNotFoundError:
        sys.exit("setpriv (Debian: util-linux) is not installed")


def main() -> int:
    """Lives until the time is over, then a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    given = parser.parse_args()
    if os.geteuid() == 0:
        become_other_user()
    with tempfile.TemporaryDirectory(prefix="objmapper-lifecycle-") as name:
        root = Path(name) / "root"
        root.mkdir()
        for object_name, content in CONTENTS.items():
            (root / object_name[1:]).write_bytes(content)
        soak = Soak(root, given.seed)
        until = time.monotonic() + given.seconds
        while time.monotonic() < until and not soak.wrong:
            soak.run_lifecycle()
        figures = ", ".join(f"{count:,} {name}" for name, count in sorted(soak.counts.items()))
        print(f"seed {given.seed}: {figures}\n  {soak.first} after the first life, {ProcessResources.of()} at the end")
    for line in soak.wrong:
        print(f"  {line}")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
