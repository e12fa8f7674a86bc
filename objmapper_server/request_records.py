"""Recorded requests: the slowest of the last minute, watched ones, and a sample."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class RecordedRequest(BaseModel):
    """An answered request and the parts of its time, in microseconds."""

    model_config = ConfigDict(frozen=True)

    number: int  #: counts the records from 1; 0 for the slowest
    at: float  #: the time of the answer, in seconds since 1970
    uri: str  #: a long one is shortened to an ellipsis and its end
    peer: str  #: process and user of a client on a Unix socket, else the client's address
    transport: str
    mode: str  #: the mode of delivery, or the operation: stat, list, put, put-descriptor, delete
    model: str
    status: int  #: status byte of the protocol; 0 for success
    bytes: int  #: bytes of content
    total_us: float
    queue_us: float  #: wait for a thread
    storage_us: float  #: look-up, with the wait for the disk
    send_us: float  #: sending the answer, with the wait for the client to read

    @classmethod
    def from_native(cls, native: Mapping[str, Any]) -> Self:
        """Return an engine's record as a value."""
        return cls(**native)


class Recorded(BaseModel):
    """The records after a number, oldest first. The engine keeps the last 8,192."""

    model_config = ConfigDict(frozen=True)

    last: int  #: the number of the last record, from which the next call continues; 0 if there is none
    requests: tuple[RecordedRequest, ...]

    def slower_than(self, milliseconds: float) -> Self:
        """Return only the requests that took at least `milliseconds`."""
        slow = tuple(each for each in self.requests if each.total_us >= milliseconds * 1000)
        return self.model_copy(update={"requests": slow})
