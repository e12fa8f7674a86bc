"""A file that never answers: a file system in user space, mounted by way of /dev/fuse, that stops replying to reads.

It has one file, `stuck`, that can be looked up, opened and asked for its size; a read is answered when it is released.
"""

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, c_char_p, get_errno
from pathlib import Path

SIZE = 1 << 20
_LOOKUP, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE, _FLUSH, _INIT, _DESTROY = 1, 3, 14, 15, 17, 18, 25, 26, 38
_FORGET, _BATCH_FORGET, _INTERRUPT = 2, 42, 36
_ROOT, _FILE = 1, 2
_ENOSYS, _ENOENT = 38, 2
_MNT_DETACH = 2
_libc = CDLL(None, use_errno=True)


def why_not() -> str:
    """Why there can be no such file here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, to mount a file system"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"no /dev/fuse: {error.strerror}"
    return ""


class StuckFile:
    """The file system, and a thread that answers for it."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self.path = mountpoint / "stuck"
        #: Set while a read waits.
        self.is_read = threading.Event()
        self.is_released = threading.Event()
        #: What reads bring, where they are to be answered.
        self.content: bytes | None = None
        self._waiting: list[int] = []
        self._device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        target = c_char_p(os.fsencode(mountpoint))
        if _libc.mount(c_char_p(b"stuck"), target, c_char_p(b"fuse"), 0, c_char_p(options)) != 0:
            error = get_errno()
            os.close(self._device)
            raise OSError(error, os.strerror(error))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let what is stuck go on, with errors."""
        self.is_released.set()
        waiting, self._waiting = self._waiting, []
        for unique in waiting:
            self._reply(unique, error=5)

    def close(self) -> None:
        """Unmount it; whatever waits for it gets an error."""
        self.release()
        _libc.umount2(c_char_p(os.fsencode(self.mountpoint)), _MNT_DETACH)
        self._thread.join(10)
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                message = os.read(self._device, 1 << 17 | 4096)
            except OSError:
                # ENODEV: unmounted.
                return
            _, opcode, unique, node = struct.unpack_from("<IIQQ", message)
            if opcode == _DESTROY:
                self._reply(unique)
                return
            self._answer(opcode, unique, node, message[40:])

    def _answer(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        if opcode in {_FORGET, _BATCH_FORGET, _INTERRUPT}:
            return
        if opcode == _INIT:
            self._reply(unique, struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 8, 8, 1 << 16, 1, 0, 0, 0))
        elif opcode == _LOOKUP:
            entry = struct.pack("<QQQQII", _FILE, 0, 3600, 3600, 0, 0) + self._attributes(_FILE)
            is_there = node == _ROOT and body == b"stuck\0"
            self._reply(unique, entry if is_there else b"", 0 if is_there else _ENOENT)
        elif opcode == _GETATTR:
            self._reply(unique, struct.pack("<QII", 3600, 0, 0) + self._attributes(node))
        elif opcode == _OPEN:
            # Nothing of it is kept by the kernel.
            self._reply(unique, struct.pack("<QII", 1, 1, 0))
        elif opcode == _READ and self.content is not None:
            offset, length = struct.unpack_from("<QI", body, 8)
            self._reply(unique, self.content[offset : offset + length])
        elif opcode == _READ and not self.is_released.is_set():
            self._waiting.append(unique)
            self.is_read.set()
        elif opcode == _READ:
            self._reply(unique, error=5)
        elif opcode in {_RELEASE, _FLUSH}:
            self._reply(unique)
        else:
            self._reply(unique, error=_ENOSYS)

    @staticmethod
    def _attributes(node: int) -> bytes:
        size, mode = (SIZE, 0o100644) if node == _FILE else (0, 0o40755)
        return struct.pack("<QQQQQQIIIIIIIIII", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _reply(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        try:
            os.write(self._device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
        except OSError:
            # Given up meanwhile.
            return


@contextmanager
def stuck_file(mountpoint: Path) -> Iterator[StuckFile]:
    """Mount one for a while."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    found = StuckFile(mountpoint)
    try:
        yield found
    finally:
        found.close()
