"""The access log: a line of JSON for one request of N, written by a thread of its own.

The threads that serve never wait for it: the engine keeps what is to be written for a moment, and what comes too fast
for the disk is lost, and counted in the next line that is written.
"""

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_json

from objmapper_server.errors import NotRunning
from objmapper_server.plain_json import as_plain_json
from objmapper_server.threads import start_thread

LOG: Final = logging.getLogger(__name__)
#: Seconds.
PAUSE: Final = 0.1


class AccessLog:
    """Appends to `path` until it is stopped. Raises OSError where the file or a thread for it cannot be had.

    `recorded` returns what was recorded behind a number, oldest first.
    """

    def __init__(self, path: Path, recorded: Callable[[int], Sequence[Mapping[str, Any]]]) -> None:
        self._path = path
        self._recorded = recorded
        self._file = _appending(path)
        #: Held while a file is written or exchanged.
        self._writing = threading.Lock()
        self._ended = threading.Event()
        #: The number of the last record that was read, and of the last that was written.
        self._read = self._written = 0
        self._fails = False
        self._thread = threading.Thread(target=self._run, name="objmapper-access-log", daemon=True)
        try:
            start_thread(self._thread)
        except BaseException:
            self._file.close()
            raise

    def reopen(self) -> None:
        """Open the path anew: a program that has renamed the file has it to itself when this returns.

        Where that cannot be, the file that is open is written on, and a line in the server's log says why.
        """
        try:
            fresh = _appending(self._path)
        except OSError as error:
            LOG.error(
                "the access log %s cannot be opened anew, the old file is written on: %s", self._path, error.strerror
            )
            return
        with self._writing:
            # Already stopped: close the new file.
            unused = fresh
            if not self._file.closed:
                unused, self._file = self._file, fresh
            unused.close()

    def stop(self) -> None:
        """Write what there is, and close."""
        self._ended.set()
        self._thread.join()
        with self._writing:
            self._file.close()

    def _run(self) -> None:
        ended = False
        while not ended:
            # Once more after the end was told, for what came before it.
            ended = self._ended.wait(PAUSE)
            try:
                self._write()
            except NotRunning:
                return

    def _write(self) -> None:
        lines = []
        numbers = [self._written]
        for record in self._recorded(self._read):
            line = to_json(record, exclude={"number"})
            if lost := record["number"] - numbers[-1] - 1:
                line = b'%b,"lost":%d}' % (line[:-1], lost)
            lines.append(as_plain_json(line) + b"\n")
            numbers.append(record["number"])
        if not lines:
            return
        self._read = numbers[-1]
        with self._writing:
            whole, error = _append(self._file, lines)
        self._written = numbers[whole]
        if error is not None and not self._fails:
            LOG.error("the access log %s cannot be written, requests go unrecorded: %s", self._path, error.strerror)
        if error is None and self._fails:
            LOG.info("the access log %s is written again", self._path)
        self._fails = error is not None


def _appending(path: Path) -> FileIO:
    # It names users and what they ask for: only its owner may read it. A file that is there keeps its permissions. A
    # pipe must hold up neither the start of the server nor its end, which waits for the thread that writes.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO and path.is_fifo():
            raise OSError(error.errno, "no process reads this pipe; start its reader first", str(path)) from None
        raise
    return FileIO(descriptor, "a")


def _append(file: FileIO, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
    """Return how many of the lines were written, and what stopped it; a line that was torn is taken back."""
    if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        # A pipe takes nothing back, but a line that is no longer than PIPE_BUF it takes whole or not at all.
        for whole, line in enumerate(lines):
            _, error = _written(file, line)
            if error is not None:
                return whole, error
        return len(lines), None
    content = b"".join(lines)
    done, error = _written(file, content)
    if error is not None:
        torn = done - (content.rfind(b"\n", 0, done) + 1)
        # A device takes nothing back either.
        with contextlib.suppress(OSError):
            file.truncate(os.fstat(file.fileno()).st_size - torn)
    return content.count(b"\n", 0, done), error


def _written(file: FileIO, content: bytes) -> tuple[int, OSError | None]:
    """Return how many bytes were written, and what stopped it."""
    done = 0
    try:
        while done < len(content):
            taken = file.write(content[done:])
            if taken is None:
                return done, BlockingIOError(errno.EAGAIN, "it is full, and its reader does not read")
            done += taken
    except OSError as error:
        return done, error
    return done, None
