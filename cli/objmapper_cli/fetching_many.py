"""Many objects into a directory, several at once; those that are there already are not fetched again.

An object counts as there when a file has its size and its modification time, to the second: files get the time of their
objects. What changes twice within a second, and keeps its size, is not noticed.
"""

import contextlib
import os
import queue
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from objmapper_cli.destination import make_directories, named, unless_terminated
from objmapper_cli.errors import ExitCode, Failure, explain, say
from objmapper_cli.fetching import Fetch
from objmapper_cli.progress import Progress
from objmapper_client.client import Client
from objmapper_client.errors import RemoteProtocolError, ServerReply
from objmapper_client.whole_file import whole_file

#: Seconds that those at work get to clean up after an interruption.
_GRACE = 2.0


class Wanted(NamedTuple):
    """An object, its place, and what is known of it, None where nothing is."""

    uri: str
    path: Path
    size: int | None = None
    mtime: int | None = None


def below(client: Client, prefix: str, folder: Path) -> Iterator[Wanted]:
    """Everything that begins with a prefix; in the folder it is called what follows the prefix's last slash.

    Raises RemoteProtocolError for a name that would lead out of the folder.
    """
    start = f"/{prefix.removeprefix('/')}".rindex("/") + 1
    for entry in client.list(prefix):
        parts = entry.uri[start:].split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise RemoteProtocolError(f"{entry.uri!r}: the server lists what is no path below {prefix}")
        yield Wanted(entry.uri, folder.joinpath(*parts), entry.size, entry.mtime)


def fetch_many(client: Client, wanted: Iterable[Wanted], at_once: int, sync: bool = False) -> tuple[int, int]:
    """Fetch them all. Returns an exit code, and how many they were. With `sync` they are on the disk then.

    The code is that of the first that the server refused; the others are fetched all the same. Raises what ends
    everything: OSError, and errors of the connection.
    """
    count = 0
    with unless_terminated(), Progress("objects") as progress:
        crew = _Crew(client, at_once, progress, sync)
        try:
            for each in wanted:
                count += 1
                if not is_there(each):
                    crew.take(each)
            crew.finish()
        except BaseException:
            crew.leave()
            raise
    if crew.failure is not None:
        raise crew.failure
    return crew.code, count


def is_there(wanted: Wanted) -> bool:
    """Whether a file has the size and the time of the object."""
    if wanted.mtime is None:
        return False
    try:
        found = wanted.path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == wanted.size and int(found.st_mtime) == wanted.mtime


class _Stopped(BaseException):
    """The work is over before it was done."""


class _Crew:
    """Threads that fetch what they are given."""

    def __init__(self, client: Client, at_once: int, progress: Progress, sync: bool) -> None:
        self.code: int = ExitCode.DONE
        self.failure: Exception | None = None
        self._client = client
        self._progress = progress
        self._sync = sync
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._under_way: set[str] = set()
        self._tasks: queue.Queue[Wanted | None] = queue.Queue(4 * at_once)
        # Nobody waits at the end for one that hangs in a connection: `leave` removes what it had begun.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(at_once)]
        for thread in self._threads:
            thread.start()

    def take(self, wanted: Wanted | None) -> None:
        """Leave one to the threads, None to end one of them. Waits while they have enough to do."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._tasks.put(wanted, timeout=0.1)
                return
        if self.failure is not None:
            raise self.failure

    def finish(self) -> None:
        """Wait until everything is done."""
        for _ in self._threads:
            self.take(None)
        for thread in self._threads:
            thread.join()

    def leave(self) -> None:
        """Stop, and leave nothing half done behind."""
        self._stop.set()
        deadline = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for name in list(self._under_way):
            Path(name).unlink(missing_ok=True)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                wanted = self._tasks.get(timeout=0.1)
            except queue.Empty:
                continue
            if wanted is None:
                return
            try:
                self._fetch(wanted)
            except _Stopped:
                return
            except ServerReply as error:
                code, line = explain(error)
                with self._lock:
                    say(line)
                    self.code = self.code or code
            except Exception as error:
                with self._lock:
                    self.failure = self.failure or error
                self._stop.set()

    def _fetch(self, wanted: Wanted) -> None:
        with Fetch(self._client, wanted.uri) as fetch, named(str(wanted.path)):
            make_directories(wanted.path.parent, sync=self._sync)
            if wanted.path.is_dir():
                raise Failure(f"{wanted.path}: a directory is in the way of {wanted.uri}")
            with whole_file(wanted.path, under_way=self._under_way, sync=self._sync) as target:
                fetch.write(target, self._moved)
                if fetch.found is not None:
                    # Also where it has changed since it was listed, these are the bytes of this moment.
                    at = os.fstat(fetch.found.fileno()).st_mtime_ns
                    os.utime(target, ns=(at, at))
                elif wanted.mtime is not None:
                    os.utime(target, (wanted.mtime, wanted.mtime))

    def _moved(self, step: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._progress(step)
