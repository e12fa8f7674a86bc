"""A server in a process of its own, for tests that stop, trace or kill it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOME = Path(__file__).parents[2]


class ServerProcess:
    """``objmapper serve`` on a root, ready to serve. Leaving the block kills it.

    `program` is the module that is run: ``objmapper`` itself, or one that does something to it first. `by` is a
    command that becomes it, having changed something about itself: its user, its limits. It has no admin endpoint but
    where a flag names one.
    """

    def __init__(
        self, root: Path, socket: Path, *flags: str, program: str = "objmapper_cli", by: Sequence[str] = ()
    ) -> None:
        command = [*by, sys.executable, "-m", program, "serve", str(root)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OBJMAPPER_")}
        path = os.pathsep.join([*filter(None, [kept.get("PYTHONPATH")]), str(HOME / "cli"), str(HOME)])
        self.process = subprocess.Popen(
            [*command, "--unix", str(socket), *([] if "--admin" in flags else ["--no-admin"]), *flags],
            stderr=subprocess.PIPE,
            env=kept | {"PYTHONPATH": path},
            text=True,
        )
        assert self.process.stderr is not None
        self.output_lines = []
        for line in iter(self.process.stderr.readline, ""):
            self.output_lines.append(line)
            if line.startswith("objmapper: ready "):
                break
        else:
            self.close()
            raise AssertionError(f"it ended: {self.output_lines}")
        # An admin socket comes last.
        found = re.findall(r"\b((unix|tcp|udp):\S+)", self.output_lines[-1])
        self.addresses: dict[str, str] = {transport: address for address, transport in reversed(found)}

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """For the time of the block it does nothing; what comes meanwhile, it finds all at once."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + 10
            while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                assert time.monotonic() < deadline, "it does not stop"
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def threads(self, name: str, count: int) -> list[int]:
        """The ids of the threads whose name begins so; waits until there are `count`, for they name themselves."""
        deadline = time.monotonic() + 10
        while True:
            tasks = Path(f"/proc/{self.pid}/task").iterdir()
            found = sorted(int(task.name) for task in tasks if (task / "comm").read_text().startswith(name))
            if len(found) == count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} threads {name}, not {count}"
