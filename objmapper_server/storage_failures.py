"""Storage failures, in the form of the log."""

import os
from dataclasses import dataclass

from objmapper_server.statistics import errno_name


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageFailure:
    """The first storage failure since the last call, and the number of further ones."""

    errno: int  #: 0: the file ended before the length that the server announced
    operation: str
    uri: str
    suppressed: int

    def __str__(self) -> str:
        cause = os.strerror(self.errno) if self.errno else "the file ended before the length that was promised"
        line = f"{self.operation} of {self.uri!r}: {cause} ({errno_name(self.errno)})"
        return f"{line}; and {self.suppressed} more" if self.suppressed else line
