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
    permissions = None if kept is None else stat.S_IMODE(kept.st_mode)
    with named(name), unless_terminated(), whole(Path(name).resolve(), permissions) as descriptor:
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
def whole(path: Path, permissions: int | None = None, under_way: set[Path] | None = None) -> Iterator[int]:
    """Yield a descriptor of a file that gets its name when the block ends, and is gone when the block fails.

    While it has another name that is in `under_way`, for those who may have to leave in a hurry.
    """
    beside = path.with_name(f".{path.name[:60]}.{os.urandom(6).hex()}.part")
    names = set[Path]() if under_way is None else under_way
    names.add(beside)
    try:
        descriptor = _made(beside, path)
        try:
            try:
                if permissions is not None:
                    os.fchmod(descriptor, permissions)
                yield descriptor
            finally:
                os.close(descriptor)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    finally:
        names.discard(beside)


def _made(beside: Path, path: Path) -> int:
    try:
        return os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def unless_terminated() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an orderly way out within the block."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
