"""The same for several objects: what the server refuses of one is said, and the others are done all the same."""

import sys
from collections.abc import Callable, Iterable

from objmapper_cli.errors import ExitCode, explain, print_error
from objmapper_client.errors import ServerReply


def run_each(uris: Iterable[str], do: Callable[[str], object]) -> int:
    """Do it for each. Returns the exit code of the first that was refused. Raises what is about no single object."""
    first: int = ExitCode.DONE
    for uri in uris:
        try:
            do(uri)
        except ServerReply as error:
            code, line = explain(error)
            # In the order in which it happened, also where both lead to one place.
            sys.stdout.flush()
            print_error(line)
            first = first or code
    return first
