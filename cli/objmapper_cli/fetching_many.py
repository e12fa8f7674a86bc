"""Many objects into a directory, several at once; those that are there already are not fetched again.

An object counts as there when a file has its size and its modification time, as exactly as the local file system keeps
it: files get the time of their objects. What is in the way of one object is said, and the others are fetched.
"""

import contextlib
import errno
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from objmapper_cli.destination import make_directories, named, unless_terminated
from objmapper_cli.errors import ExitCode, Failure, explain, say
from objmapper_cli.fetching import Fetch
from objmapper_cli.names import local_name
from objmapper_cli.progress import Progress
from objmapper_cli.showing import SECOND
from objmapper_client._files.atomic import atomic_file
from objmapper_client.client import Client
from objmapper_client.errors import ObjmapperError, RemoteProtocolError, ServerReply
from objmapper_client.protocol.v2_responses import LeftOut

#: Seconds that those at work get to clean up after an interruption.
_GRACE = 2.0
#: What the next object would meet as well.
_ENDS_ALL = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EPIPE
)  # fmt: skip


#: Called with what is in place: URI, file, size, and whether it was fetched.
Tell = Callable[[str, str, int | None, bool], None]


class Wanted(NamedTuple):
    """An object, its place, and what is known of it, None where nothing is."""

    uri: str
    path: Path
    size: int | None = None
    #: Seconds since 1970, and the same in nanoseconds where the server says them.
    mtime: int | None = None
    mtime_ns: int | None = None


def below(
    client: Client, prefix: str, folder: Path, left_out: Callable[[LeftOut], None] | None = None
) -> Iterator[Wanted]:
    """Everything that begins with a prefix; in the folder it is called what follows the prefix's last slash.

    `left_out` is called with what the server cannot list. Raises RemoteProtocolError for a name that would lead out of
    the folder.
    """
    start = f"/{prefix.removeprefix('/')}".rindex("/") + 1
    for entry in client.list(prefix) if left_out is None else client.list(prefix, left_out=left_out):
        parts = entry.uri[start:].split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise RemoteProtocolError(f"{entry.uri!r}: the server lists what is no path below {prefix}")
        path = folder.joinpath(*map(local_name, parts))
        yield Wanted(entry.uri, path, entry.size, entry.mtime, entry.mtime_ns)


def fetch_many(
    client: Client, wanted: Iterable[Wanted], at_once: int, sync: bool = False, tell: Tell | None = None
) -> tuple[int, int]:
    """Fetch them all. Returns an exit code, and how many they were. With `sync` they are on the disk then.

    The code is that of the first that the server refused, or that something local was in the way of; the others are
    fetched all the same, and the end says how many were not. Raises what ends everything: a full disk, and errors of
    the connection.
    """
    count = 0
    with unless_terminated(), Progress("objects") as progress:
        crew = _Crew(client, at_once, progress, sync, tell)
        try:
            for each in wanted:
                count += 1
                if is_there(each):
                    crew.tell(each, each.size, False)
                else:
                    crew.take(each)
            crew.finish()
        except BaseException:
            crew.leave()
            raise
    if crew.failure is not None:
        raise crew.failure
    if crew.failed and count > 1:
        say(f"{crew.failed} of {count} objects were not fetched")
    return crew.code, count


def is_there(wanted: Wanted) -> bool:
    """Whether a file has the size and the time of the object."""
    if wanted.mtime is None:
        return False
    try:
        found = wanted.path.lstat()
    except OSError:
        # Fetching it meets the same error, and says it.
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == wanted.size and _has_time(found.st_mtime_ns, wanted)


def _has_time(local_ns: int, wanted: Wanted) -> bool:
    """Whether a file's time is the object's, as exactly as the file system keeps it: it cuts digits off."""
    if wanted.mtime_ns is None:
        return local_ns // SECOND == wanted.mtime
    kept = 1
    while kept < SECOND and local_ns % (kept * 10) == 0:
        kept *= 10
    return 0 <= wanted.mtime_ns - local_ns < kept


def is_of_one_object(error: Exception) -> bool:
    """Whether the others can be fetched all the same."""
    if isinstance(error, ServerReply | Failure):
        return True
    return isinstance(error, OSError | OverflowError) and (
        not isinstance(error, ObjmapperError) and getattr(error, "errno", None) not in _ENDS_ALL
    )


def _in_the_way(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return ""
    return "a directory" if stat.S_ISDIR(mode) else "what is no regular file"


class _Stopped(BaseException):
    """The work is over before it was done."""


class _Crew:
    """Threads that fetch what they are given."""

    def __init__(self, client: Client, at_once: int, progress: Progress, sync: bool, tell: Tell | None) -> None:
        self.code: int = ExitCode.DONE
        self.failed = 0
        self.failure: Exception | None = None
        self._client = client
        self._progress = progress
        self._sync = sync
        self._tell = tell
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._under_way: set[str] = set()
        self._tasks: queue.Queue[Wanted | None] = queue.Queue(4 * at_once)
        self._at_once = at_once
        self._threads: list[threading.Thread] = []

    def take(self, wanted: Wanted | None) -> None:
        """Leave one to the threads, None to end one of them. Waits while they have enough to do. Raises Failure."""
        if wanted is not None and len(self._threads) < self._at_once:
            self._start_thread()
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._tasks.put(wanted, timeout=0.1)
                return
        if self.failure is not None:
            raise self.failure

    def _start_thread(self) -> None:
        # The process does not wait for one that hangs in a connection: `leave` removes what it had begun.
        thread = threading.Thread(target=self._work, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise Failure(f"{error}: end other processes, or raise the limit (ulimit -u)") from error
            # Those that there are do the work.
            self._at_once = len(self._threads)
        else:
            self._threads.append(thread)

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
            except Exception as error:
                if is_of_one_object(error):
                    code, line = explain(error)
                    with self._lock:
                        say(line)
                        self.code = self.code or code
                        self.failed += 1
                    continue
                with self._lock:
                    self.failure = self.failure or error
                self._stop.set()

    def _fetch(self, wanted: Wanted) -> None:
        with Fetch(self._client, wanted.uri) as fetch, named(str(wanted.path)):
            make_directories(wanted.path.parent, sync=self._sync)
            in_the_way = _in_the_way(wanted.path)
            if in_the_way:
                raise Failure(f"{wanted.path}: {in_the_way} is in the way of {wanted.uri}")
            with atomic_file(wanted.path, under_way=self._under_way, sync=self._sync) as target:
                size = fetch.write(target, self._moved)
                if fetch.found is not None:
                    # Also where it has changed since it was listed, these are the bytes of this moment.
                    at = os.fstat(fetch.found.fileno()).st_mtime_ns
                    os.utime(target, ns=(at, at))
                elif wanted.mtime is not None:
                    at = wanted.mtime * SECOND if wanted.mtime_ns is None else wanted.mtime_ns
                    os.utime(target, ns=(at, at))
        self.tell(wanted, size, True)

    def tell(self, wanted: Wanted, size: int | None, fetched: bool) -> None:
        """Say that a file is in place, one at a time."""
        if self._tell is not None:
            with self._lock:
                self._tell(wanted.uri, str(wanted.path), size, fetched)

    def _moved(self, step: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._progress(step)
