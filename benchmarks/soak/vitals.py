"""What a process has: descriptors, memory. What it has more of after a soak than before it has leaked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: O_CLOEXEC, as fdinfo shows it.
CLOSE_ON_EXEC = 0o2000000
#: Standard input, output and error are anybody's.
OWN = 3


@dataclass(frozen=True)
class Vitals:
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

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.inheritable} inheritable, {self.resident / 2**20:.1f} MiB"
