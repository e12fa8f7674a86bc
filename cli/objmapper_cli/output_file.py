"""The output of a download: standard output, or a file that appears under its name only when it is complete."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from objmapper_client._files.atomic_file import open_output, sync_directory

STDOUT = 1


@contextmanager
def open_output_file(name: str | None, *, sync: bool = False) -> Iterator[int]:
    """Yield a descriptor to write to within the block; after a failure the file is unchanged.

    ``None`` and ``-`` are standard output. A device or a pipe is written directly: a rename would replace it by a file.
    With `sync` a file is on the disk when the block has ended. Raises OSError with the name.
    """
    if name in (None, "-"):
        # After a signal, remove the progress bar from the terminal.
        with naming_file("standard output"), exiting_on_signals():
            yield STDOUT
        return
    assert name is not None
    with naming_file(name), exiting_on_signals(), open_output(name, sync=sync) as descriptor:
        yield descriptor


@contextmanager
def naming_file(name: str) -> Iterator[None]:
    """Add the name of the output to errors of the system within the block."""
    try:
        yield
    except OSError as error:
        if error.filename is None and type(error).__module__ == "builtins":
            error.filename = name
        raise


def make_directories(path: Path, *, sync: bool = False) -> None:
    """Make a directory and its missing parents; with `sync` their names are on the disk on return."""
    missing = [each for each in (path, *path.parents) if not each.exists()] if sync else []
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit within the block.

    A signal that was ignored at the start stays ignored: nohup ignores SIGHUP.
    """

    def exit_on_signal(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handled_signals = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    previous_handlers = {number: signal.signal(number, exit_on_signal) for number in handled_signals}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
