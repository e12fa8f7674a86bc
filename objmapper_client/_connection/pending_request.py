"""A request of version 2 that shares its connection with others, and its answer once it has come."""

from functools import lru_cache
from typing import Any, Generic, Self

from objmapper_client._runtime.descriptors import close_descriptor
from objmapper_client._runtime.effects import Effects, T
from objmapper_client.protocol.v2_requests import Operation, Parameters, encode_request, encode_with_tail
from objmapper_client.protocol.v2_responses import NO_METADATA, Metadata

_MAX_DEADLINE = 0xFFFFFFFF
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
    form: int | None = None,
) -> Details:
    """What a request says beside operation, URI and the time that is left; in the order of `Parameters`."""
    return (offset, length, content_len, if_none_match, limit, cursor, if_match, make_parents, form)


@lru_cache(maxsize=64)
def encoded_tail(seconds: float, said: Details = NO_DETAILS) -> bytes:
    """What stands behind the URI. Most requests of a client have the same, and making it costs more than the rest."""
    operation = Operation.STAT if not said or said[2] is None else Operation.PUT
    return encode_request(0, operation, "/", parameters=_parameters(seconds, said))[len(_BARE) :]


def _parameters(seconds: float, said: Details) -> Parameters:
    milliseconds = max(1, min(int(seconds * 1000), _MAX_DEADLINE))
    if not said:
        return Parameters(deadline_ms=milliseconds)
    offset, length, *others = said
    return Parameters(offset, length, milliseconds, *others)


def encode(number: int, operation: Operation, uri: str, said: Details, seconds: float) -> bytes:
    """A request that must be answered within `seconds`. Raises LocalProtocolError."""
    if operation is Operation.PUT:
        return encode_request(number, operation, uri, parameters=_parameters(seconds, said))
    if seconds != round(seconds, 1):
        # The rest of a time limit, which no other request will have.
        return encode_with_tail(number, operation, uri, encoded_tail.__wrapped__(seconds, said))
    return encode_with_tail(number, operation, uri, encoded_tail(seconds, said))


class PendingRequest:
    """It owns the descriptor that it was answered with, until `take` gives it away."""

    # Most of these stay as they are with most requests: as attributes of the class they cost nothing.
    details: Details = NO_DETAILS
    #: A content that is longer than this breaks the protocol.
    most = 0
    payload: bytes | None = None
    #: Whether a second request does no harm where the first one may have been executed.
    idempotent = True
    #: Whether the socket has not taken all of its bytes, so that no server can have executed it.
    is_unsent = False
    #: The shared connection that it runs on.
    multiplexer: Any = None
    #: Its id on that connection, 0 where it was not sent.
    number = 0
    #: Whether it was alone and not the first, so that a server may just have closed the connection for idleness.
    found_idle = False
    #: Whether the first byte of its answer has come.
    is_begun = False
    is_done = False
    is_abandoned = False
    #: Whether it was abandoned because its time was up.
    is_late = False
    status = 0
    metadata: Metadata = NO_METADATA
    content_len = 0
    content = b""
    _descriptor = -1
    failure: Exception | None = None
    #: What its owner waits for, and until when, where an event loop waits.
    gate: Any = None
    deadline = 0.0

    def __init__(self, operation: Operation, uri: str) -> None:
        self.operation = operation
        self.uri = uri

    def with_parameters(self, said: Details, *, most: int = 0) -> Self:
        """The same with parameters, and at most `most` bytes of content."""
        self.details = said
        self.most = most
        return self

    def reset(self) -> None:
        """Forgets an earlier try."""
        self.number = self.status = self.content_len = 0
        self.metadata = NO_METADATA
        self.content = b""
        self.failure = None
        self.is_begun = self.is_done = self.is_abandoned = self.is_late = self.found_idle = self.is_unsent = False

    @property
    def descriptor(self) -> int:
        """The descriptor that it was answered with, -1 where there is none."""
        return self._descriptor

    def discard(self) -> None:
        """Wants no answer any more: one that is still to come is thrown away."""
        if self.multiplexer is None:
            self.discard_locked()
        else:
            self.multiplexer.abandon(self)

    def discard_locked(self) -> None:
        """`discard`, for a caller that has the connection's lock."""
        self.is_abandoned = True
        if self._descriptor >= 0:
            close_descriptor(self)


class SimpleRequest(PendingRequest, Generic[T]):
    """A verb that is one request and no more: its result is made of the answer."""

    def result(self) -> T:
        """What the caller gets, once there is an answer."""
        raise NotImplementedError

    def fallback_v1(self, pool: Any) -> Effects[T]:
        """What is done instead where the server speaks version 1 only."""
        raise NotImplementedError


Verb = SimpleRequest[T] | Effects[T]
