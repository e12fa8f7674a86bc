"""Descriptors and memory of a process: more of them after a soak than before it is a leak."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: O_CLOEXEC, as fdinfo shows it.
CLOSE_ON_EXEC = 0o2000000
#: Standard input, output and error.
OWN = 3
#: Seconds that a server has to close what it had for clients that have left.
TIMEOUT = 10
#: Seconds between two samples, and the number of equal samples of a settled process.
POLL_INTERVAL, ALIKE = 0.05, 20


@dataclass(frozen=True)
class ProcessResources:
    """A process at one moment."""

    descriptors: int
    #: Descriptors that a child would inherit.
    inheritable: int
    #: Bytes.
    resident: int

    @classmethod
    def of(cls, pid: int | str = "self") -> Self:
        """Look at a process; raises FileNotFoundError where it has ended."""
        home = Path(f"/proc/{pid}")
        flags = []
        for place in (home / "fdinfo").iterdir():
            try:
                fields = dict(line.split(":", 1) for line in place.read_text(encoding="ascii").splitlines())
            except FileNotFoundError:
                # The one for the directory itself.
                continue
            if int(place.name) >= OWN:
                flags.append(int(fields["flags"], 8))
        status = dict(line.split(":", 1) for line in (home / "status").read_text(encoding="utf-8").splitlines())
        inheritable = sum(not each & CLOSE_ON_EXEC for each in flags)
        return cls(len(flags), inheritable, int(status["VmRSS"].split()[0]) << 10)

    @classmethod
    def after_settling(cls, pid: int) -> Self:
        """What a server has once nothing is left of its clients: when it has had as many descriptors for a second."""
        seen = [cls.of(pid)]
        while len(seen) < ALIKE or len({each.descriptors for each in seen[-ALIKE:]}) > 1:
            time.sleep(POLL_INTERVAL)
            seen.append(cls.of(pid))
        return seen[-1]

    def now(self, pid: int) -> Self:
        """What a server has that had this before its clients came, and was left alone by all of them.

        Waits for the server to close what it had for clients that have left.
        """
        until = time.monotonic() + TIMEOUT
        while (now := self.of(pid)).descriptors > self.descriptors and time.monotonic() < until:
            time.sleep(POLL_INTERVAL)
        return now

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.inheritable} inheritable, {self.resident / 2**20:.1f} MiB"
