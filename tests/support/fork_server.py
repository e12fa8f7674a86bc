"""Servers that start in a moment, for tests that kill them by the hundred.

A process of its own has imported everything; for each line that it reads it forks a server, one at a time. As a
program, ``python -m tests.support.fork_server``: reads settings as JSON, prints ``ready PID`` and, when that server is
gone, ``ended STATUS``.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Never

from objmapper_server import Config, Server

HOME = Path(__file__).parents[2]


class ForkServer:
    """Starts servers. Leaving the block kills the one that runs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            cwd=HOME,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running = 0

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self.kill()
        self._process.communicate()

    def start(self, root: Path, socket: Path, **settings: object) -> int:
        """Starts a server that takes writes. Returns its process id when it serves."""
        assert not self._running
        assert self._process.stdin is not None
        settings |= {"root": str(root), "unix": str(socket)}
        self._process.stdin.write(json.dumps({"admin": None, "writable": True} | settings) + "\n")
        self._process.stdin.flush()
        self._running = int(self._read_status("ready"))
        return self._running

    def kill(self) -> None:
        """Kills the server, if it is not dead yet, and waits until it is."""
        # Only the fork server waits for its end, and only when it is asked to: the id is still its own.
        os.kill(self._running, signal.SIGKILL)
        self.await_end()

    def stop(self) -> int:
        """Stops the server in order. Returns its exit status."""
        os.kill(self._running, signal.SIGTERM)
        return self.await_end()

    def await_end(self) -> int:
        """Waits until the server has ended. Returns its exit status, negative for a signal."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._running = 0
        return int(self._read_status("ended"))

    def _read_status(self, expected: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith(expected + " "), f"the server failed: {line!r}"
        return line.split()[1]


def serve(settings: dict[str, Any]) -> Never:
    """Serves until SIGTERM; the process ends with it."""
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        with Server(Config(**settings)):
            print(f"ready {os.getpid()}", flush=True)
            signal.sigwait([signal.SIGTERM])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    """Has a server for each line, until the next line; the end of the input ends it."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            serve(json.loads(line))
        sys.stdin.readline()
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
