"""``objmapper open``: runs a command that reads an object as a file. Nothing is copied."""

import fcntl
import os
import signal
import sys
from typing import Annotated

import typer

from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.name_encoding import uri_of
from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, open_client

#: The placeholder for the object's path in the arguments of a command.
PLACEHOLDER = "{}"
#: The exit codes of a shell for a command that it cannot run, and for one that it does not find.
CANNOT_RUN, NOT_FOUND = 126, 127


def open(  # noqa: A001 - the command's name
    uri: Annotated[str, typer.Argument(metavar="URI", help="URI of the object.")],
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND...", help="Command to run; {} becomes the path of the object.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """Run COMMAND with an object as its input.

    {} becomes /proc/self/fd/N; without {} the object is standard input. Over a Unix socket it is the open file itself:
    nothing is copied. The exit code is the command's. With --json a line precedes its output: uri, path, size,
    mode and etag.
    """
    if not command[0]:
        raise CommandError('COMMAND: expected the name of a program (got "")', ExitCode.USAGE)
    with open_client(server, timeout, wait=wait) as client, client.open(uri_of(uri)) as found:
        # Use a number above 2, in case standard input, output or error is closed.
        descriptor = fcntl.fcntl(found.fileno(), fcntl.F_DUPFD, 3)
        size = found.size
    path = f"/proc/self/fd/{descriptor}"
    if any(PLACEHOLDER in each for each in command):
        command = [each.replace(PLACEHOLDER, path) for each in command]
    else:
        path = "/proc/self/fd/0"
        os.dup2(descriptor, 0)
        os.close(descriptor)
    if as_json:
        from objmapper_cli.formatting import print_json

        print_json({"uri": found.uri, "path": path, "size": size, "mode": found.mode.name.lower(), "etag": found.etag})
    # The interpreter ignores these signals, and the command would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)  # noqa: S606 - what it is for
    except OSError as error:
        from objmapper_cli.errors import print_error

        print_error(f"{command[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
