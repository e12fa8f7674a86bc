"""Errors as users see them: one line on stderr, and an exit code. Only this module maps errors to them."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NoReturn, ParamSpec

P = ParamSpec("P")
INTERRUPTED: Final = 128 + signal.SIGINT

ADVICE: Final = {
    errno.ENOSPC: "free some space, or choose another path",
    errno.EDQUOT: "free some of your quota, or choose another path",
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no larger file",
    errno.EBADF: "open standard input and output; one of them is closed",
    errno.EADDRINUSE: "choose another address, or end the process that has it",
    errno.EADDRNOTAVAIL: "choose an address of this machine",
}


class ExitCode(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_REACHED = 4
    TIMEOUT = 5
    REFUSED = 6
    CONFLICT = 7


class CommandError(Exception):
    """A command failed; the message is one line with problem and remedy."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def explain(error: Exception) -> tuple[ExitCode, str]:
    """Return the exit code and the line for an error."""
    code = _exit_code_of(error)
    if code is not None:
        return code, str(error)
    if isinstance(error, OSError) and error.strerror:
        return ExitCode.FAILED, _os_error_line(error)
    if isinstance(error, OSError):
        return ExitCode.FAILED, str(error)
    if os.environ.get("OBJMAPPER_DEBUG"):
        raise error
    return ExitCode.FAILED, f"internal error: {type(error).__name__}: {error} (OBJMAPPER_DEBUG=1 shows where)"


def _os_error_line(error: OSError) -> str:
    """Return one line: the file, the problem, the reason and the remedy."""
    subject = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    problem = error.strerror or str(error)
    reason = os.strerror(error.errno) if error.errno else problem
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    if error.errno == errno.EADDRINUSE and not subject.startswith(("unix:", "/")):
        advice += "; port 0 selects a free one"
    return f"{subject}{problem}{'' if reason == problem else f' ({reason})'}{advice}"


def _exit_code_of(error: Exception) -> ExitCode | None:
    """Return the code of one of our errors; None for errors of the system and all others."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, sys.modules["objmapper_server"].ConfigError if "objmapper_server" in sys.modules else ()):
        return ExitCode.USAGE
    from objmapper_client import errors

    if not isinstance(error, errors.ObjmapperError):
        return None
    is_permission_error = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)
    for kind, code in (
        (errors.ObjectNotFound, ExitCode.NOT_FOUND),
        (errors.Conflict, ExitCode.CONFLICT),
        (errors.PermissionDenied, ExitCode.REFUSED),
        (errors.ServerBusy, ExitCode.REFUSED),
        (errors.AddressError, ExitCode.USAGE),
        (errors.LocalProtocolError, ExitCode.USAGE),
        (errors.UnsupportedMode, ExitCode.USAGE),
        (errors.InvalidRequest, ExitCode.USAGE),
        (errors.RemoteProtocolError, ExitCode.FAILED),
        (errors.RequestTimeout, ExitCode.TIMEOUT),
        (errors.ConnectionFailed, ExitCode.REFUSED if is_permission_error else ExitCode.NOT_REACHED),
    ):
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED


def with_exit_code(command: Callable[P, int | None]) -> Callable[P, None]:
    """Return the command with each exception turned into a line and an exit code."""

    @functools.wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            code = command(*arguments, **options) or ExitCode.DONE
            sys.stdout.flush()
        except BrokenPipeError:
            _exit_by_sigpipe()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            code, line = explain(error)
            print_error(line)
            discard_output()
        raise SystemExit(int(code))

    return run


def print_error(line: str) -> None:
    """Print one line on stderr. If stderr is closed, only the exit code reports the error."""
    from objmapper_client.errors import printable

    try:
        print("objmapper:", printable(line), file=sys.stderr, flush=True)
    except OSError:
        _discard(2)


def _exit_by_sigpipe() -> NoReturn:
    """End by SIGPIPE, without a message, like other programs in a pipeline."""
    discard_output()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    raise SystemExit(128 + signal.SIGPIPE)


def discard_output() -> None:
    """Discard buffered output that cannot be written: the interpreter would report an error at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard(1)


def _discard(stream: int) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream)
    os.close(devnull)
