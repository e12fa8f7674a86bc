"""Files that the server leaves out of a listing, printed on standard error."""

import os
import sys

from objmapper_cli.errors import ExitCode, print_error
from objmapper_client.protocol.v2_responses import LeftOut


class SkippedFiles:
    """Called with each file, prints it; `code` is the exit code."""

    def __init__(self) -> None:
        self.code: int = ExitCode.DONE

    def __call__(self, found: LeftOut) -> None:
        """Print the file, and the reason."""
        # Keep the order of output and errors, if both go to one file.
        sys.stdout.flush()
        print_error(f"{os.fsdecode(found.path)}: left out: {found.reason}")
        self.code = ExitCode.FAILED
