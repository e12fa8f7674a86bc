"""A request of version 2 that shares its connection with others, and its answer once it has come."""

import os
from functools import lru_cache
from typing import Any

from objmapper_client.errors import LocalProtocolError
from objmapper_client.protocol_v2 import HAS_PARAMETERS, Operation, Parameters, encode_request
from objmapper_client.protocol_v2_responses import NO_METADATA, Metadata

_LONGEST_DEADLINE = 0xFFFFFFFF
_FLAGS_AT = 5
# Also the bytes of any request that has no parameters, but for its flags.
_BARE = encode_request(0, Operation.STAT, "/")
Details = tuple[Any, ...]
NO_DETAILS: Details = ()


def details(
    *,
    offset: int | None = None,
    length: int | None = None,
    content_len: int | None = None,
    if_none_match: str | None = None,
    limit: int | None = None,
    cursor: bytes | None = None,
    if_match: str | None = None,
    make_parents: bool = False,
) -> Details:
    """What a request says beside operation, URI and the time that is left; in the order of `Parameters`."""
    return (offset, length, content_len, if_none_match, limit, cursor, if_match, make_parents)


@lru_cache(maxsize=64)
def _tail(milliseconds: int, said: Details) -> bytes:
    """What stands behind the URI. Most requests of a client have the same, and making it costs more than all the rest."""
    offset, length, content_len, if_none_match, limit, cursor, if_match, make_parents = said or (None,) * 7 + (False,)
    parameters = Parameters(
        offset, length, milliseconds, content_len, if_none_match, limit, cursor, if_match, make_parents
    )
    operation = Operation.STAT if content_len is None else Operation.PUT
    return encode_request(0, operation, "/", parameters=parameters)[len(_BARE) :]


def encode(number: int, operation: Operation, uri: str, said: Details, seconds: float) -> bytes:
    """A request that must be answered within so many seconds. Raises LocalProtocolError."""
    milliseconds = int(seconds * 1000)
    if milliseconds > _LONGEST_DEADLINE:
        milliseconds = _LONGEST_DEADLINE
    elif milliseconds < 1:
        milliseconds = 1
    if operation is Operation.PUT:
        parameters = Parameters(said[0], said[1], milliseconds, *said[2:])
        return encode_request(number, operation, uri, parameters=parameters)
    frame = encode_request(number, operation, uri)
    return b"%b%c%b%b" % (frame[:_FLAGS_AT], HAS_PARAMETERS, frame[_FLAGS_AT + 1 :], _tail(milliseconds, said))


class Ask:
    """It owns the descriptor that it was answered with, until `take` gives it away."""

    __slots__ = (
        "content",
        "content_len",
        "deadline",
        "descriptor",
        "details",
        "failure",
        "found_idle",
        "gate",
        "is_abandoned",
        "is_begun",
        "is_done",
        "is_sent",
        "metadata",
        "most",
        "multiplex",
        "number",
        "operation",
        "passed",
        "payload",
        "repeatable",
        "status",
        "uri",
    )

    def __init__(
        self,
        operation: Operation,
        uri: str,
        said: Details = NO_DETAILS,
        *,
        most: int = 0,
        payload: bytes | memoryview | None = None,
        passed: int | None = None,
        repeatable: bool = True,
    ) -> None:
        self.operation = operation
        self.uri = uri
        self.details = said
        #: A content that is longer than this breaks the protocol.
        self.most = most
        self.payload = payload
        #: A descriptor that goes along, lent.
        self.passed = passed
        #: Whether a second request does no harm where the first one may have been executed.
        self.repeatable = repeatable
        #: The shared connection that it runs on: set by whoever yields it.
        self.multiplex: Any = None
        self.number = 0
        self.descriptor = -1
        self.is_sent = self.is_begun = self.is_done = self.is_abandoned = self.found_idle = False
        self.failure: Exception | None = None
        #: What its owner waits for, and until when, where an event loop waits.
        self.gate: Any = None
        self.deadline = 0.0

    def begin(self, number: int, *, found_idle: bool) -> None:
        """Forgets an earlier try."""
        self.number = number
        #: Whether nothing else was under way, so that a server may just have closed the connection for idleness.
        self.found_idle = found_idle
        self.status = 0
        self.metadata: Metadata = NO_METADATA
        self.content: bytes = b""
        self.content_len = 0
        self.failure = None
        self.is_sent = self.is_done = False
        #: Whether the first byte of its answer has come.
        self.is_begun = False

    def fail(self, error: Exception) -> None:
        """It could not even be sent."""
        self.begin(0, found_idle=False)
        self.failure = error
        self.is_done = True

    def take(self) -> int:
        """The descriptor, given away."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            raise LocalProtocolError(f"{self.uri}: the answer's descriptor was taken before")
        return descriptor

    def discard(self) -> None:
        """Wants no answer any more: one that is still to come is thrown away."""
        if self.multiplex is None:
            self.drop()
        else:
            with self.multiplex.lock:
                self.drop()

    def drop(self) -> None:
        """`discard`, for whoever has the connection's lock."""
        self.is_abandoned = True
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
