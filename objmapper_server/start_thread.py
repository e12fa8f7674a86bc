"""Starts threads, and reports a kernel limit as OSError."""

import errno
import threading


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; raises OSError (EAGAIN) if the kernel refuses it, as at RLIMIT_NPROC."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"cannot start the thread {thread.name!r}: {error}") from error
