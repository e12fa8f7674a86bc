"""Starting a thread, which the kernel may refuse."""

import errno
import threading


def start_thread(thread: threading.Thread) -> None:
    """Start it; raises OSError (EAGAIN) where the kernel gives no further thread, as at RLIMIT_NPROC."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"cannot start the thread {thread.name!r}: {error}") from error
