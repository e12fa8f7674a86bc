"""What failed in the storage, as the log says it."""

import os
from dataclasses import dataclass

from objmapper_server.statistics import errno_name


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageFailure:
    """The first failure of the storage since it was asked for, and how many others there were."""

    errno: int  #: 0: the file ended before the length that was promised
    operation: str
    uri: str
    suppressed: int

    def __str__(self) -> str:
        what = os.strerror(self.errno) if self.errno else "the file ended before the length that was promised"
        line = f"{self.operation} of {self.uri!r}: {what} ({errno_name(self.errno)})"
        return f"{line}; and {self.suppressed} more" if self.suppressed else line
