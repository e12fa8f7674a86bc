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
from objmapper_server.escaped_json import escape_control_characters
from objmapper_server.start_thread import start_thread

LOG: Final = logging.getLogger(__name__)
#: Seconds between two writes.
WRITE_INTERVAL: Final = 0.1


class AccessLog:
    """Appends to `path` until it is stopped. Raises OSError if it cannot open the file or start a thread.

    `records_after` returns the records after a number, oldest first.
    """

    def __init__(self, path: Path, records_after: Callable[[int], Sequence[Mapping[str, Any]]]) -> None:
        self._path = path
        self._records_after = records_after
        self._file = _open_for_append(path)
        #: Held while the file is written or replaced.
        self._file_lock = threading.Lock()
        self._stop_requested = threading.Event()
        #: The numbers of the last read and of the last written record.
        self._read = self._written = 0
        self._is_failing = False
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
            new_file = _open_for_append(self._path)
        except OSError as error:
            LOG.error(
                "cannot reopen the access log %s, so the server writes to the old file: %s", self._path, error.strerror
            )
            return
        with self._file_lock:
            # Already stopped: close the new file.
            closed_file = new_file
            if not self._file.closed:
                closed_file, self._file = self._file, new_file
            closed_file.close()

    def stop(self) -> None:
        """Write the remaining records and close the file."""
        self._stop_requested.set()
        self._thread.join()
        with self._file_lock:
            self._file.close()

    def _run(self) -> None:
        is_stopping = False
        while not is_stopping:
            # One more write after `stop`, for the records before it.
            is_stopping = self._stop_requested.wait(WRITE_INTERVAL)
            try:
                self._write()
            except NotRunning:
                return

    def _write(self) -> None:
        lines = []
        numbers = [self._written]
        for record in self._records_after(self._read):
            line = to_json(record, exclude={"number"})
            if lost := record["number"] - numbers[-1] - 1:
                line = b'%b,"lost":%d}' % (line[:-1], lost)
            lines.append(escape_control_characters(line) + b"\n")
            numbers.append(record["number"])
        if not lines:
            return
        self._read = numbers[-1]
        with self._file_lock:
            whole, error = _append(self._file, lines)
        self._written = numbers[whole]
        if error is not None and not self._is_failing:
            LOG.error("cannot write the access log %s, so requests are not recorded: %s", self._path, error.strerror)
        if error is None and self._is_failing:
            LOG.info("the access log %s is written again", self._path)
        self._is_failing = error is not None


def _open_for_append(path: Path) -> FileIO:
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
            _, error = _write_all(file, line)
            if error is not None:
                return whole, error
        return len(lines), None
    content = b"".join(lines)
    done, error = _write_all(file, content)
    if error is not None:
        partial = done - (content.rfind(b"\n", 0, done) + 1)
        # A device cannot be truncated.
        with contextlib.suppress(OSError):
            file.truncate(os.fstat(file.fileno()).st_size - partial)
    return content.count(b"\n", 0, done), error


def _write_all(file: FileIO, content: bytes) -> tuple[int, OSError | None]:
    """Write the content. Return the number of bytes written, and the error, if any."""
    done = 0
    try:
        while done < len(content):
            count = file.write(content[done:])
            if count is None:
                return done, BlockingIOError(errno.EAGAIN, "the pipe is full: its reader does not read")
            done += count
    except OSError as error:
        return done, error
    return done, None
