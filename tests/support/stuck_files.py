"""A file that never answers: a file system in user space, mounted by way of /dev/fuse, that stops replying to reads.

It has one file, `stuck`, that can be looked up, opened and asked for its size; a read is answered when it is released.
That file can be the disk of a local file system, whose files then do not answer either: a server reads from those.
"""

import functools
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, c_char_p, get_errno
from pathlib import Path

SIZE = 1 << 20
MOUNT_TIMEOUT = 30
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
        self._waiting: list[tuple[int, int, int]] = []
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
        for unique, _, _ in waiting:
            self._reply(unique, error=5)

    def resume(self, content: bytes) -> None:
        """Let what is stuck go on, with what it asked for."""
        self.content = content
        waiting, self._waiting = self._waiting, []
        for unique, offset, length in waiting:
            self._reply(unique, content[offset : offset + length])

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
        elif opcode == _READ:
            self._read(unique, *struct.unpack_from("<QI", body, 8))
        elif opcode in {_RELEASE, _FLUSH}:
            self._reply(unique)
        else:
            self._reply(unique, error=_ENOSYS)

    def _read(self, unique: int, offset: int, length: int) -> None:
        if self.content is not None:
            self._reply(unique, self.content[offset : offset + length])
        elif self.is_released.is_set():
            self._reply(unique, error=5)
        else:
            self._waiting.append((unique, offset, length))
            self.is_read.set()

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


#: What the file on the stuck disk holds.
ON_DISK = bytes(range(256)) * 1024
_MAKE = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]


@functools.cache
def why_no_disk() -> str:
    """Why there can be no stuck disk here; empty where there can.

    A loop device over a file that never answers holds up every other loop device of the machine: only on demand.
    """
    if why_not():
        return why_not()
    if "OBJMAPPER_STUCK_DISKS" not in os.environ:
        return "loop devices of the whole machine can hang: OBJMAPPER_STUCK_DISKS=1 takes it (make soak)"
    if shutil.which("mke2fs") is None:
        return "mke2fs (Debian: e2fsprogs) is not installed"
    try:
        with tempfile.TemporaryDirectory(prefix="objmapper-stuck-") as name, stuck_disk(Path(name)):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no file system on a file can be mounted here: {error.stderr.decode().strip()}"
    except subprocess.TimeoutExpired:
        return "no file system on a file can be mounted here: mount(8) does not end"


class StuckDisk:
    """A file of a local file system (ext4), of which no byte is in memory, and whose disk answers no read."""

    def __init__(self, source: int, disk: StuckFile, image: bytes) -> None:
        self.source = source
        self._disk, self._image = disk, image
        self.is_read, self.is_released = disk.is_read, disk.is_released
        #: Lets what waits for the disk go on, with EIO.
        self.release = disk.release

    def resume(self) -> None:
        """Let what waits for the disk go on, with what is there."""
        self._disk.resume(self._image)


@contextmanager
def stuck_disk(folder: Path) -> Iterator[StuckDisk]:
    """Mount one for a while."""
    content, mountpoint = folder / "content", folder / "disk"
    content.mkdir()
    mountpoint.mkdir()
    (content / "stuck").write_bytes(ON_DISK)
    image = folder / "image"
    image.write_bytes(bytes(SIZE))
    subprocess.run([*_MAKE, str(content), str(image)], check=True, capture_output=True, timeout=MOUNT_TIMEOUT)
    with stuck_file(folder / "below") as below:
        content_of_disk = image.read_bytes()
        below.content = content_of_disk
        subprocess.run(
            ["mount", "-o", "loop,ro", str(below.path), str(mountpoint)],
            check=True,
            capture_output=True,
            timeout=MOUNT_TIMEOUT,
        )
        try:
            source = os.open(mountpoint / "stuck", os.O_RDONLY)
            try:
                below.content = None
                yield StuckDisk(source, below, content_of_disk)
            finally:
                os.close(source)
        finally:
            below.release()
            subprocess.run(["umount", "-l", str(mountpoint)], check=True, capture_output=True, timeout=MOUNT_TIMEOUT)
