"""Runs ``objmapper`` with an empty page cache: a program, ``python -m tests.support.cold_cache ARGUMENTS…``.

With preadv2(2) the server looks whether it would have to wait for the disk. A seccomp(2) filter answers that with
EAGAIN: it would. The threads that may wait use other calls, which the filter allows.
"""

import ctypes
import errno
import platform
import struct

#: The number of preadv2, where these tests know it.
PREADV2 = {"x86_64": 327, "aarch64": 286}

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_preadv2() -> None:
    """For this process and all that it becomes."""
    steps = [
        (LOAD_WORD, 0, 0, 0),  # the number of the call
        (JUMP_IF_EQUAL, 0, 1, PREADV2[platform.machine()]),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EAGAIN),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    program = _Program(len(steps), b"".join(struct.pack("=HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse_preadv2()
    from objmapper_cli.main import main

    main()
