"""Downloads many objects into a directory in parallel, and skips files that are up to date.

A file is up to date if it has the size and the modification time of its object, within the precision of the local file
system: a file gets the time of its object. An error of one object is printed, and the others are fetched.
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

from objmapper_cli.download import Download
from objmapper_cli.errors import CommandError, ExitCode, explain, print_error
from objmapper_cli.formatting import NANOSECONDS
from objmapper_cli.name_encoding import local_name
from objmapper_cli.output_file import exiting_on_signals, make_directories, naming_file
from objmapper_cli.progress import Progress
from objmapper_client._files.atomic_file import atomic_file
from objmapper_client.client import Client
from objmapper_client.errors import ObjmapperError, RemoteProtocolError, ServerReply
from objmapper_client.protocol.v2_responses import LeftOut

#: Seconds for the threads to clean up after an interruption.
_CLEANUP_TIMEOUT = 2.0
#: Errors that the next object would get as well.
_FATAL_ERRNOS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EPIPE
)  # fmt: skip


#: Called for each file in place: URI, file, size, and whether it was fetched.
OnDownloaded = Callable[[str, str, int | None, bool], None]


class DownloadTask(NamedTuple):
    """An object, the path of its file, and its metadata; None if unknown."""

    uri: str
    path: Path
    size: int | None = None
    #: Seconds since 1970, and the same in nanoseconds if the server sends them.
    mtime: int | None = None
    mtime_ns: int | None = None


def tasks_below(
    client: Client, prefix: str, folder: Path, left_out: Callable[[LeftOut], None] | None = None
) -> Iterator[DownloadTask]:
    """All objects that begin with a prefix; the path in the folder is the part after the prefix's last slash.

    Calls `left_out` for each file that the server cannot list. Raises RemoteProtocolError for a name that leads out of
    the folder.
    """
    start = f"/{prefix.removeprefix('/')}".rindex("/") + 1
    for entry in client.list(prefix) if left_out is None else client.list(prefix, left_out=left_out):
        parts = entry.uri[start:].split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise RemoteProtocolError(f"{entry.uri!r}: the server listed a URI that is no path below {prefix}")
        path = folder.joinpath(*map(local_name, parts))
        yield DownloadTask(entry.uri, path, entry.size, entry.mtime, entry.mtime_ns)


def download_all(
    client: Client,
    tasks: Iterable[DownloadTask],
    max_threads: int,
    sync: bool = False,
    on_downloaded: OnDownloaded | None = None,
) -> tuple[int, int]:
    """Fetch all objects. Returns an exit code and the number of objects. With `sync` the files are on the disk.

    The code is that of the first object that failed, by the server's error or a local one. The others are fetched, and
    a last message has the number of failures. Raises errors that concern all objects: a full disk, and errors of the
    connection.
    """
    count = 0
    with exiting_on_signals(), Progress("objects") as progress:
        pool = DownloadPool(client, max_threads, progress, sync, on_downloaded)
        try:
            for task in tasks:
                count += 1
                if is_up_to_date(task):
                    pool.report(task, task.size, False)
                else:
                    pool.submit(task)
            pool.finish()
        except BaseException:
            pool.abort()
            raise
    if pool.failure is not None:
        raise pool.failure
    if pool.failed and count > 1:
        print_error(f"{pool.failed} of {count} objects were not fetched")
    return pool.code, count


def is_up_to_date(task: DownloadTask) -> bool:
    """Whether a file has the size and the time of the object."""
    if task.mtime is None:
        return False
    try:
        found = task.path.lstat()
    except OSError:
        # The download gets the same error, and reports it.
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == task.size and _has_mtime(found.st_mtime_ns, task)


def _has_mtime(local_ns: int, task: DownloadTask) -> bool:
    """Whether a file's time is the object's, within the precision of the file system, which truncates digits."""
    if task.mtime_ns is None:
        return local_ns // NANOSECONDS == task.mtime
    precision = 1
    while precision < NANOSECONDS and local_ns % (precision * 10) == 0:
        precision *= 10
    return 0 <= task.mtime_ns - local_ns < precision


def concerns_one_object(error: Exception) -> bool:
    """Whether the error concerns one object, so that others can be fetched."""
    if isinstance(error, ServerReply | CommandError):
        return True
    return isinstance(error, OSError | OverflowError) and (
        not isinstance(error, ObjmapperError) and getattr(error, "errno", None) not in _FATAL_ERRNOS
    )


def _obstacle(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return ""
    return "a directory" if stat.S_ISDIR(mode) else "a special file"


class _Cancelled(BaseException):
    """The download was cancelled."""


class DownloadPool:
    """A bounded set of threads that download objects from a queue."""

    def __init__(
        self, client: Client, max_threads: int, progress: Progress, sync: bool, on_downloaded: OnDownloaded | None
    ) -> None:
        self.code: int = ExitCode.DONE
        self.failed = 0
        self.failure: Exception | None = None
        self._client = client
        self._progress = progress
        self._sync = sync
        self._on_downloaded = on_downloaded
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._partial_files: set[str] = set()
        self._tasks: queue.Queue[DownloadTask | None] = queue.Queue(4 * max_threads)
        self._max_threads = max_threads
        self._threads: list[threading.Thread] = []

    def submit(self, task: DownloadTask | None) -> None:
        """Queue a download; None ends one thread. Waits while the queue is full. Raises CommandError."""
        if task is not None and len(self._threads) < self._max_threads:
            self._start_thread()
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._tasks.put(task, timeout=0.1)
                return
        if self.failure is not None:
            raise self.failure

    def _start_thread(self) -> None:
        # A daemon: the process does not wait for a thread that hangs in a connection. `abort` removes its partial file.
        thread = threading.Thread(target=self._worker_loop, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise CommandError(f"{error}; end other processes, or raise the limit (ulimit -u)") from error
            # Continue with the threads that exist.
            self._max_threads = len(self._threads)
        else:
            self._threads.append(thread)

    def finish(self) -> None:
        """Wait until all downloads are done."""
        for _ in self._threads:
            self.submit(None)
        for thread in self._threads:
            thread.join()

    def abort(self) -> None:
        """Stop the threads, and remove partial files."""
        self._stop.set()
        deadline = time.monotonic() + _CLEANUP_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for name in list(self._partial_files):
            Path(name).unlink(missing_ok=True)

    def _worker_loop(self) -> None:
        while not self._stop.is_set():
            try:
                task = self._tasks.get(timeout=0.1)
            except queue.Empty:
                continue
            if task is None:
                return
            try:
                self._download(task)
            except _Cancelled:
                return
            except Exception as error:
                if concerns_one_object(error):
                    code, line = explain(error)
                    with self._lock:
                        print_error(line)
                        self.code = self.code or code
                        self.failed += 1
                    continue
                with self._lock:
                    self.failure = self.failure or error
                self._stop.set()

    def _download(self, task: DownloadTask) -> None:
        with Download(self._client, task.uri) as download, naming_file(str(task.path)):
            make_directories(task.path.parent, sync=self._sync)
            obstacle = _obstacle(task.path)
            if obstacle:
                raise CommandError(f"{task.path}: {obstacle} is in the place of the file of {task.uri}; move it away")
            with atomic_file(task.path, partial_files=self._partial_files, sync=self._sync) as target:
                size = download.write(target, self._advance)
                if download.object is not None:
                    # If the object has changed since the listing, these are the time and the bytes of the opened file.
                    mtime_ns = os.fstat(download.object.fileno()).st_mtime_ns
                    os.utime(target, ns=(mtime_ns, mtime_ns))
                elif task.mtime is not None:
                    mtime_ns = task.mtime * NANOSECONDS if task.mtime_ns is None else task.mtime_ns
                    os.utime(target, ns=(mtime_ns, mtime_ns))
        self.report(task, size, True)

    def report(self, task: DownloadTask, size: int | None, fetched: bool) -> None:
        """Report a file that is in place, one call at a time."""
        if self._on_downloaded is not None:
            with self._lock:
                self._on_downloaded(task.uri, str(task.path), size, fetched)

    def _advance(self, step: int) -> None:
        if self._stop.is_set():
            raise _Cancelled
        with self._lock:
            self._progress(step)
