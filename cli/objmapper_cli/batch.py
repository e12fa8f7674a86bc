"""One operation on several objects: prints the server's error for each, and continues with the others."""

import sys
from collections.abc import Callable, Iterable

from objmapper_cli.errors import ExitCode, explain, print_error
from objmapper_client.errors import ServerReply


def run_each(uris: Iterable[str], action: Callable[[str], object]) -> int:
    """Call `action` for each URI. Returns the exit code of the first refusal. Raises errors that concern all."""
    first: int = ExitCode.DONE
    for uri in uris:
        try:
            action(uri)
        except ServerReply as error:
            code, line = explain(error)
            # Keep the order of output and errors, if both go to one file.
            sys.stdout.flush()
            print_error(line)
            first = first or code
    return first
