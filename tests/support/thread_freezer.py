"""Stops single threads of another process, so that a disk is as slow as a test needs.

ptrace(2) stops the threads that wait for storage; all others run on.
"""

import ctypes
import os
from types import TracebackType

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class ThreadFreezer:
    """Within the block the threads do not run. ptrace(2) wants to be called by the thread that began."""

    def __init__(self, threads: list[int]) -> None:
        assert threads, "there is no such thread"
        self._free = list(threads)
        self._held: list[int] = []

    def __enter__(self) -> "ThreadFreezer":
        try:
            while self._free:
                thread = self._free.pop()
                _ptrace(PTRACE_SEIZE, thread)
                self._held.append(thread)
                _ptrace(PTRACE_INTERRUPT, thread)
                _, status = os.waitpid(thread, _WALL)
                assert os.WIFSTOPPED(status), status
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Lets them go on."""
        while self._held:
            _ptrace(PTRACE_DETACH, self._held.pop())


def _ptrace(what: int, thread: int) -> None:
    if _libc.ptrace(what, thread, None, None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace of thread {thread}: {os.strerror(number)}")
