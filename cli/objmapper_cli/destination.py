"""Where an object is written to: standard output, or a file that appears under its name only when it is whole."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STDOUT = 1


@contextmanager
def destination(name: str | None) -> Iterator[int]:
    """Yield a descriptor to write to, for the time of the block; after a failure the file is as it was before.

    ``None`` and ``-`` are standard output. A device or a pipe is written to as it is: a rename would put a file in its
    place. Raises OSError with the name.
    """
    if name in (None, "-"):
        with named("standard output"):
            yield STDOUT
        return
    assert name is not None
    try:
        kept = Path(name).stat()
    except FileNotFoundError:
        kept = None
    if kept is not None and not stat.S_ISREG(kept.st_mode):
        descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with named(name):
                yield descriptor
        finally:
            os.close(descriptor)
        return
    with (
        named(name),
        _whole(Path(name).resolve(), None if kept is None else stat.S_IMODE(kept.st_mode)) as descriptor,
    ):
        yield descriptor


@contextmanager
def named(name: str) -> Iterator[None]:
    """Give the system's errors within the block the name of what is written to."""
    try:
        yield
    except OSError as error:
        if error.filename is None and type(error).__module__ == "builtins":
            error.filename = name
        raise


@contextmanager
def _whole(path: Path, permissions: int | None) -> Iterator[int]:
    beside = path.with_name(f".{path.name[:60]}.{os.urandom(6).hex()}.part")
    with _unless_terminated():
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            error.filename = str(path)
            raise
        try:
            try:
                if permissions is not None:
                    os.fchmod(descriptor, permissions)
                yield descriptor
            finally:
                os.close(descriptor)
            beside.replace(path)
        except BaseException:
            beside.unlink()
            raise


@contextmanager
def _unless_terminated() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an orderly way out within the block."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
