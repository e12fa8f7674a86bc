"""Single requests that the engine recorded: the slowest of the last minute, those watched for, and a sample."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class RecordedRequest(BaseModel):
    """One answered request, and how its time divided; times are in microseconds."""

    model_config = ConfigDict(frozen=True)

    number: int  #: rises by one with each that is recorded; 0 for the slowest
    at: float  #: seconds since 1970, when it was answered
    uri: str  #: of a long one the end, after an ellipsis
    peer: str  #: process and user of a Unix socket's client, else its address
    transport: str
    mode: str  #: how it was delivered, or the operation: stat, list, put, put-descriptor, delete
    model: str
    status: int  #: of the protocol, 0 for success
    bytes: int  #: of content
    total_us: float
    queue_us: float  #: waiting for a thread
    storage_us: float  #: looking it up, with the wait for the disk
    send_us: float  #: handing the answer to the kernel, with the wait for the client to read

    @classmethod
    def read(cls, native: Mapping[str, Any]) -> Self:
        """Return what the engine tells of one, typed."""
        return cls(**native)


class Recorded(BaseModel):
    """What was recorded behind a number, oldest first; the engine keeps the last 8,192."""

    model_config = ConfigDict(frozen=True)

    last: int  #: where to go on: the number of the last record, 0 where there is none
    requests: tuple[RecordedRequest, ...]

    def slower_than(self, milliseconds: float) -> Self:
        """Return the same, but only the requests that took at least this long."""
        slow = tuple(each for each in self.requests if each.total_us >= milliseconds * 1000)
        return self.model_copy(update={"requests": slow})
