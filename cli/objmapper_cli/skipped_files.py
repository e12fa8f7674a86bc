"""Files that the server leaves out of a listing, printed on standard error."""

import os
import sys

from objmapper_cli.errors import ExitCode, print_error
from objmapper_client.protocol.v2_responses import LeftOut


class SkippedFiles:
    """Prints each file that it is called with; `code` is the exit code for them."""

    def __init__(self) -> None:
        self.code: int = ExitCode.DONE

    def __call__(self, found: LeftOut) -> None:
        """Print the file, and the reason."""
        # In the order in which it happened, also where both lead to one place.
        sys.stdout.flush()
        print_error(f"{os.fsdecode(found.path)}: left out: {found.reason}")
        self.code = ExitCode.FAILED
