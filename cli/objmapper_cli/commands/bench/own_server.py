"""The bench's own server, in a separate process, so that its memory and threads can be measured."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.formatting import format_bytes
from objmapper_cli.output_file import exiting_on_signals

MIB = 1 << 20
#: The name of the one object of most benches.
OBJECT = "object"


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A running server: its addresses, its process, and the directory that it serves."""

    addresses: dict[str, str]
    pid: int
    root: Path

    def memory(self) -> int:
        """Resident memory of the server, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(f"the bench's server (process {self.pid}) has ended")


@contextmanager
def own_server(sizes: dict[str, int], *flags: str) -> Iterator[OwnServer]:
    """Serves objects of these names and sizes over Unix and TCP with `flags`, until the end of the block."""
    with exiting_on_signals(), tempfile.TemporaryDirectory(prefix="objmapper-bench-") as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        needed, available = sum(sizes.values()), shutil.disk_usage(root).free
        if needed > available:
            raise CommandError(
                f"{scratch}: no space for objects of {format_bytes(needed)} ({format_bytes(available)} free); "
                "choose a smaller --file-size, or another directory ($TMPDIR)"
            )
        for name, size in sizes.items():
            write_object(root / name, size)
            # An old time, so that the server caches the file from the first request on.
            os.utime(root / name, (1, 1))
        # SIGTERM and SIGHUP end the server and remove its files, as Ctrl-C does.
        with start_server(root, Path(scratch, "o.sock"), *flags) as server:
            yield server


def write_object(path: Path, size: int) -> None:
    """Makes a file of `size` bytes without holes, with at most a MiB in memory at a time."""
    with path.open("wb") as file:
        file.write(os.urandom(min(size, MIB)))
        zeros = bytes(min(MIB, size))
        for at in range(MIB, size, MIB):
            file.write(zeros[: size - at])


@contextmanager
def start_server(root: Path, socket: Path, *flags: str) -> Iterator[OwnServer]:
    """Runs `objmapper serve` in a process; raises CommandError with its message if it does not start."""
    command = [sys.executable, "-m", "objmapper_cli", "serve", str(root), "--unix", str(socket)]
    command += ["--tcp", "127.0.0.1:0", *flags]
    if "--admin" not in flags:
        command.append("--no-admin")
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))  # noqa: S603 - our own command
        stack.callback(_stop, process)
        output = []
        assert process.stderr is not None
        for line in process.stderr:
            output.append(line.strip())
            if "objmapper: ready " in line:
                words = line.partition("ready ")[2].split()
                yield OwnServer({word.partition(":")[0]: word for word in words}, process.pid, root)
                return
        code = ExitCode.USAGE if process.wait() == ExitCode.USAGE else ExitCode.FAILED
        raise CommandError(f"the bench's server did not start: {' '.join(output).removeprefix('objmapper: ')}", code)


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
