"""The access log: a line of JSON for one of N requests, written by a thread of its own.

The threads that serve requests never wait for it. The engine keeps the last records. If records come faster than the
disk takes them, some are lost; the next line has their number.
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
from objmapper_server.escaped_json import as_plain_json
from objmapper_server.start_thread import start_thread

LOG: Final = logging.getLogger(__name__)
#: Seconds between two writes.
WRITE_INTERVAL: Final = 0.1


class AccessLog:
    """Appends to `path` until it is stopped. Raises OSError if it cannot open the file or start a thread.

    `recorded` returns the records after a number, oldest first.
    """

    def __init__(self, path: Path, recorded: Callable[[int], Sequence[Mapping[str, Any]]]) -> None:
        self._path = path
        self._recorded = recorded
        self._file = _appending(path)
        #: Held while the file is written or replaced.
        self._writing = threading.Lock()
        self._ended = threading.Event()
        #: The numbers of the last read and of the last written record.
        self._read = self._written = 0
        self._fails = False
        self._thread = threading.Thread(target=self._run, name="objmapper-access-log", daemon=True)
        try:
            start_thread(self._thread)
        except BaseException:
            self._file.close()
            raise

    def reopen(self) -> None:
        """Open the path again, for log rotation: after this call nothing writes to a renamed file.

        If the path cannot be opened, log the error and keep writing to the old file.
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
        """Write the remaining records and close the file."""
        self._ended.set()
        self._thread.join()
        with self._writing:
            self._file.close()

    def _run(self) -> None:
        ended = False
        while not ended:
            # One more write after `stop`, for the records before it.
            ended = self._ended.wait(WRITE_INTERVAL)
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
    # Only the owner may read a new file, which contains users and URIs. An existing file keeps its permissions.
    # Non-blocking, because a pipe without a reader must not delay the server's start or stop.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO and path.is_fifo():
            raise OSError(error.errno, "no process reads this pipe; start its reader first", str(path)) from None
        raise
    return FileIO(descriptor, "a")


def _append(file: FileIO, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
    """Append lines. Return the number of whole lines written, and the error, if any. Removes a partial line."""
    if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
        # A partial line cannot be removed from a pipe, but writes of up to PIPE_BUF bytes are atomic.
        for whole, line in enumerate(lines):
            _, error = _written(file, line)
            if error is not None:
                return whole, error
        return len(lines), None
    content = b"".join(lines)
    done, error = _written(file, content)
    if error is not None:
        partial = done - (content.rfind(b"\n", 0, done) + 1)
        # A device cannot be truncated.
        with contextlib.suppress(OSError):
            file.truncate(os.fstat(file.fileno()).st_size - partial)
    return content.count(b"\n", 0, done), error


def _written(file: FileIO, content: bytes) -> tuple[int, OSError | None]:
    """Write the content. Return the number of bytes written, and the error, if any."""
    done = 0
    try:
        while done < len(content):
            count = file.write(content[done:])
            if count is None:
                return done, BlockingIOError(errno.EAGAIN, "it is full, and its reader does not read")
            done += count
    except OSError as error:
        return done, error
    return done, None
