"""The entry point: prepares the process for the command, and imports nothing slow."""

import io
import os
import signal
import sys
from typing import Final

#: Opened in place of a closed stream: it takes the number, and every use of it fails at once with an error.
UNUSABLE_FLAGS: Final = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}

#: Replacements for characters of our messages that an encoding lacks.
ASCII_REPLACEMENTS: Final = {"µ": "u", "…": "...", "×": "x", "–": "-", "·": "."}


def main() -> None:
    """Run the command that the arguments name, and exit with its exit code."""
    # Until the command handles it, Ctrl-C ends the process without a message.
    if interruptible := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    reserve_standard_streams()
    configure_encoding()
    from objmapper_cli.app import run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def configure_encoding() -> None:
    """Let every stream accept every text: characters outside its encoding become ASCII or are escaped."""
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        if stream.encoding.lower() not in ("utf-8", "utf8"):
            import codecs

            codecs.register_error("objmapper", replace_unencodable)
            stream.reconfigure(errors="objmapper")
        elif stream is sys.stdout:
            stream.reconfigure(errors="surrogateescape")


def replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """The replacement for characters outside an encoding. An error handler of `codecs`."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(
        ASCII_REPLACEMENTS.get(each) or each.encode("ascii", "backslashreplace").decode() for each in text
    ), error.end


def reserve_standard_streams() -> None:
    """Open standard input, output and error if the caller has closed them.

    Otherwise the next socket or file would get the number, and messages would be written into it.
    """
    for descriptor, flags in UNUSABLE_FLAGS.items():
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
