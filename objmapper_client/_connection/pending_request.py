"""A request of version 2 on the shared connection, and its response."""

from functools import lru_cache
from typing import Any, Generic, Self

from objmapper_client._runtime.descriptors import close_descriptor
from objmapper_client._runtime.effects import Effects, T
from objmapper_client.protocol.v2_requests import Operation, Parameters, encode_request, encode_with_tail
from objmapper_client.protocol.v2_responses import NO_METADATA, Metadata

_MAX_DEADLINE = 0xFFFFFFFF
# The length of a request without parameters.
_NO_PARAMETERS = encode_request(0, Operation.STAT, "/")
ParameterValues = tuple[Any, ...]
NO_PARAMETER_VALUES: ParameterValues = ()


def parameter_values(
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
) -> ParameterValues:
    """The parameters of a request except its deadline, in the order of the fields of `Parameters`."""
    return (offset, length, content_len, if_none_match, limit, cursor, if_match, make_parents, form)


@lru_cache(maxsize=64)
def encoded_tail(seconds: float, parameters: ParameterValues = NO_PARAMETER_VALUES) -> bytes:
    """The bytes after the URI. Cached: most requests of a client have equal ones, and encoding them is expensive."""
    operation = Operation.STAT if not parameters or parameters[2] is None else Operation.PUT
    return encode_request(0, operation, "/", parameters=_parameters(seconds, parameters))[len(_NO_PARAMETERS) :]


def _parameters(seconds: float, parameters: ParameterValues) -> Parameters:
    milliseconds = max(1, min(int(seconds * 1000), _MAX_DEADLINE))
    if not parameters:
        return Parameters(deadline_ms=milliseconds)
    offset, length, *others = parameters
    return Parameters(offset, length, milliseconds, *others)


def encode(request_id: int, operation: Operation, uri: str, parameters: ParameterValues, seconds: float) -> bytes:
    """Encodes a request whose deadline is in `seconds`. Raises LocalProtocolError."""
    if operation is Operation.PUT:
        return encode_request(request_id, operation, uri, parameters=_parameters(seconds, parameters))
    if seconds != round(seconds, 1):
        # The rest of a time limit: no other request will have it, so do not cache its encoding.
        return encode_with_tail(request_id, operation, uri, encoded_tail.__wrapped__(seconds, parameters))
    return encode_with_tail(request_id, operation, uri, encoded_tail(seconds, parameters))


class PendingRequest:
    """A request and its response. It owns the received descriptor until `SimpleRequest.result` moves it."""

    # Defaults as class attributes: most requests change few of them, so that the constructor stays cheap.
    parameters: ParameterValues = NO_PARAMETER_VALUES
    #: Bytes of content that the response may have; more is a protocol violation.
    max_content = 0
    payload: bytes | None = None
    #: Whether the request may be repeated after the server may have executed it.
    idempotent = True
    #: Whether bytes of it are unsent, so that the server cannot have executed it.
    is_unsent = False
    #: The multiplexer of its connection.
    multiplexer: Any = None
    #: Its id on that connection; 0 if it was not sent.
    request_id = 0
    #: Whether it was sent alone on a connection that had been idle, which the server may just have closed.
    found_idle = False
    #: Whether the first byte of its response has come.
    is_response_started = False
    is_done = False
    is_abandoned = False
    #: Whether it was abandoned because its deadline passed.
    is_late = False
    status = 0
    metadata: Metadata = NO_METADATA
    content_len = 0
    content = b""
    _descriptor = -1
    failure: Exception | None = None
    #: The future that its task waits for, and its deadline in the loop's time; asyncio only.
    waiter: Any = None
    deadline = 0.0

    def __init__(self, operation: Operation, uri: str) -> None:
        self.operation = operation
        self.uri = uri

    def with_parameters(self, parameters: ParameterValues, *, max_content: int = 0) -> Self:
        """Sets the parameters, and the bytes of content that the response may have. Returns the request."""
        self.parameters = parameters
        self.max_content = max_content
        return self

    def reset(self) -> None:
        """Clears the response and the state of an earlier attempt."""
        self.request_id = self.status = self.content_len = 0
        self.metadata = NO_METADATA
        self.content = b""
        self.failure = None
        self.is_response_started = self.is_done = self.is_abandoned = self.is_late = self.found_idle = (
            self.is_unsent
        ) = False

    @property
    def descriptor(self) -> int:
        """The received descriptor; -1 if there is none."""
        return self._descriptor

    def discard(self) -> None:
        """Abandons the request: closes its descriptor, or discards its response when that comes."""
        if self.multiplexer is None:
            self.discard_locked()
        else:
            self.multiplexer.abandon(self)

    def discard_locked(self) -> None:
        """`discard` for a caller that holds the connection's lock."""
        self.is_abandoned = True
        if self._descriptor >= 0:
            close_descriptor(self)


class SimpleRequest(PendingRequest, Generic[T]):
    """An operation that consists of one request. `result` makes its result from the response."""

    def result(self) -> T:
        """The operation's result, from a successful response."""
        raise NotImplementedError

    def fallback_v1(self, pool: Any) -> Effects[T]:
        """The same operation on a server that speaks version 1 only."""
        raise NotImplementedError


Runnable = SimpleRequest[T] | Effects[T]
