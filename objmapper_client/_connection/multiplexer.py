"""Multiplexes requests on one connection, and assigns responses and descriptors to them. It never blocks.

Descriptors arrive in the order of the successful responses to FDPASS requests; each of these takes the next.
"""

from collections import deque
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from objmapper_client._connection.connection import CHUNK, NO_ANCILLARY, NONBLOCKING, TRUNCATED, Ancillary, Connection
from objmapper_client._connection.pending_request import NO_PARAMETER_VALUES, PendingRequest, encode, encoded_tail
from objmapper_client._connection.socket_io import closed_error, io_error, lost_descriptor_error, only_descriptor
from objmapper_client._runtime.descriptors import close_descriptor
from objmapper_client.errors import ConnectionFailed, ObjmapperError, RemoteProtocolError
from objmapper_client.protocol.v2_requests import CloseFrame, Operation, encode_with_tail
from objmapper_client.protocol.v2_responses import ResponseHead, decode_common

_FDPASS = Operation.FDPASS
_MAX_ID = 0xFFFFFFFF


class PipelineFull(Exception):
    """The connection accepts no further request now. Nothing was sent."""


class Multiplexer:
    """The pending requests of a connection. The subclasses of the two runtimes wait and wake.

    Threads hold `lock` when they call it; methods that take the lock themselves say so.
    """

    def __init__(self, connection: Connection, lock: AbstractContextManager[Any], timeout: float) -> None:
        self.lock = lock
        self.connection = connection
        self.limit = connection.max_pipeline
        #: Requests whose response has not started, by id.
        self.pending: dict[int, PendingRequest] = {}
        self._operations: dict[int, Operation] = {}
        self._operation_of = self._operations.get
        self._next_frame = connection.responses.next
        #: Pending FDPASS requests: the number of descriptors that may come.
        self._fds_expected = 0
        #: The request whose content is being received, and the parts received so far.
        self._receiving: PendingRequest | None = None
        self._pieces: list[bytes] = []
        #: Unsent bytes, one item a request, and their requests.
        self.outgoing: deque[bytes] = deque()
        self._unsent: deque[PendingRequest] = deque()
        #: Whether the server has announced that it reads no more requests.
        self.is_refusing = False
        #: Whether no more requests are sent. The connection closes when no request waits for a response.
        self.is_closing = False
        self.is_closed = False
        self._timeout = timeout
        self._tail = encoded_tail(timeout)
        #: The last used id at the time of the last read.
        self._last_id_at_receive = 0

    @property
    def has_capacity(self) -> bool:
        """Whether another request may be sent."""
        return self.capacity > 0 and not self.is_closing

    @property
    def capacity(self) -> int:
        """The number of further requests that may be pending."""
        return self.limit - len(self.pending)

    @property
    def has_pending(self) -> bool:
        """Whether a request waits for its response that is not abandoned."""
        return any(not pending.is_abandoned for pending in self.unanswered())

    def unanswered(self) -> list[PendingRequest]:
        """The requests whose response is not complete, oldest first."""
        first = [] if self._receiving is None else [self._receiving]
        return [*first, *self.pending.values()]

    def register(self, pending: PendingRequest, seconds: float) -> bytes:
        """Adds a request to the pending ones. Returns its encoded bytes. Raises LocalProtocolError, PipelineFull."""
        operations, connection = self._operations, self.connection
        if self.is_closing or len(operations) >= self.limit:
            raise PipelineFull
        request_id = connection.last_id + 1
        if request_id in operations or request_id > _MAX_ID:
            request_id = self._next_free_id(request_id)
        operation = pending.operation
        if pending.parameters is NO_PARAMETER_VALUES and seconds == self._timeout:
            frame = encode_with_tail(request_id, operation, pending.uri, self._tail)
        else:
            frame = encode(request_id, operation, pending.uri, pending.parameters, seconds)
            if pending.payload is not None:
                frame += pending.payload
        connection.last_id = pending.request_id = request_id
        pending.multiplexer = self
        self.pending[request_id] = pending
        operations[request_id] = operation
        if operation is _FDPASS:
            self._fds_expected += 1
        return frame

    def _next_free_id(self, request_id: int) -> int:
        while request_id in self._operations or request_id > _MAX_ID:
            request_id = request_id + 1 if request_id < _MAX_ID else 1
        return request_id

    def queue(self, pending: PendingRequest, seconds: float) -> None:
        """Registers a request and queues its bytes for the next `flush`. Raises LocalProtocolError, PipelineFull."""
        self.queue_remainder(pending, self.register(pending, seconds))

    def queue_remainder(self, pending: PendingRequest, rest: bytes) -> None:
        """Queues the unsent bytes of a request for the next `flush`."""
        pending.is_unsent = True
        self._unsent.append(pending)
        self.outgoing.append(rest)

    def read_available(self) -> None:
        """Reads without blocking, so that a closed or closing connection is seen before a request is sent.

        For requests that are not idempotent, while no other thread reads.
        """
        connection = self.connection
        try:
            if connection.is_unix:
                connection.receive_message_now()
                data, ancillary, flags, _ = connection.inbox[0]
            else:
                data, ancillary, flags = connection.socket.recv(CHUNK, NONBLOCKING), NO_ANCILLARY, 0
        except BlockingIOError:
            return
        except OSError as error:
            self.on_finished(self.fail(io_error(connection.address, error)))
            return
        self.on_finished(self.feed(data, ancillary, flags))

    def on_finished(self, finished: list[PendingRequest]) -> None:
        """Wakes the threads or tasks that wait for these requests."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Sends queued bytes without blocking. Returns whether all were sent. Raises ConnectionFailed."""
        outgoing = self.outgoing
        while outgoing:
            data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
            try:
                sent = self.connection.socket.send(data, NONBLOCKING)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                # Responses that the server sent before it closed can still be read.
                self.is_closing = True
                outgoing.clear()
                return True
            except OSError as error:
                raise io_error(self.connection.address, error) from error
            while outgoing and sent >= len(outgoing[0]):
                sent -= len(outgoing[0])
                self._unsent[0].is_unsent = False
                self._unsent.popleft()
                outgoing.popleft()
            if sent:
                outgoing[0] = outgoing[0][sent:]
        return True

    def feed_fast(self, pending: PendingRequest, data: bytes, ancillary: Ancillary, flags: int) -> bool:
        """The fast path of `feed`: a complete, successful response to the only pending request.

        Returns False, and changes nothing, in all other cases.
        """
        if flags & TRUNCATED or self.is_closing or len(self.pending) > 1 or self._receiving is not None:
            return False
        found = decode_common(data, pending.request_id)
        if found is None or not self.connection.responses.is_empty:
            return False
        content_len, metadata, head_size = found
        if pending.operation is _FDPASS:
            if len(data) != head_size or (descriptor := only_descriptor(ancillary)) is None:
                return False
            pending._descriptor = descriptor
            self.connection.inbox.clear()
            self._fds_expected = 0
        else:
            if ancillary or content_len > pending.max_content or len(data) != head_size + content_len:
                return False
            pending.content = data[head_size:]
            self.connection.inbox.clear()
        self.pending.clear()
        self._operations.clear()
        pending.metadata = metadata
        pending.is_done = True
        return True

    def feed(self, data: bytes, ancillary: Ancillary, flags: int) -> list[PendingRequest]:
        """Processes the result of one read. Returns the requests that are done, without abandoned ones.

        A protocol violation closes the connection. The requests answered in this message, or else the oldest one, fail
        with the violation; all others fail with ConnectionFailed.
        """
        connection = self.connection
        descriptors = connection.descriptors
        finished: list[PendingRequest] = []
        is_lost = False
        self._last_id_at_receive = connection.last_id
        try:
            if ancillary or flags & TRUNCATED:
                _, is_lost = connection.unpack_inbox()
            else:
                connection.inbox.clear()
            if not data:
                return self.fail(None)
            connection.responses.feed(data)
            while self._receiving is None or self._receive_content(finished):
                head = self._next_frame(self._operation_of)
                if type(head) is not ResponseHead:
                    if head is None:
                        break
                    self._on_close_frame(head)
                    continue
                request_id, status, content_len, metadata = head
                pending = self.pending[request_id]
                pending.status = status
                pending.metadata = metadata
                if pending.operation is _FDPASS:
                    self._fds_expected -= 1
                    if status == 0:
                        if descriptors:
                            # Both own it for a moment: see `fail`.
                            pending._descriptor = descriptors[0]
                            descriptors.popleft()
                        elif is_lost:
                            pending.failure = lost_descriptor_error()
                        else:
                            self._descriptor_mismatch(finished, pending)
                elif content_len:
                    self._begin_content(pending, content_len)
                    self._remove(request_id)
                    continue
                finished.append(pending)
                pending.is_done = True
                self._remove(request_id)
                if connection.responses.is_empty:
                    break
            if descriptors and len(descriptors) > self._fds_expected:
                self._descriptor_mismatch(finished)
        except RemoteProtocolError as error:
            return self._fail_with(error, finished)
        if is_lost and self._fds_expected:
            # It is unknown which of the coming responses has lost its descriptor.
            finished += self._fail_with(
                lost_descriptor_error(), [pending for pending in self.pending.values() if pending.operation is _FDPASS]
            )
        for pending in finished:
            if pending.is_abandoned:
                finished = self._drop_abandoned(finished)
                break
        if self.is_closing and not self.has_pending:
            self.close()
        return finished

    def _remove(self, request_id: int) -> None:
        del self._operations[request_id]
        del self.pending[request_id]

    def _on_close_frame(self, frame: object) -> None:
        if not isinstance(frame, CloseFrame):
            raise RemoteProtocolError(
                f"{self.connection.address}: the server confirmed a close that the client did not send"
            )
        self.is_closing = self.is_refusing = True

    def _begin_content(self, pending: PendingRequest, content_len: int) -> None:
        """Starts to receive a request's content."""
        pending.content_len = content_len
        self._receiving = pending
        if content_len > pending.max_content:
            raise RemoteProtocolError(
                f"{self.connection.address}: the server sends {content_len} bytes, more than requested"
            )

    def _descriptor_mismatch(
        self, finished: list[PendingRequest], without_descriptor: PendingRequest | None = None
    ) -> NoReturn:
        """Raises the error for unexpected descriptors, or for a response without its descriptor."""
        if without_descriptor is not None:
            finished.append(without_descriptor)
        requested = [pending for pending in finished if pending.operation is _FDPASS]
        received = len(self.connection.descriptors) + sum(1 for pending in requested if pending.descriptor >= 0)
        expected = sum(1 for pending in requested if pending.status == 0)
        raise RemoteProtocolError(
            f"{self.connection.address}: the server passed {received} descriptors where "
            f"{'one was' if expected == 1 else f'{expected} were'} expected"
        )

    def _receive_content(self, finished: list[PendingRequest]) -> bool:
        """Receives content. Returns whether it is complete."""
        pending = self._receiving
        assert pending is not None
        left = pending.content_len - sum(map(len, self._pieces))
        piece = self.connection.responses.take_content(left)
        if len(piece) < left:
            self._pieces.append(piece)
            return False
        if self._pieces:
            piece = b"".join((*self._pieces, piece))
            self._pieces.clear()
        pending.content = piece
        pending.is_done = True
        self._receiving = None
        finished.append(pending)
        return True

    def _drop_abandoned(self, finished: list[PendingRequest]) -> list[PendingRequest]:
        for pending in finished:
            if pending.is_abandoned:
                pending.discard_locked()
        return [pending for pending in finished if not pending.is_abandoned]

    def _fail_with(self, error: ObjmapperError, concerned: list[PendingRequest]) -> list[PendingRequest]:
        """Fails these requests, or the oldest one, with the error, and all others with ConnectionFailed."""
        for pending in concerned or self.unanswered()[:1]:
            pending.is_response_started = True
            pending.is_done = False
            pending.failure = type(error)(*error.args)
            self.pending[pending.request_id] = pending
        return self.fail(
            ConnectionFailed(f"{self.connection.address}: the client closed the connection after an error ({error})")
        )

    def fail(self, error: ConnectionFailed | None) -> list[PendingRequest]:
        """Closes the connection and fails its requests, which it returns. `error` None: the server closed it."""
        # A signal handler may have interrupted the processing of responses: requests that are done keep theirs.
        failed = [pending for pending in self.unanswered() if not pending.is_done]
        if len(failed) == 1 and failed[0].request_id > 1:
            failed[0].found_idle = True
        if failed and (self._receiving is not None or not self.connection.responses.is_empty):
            # The first bytes of a response do not contain its id. The oldest request is the most likely one.
            failed[0].is_response_started = True
        keep = frozenset(pending.descriptor for pending in self.unanswered())
        self.close(keep)
        for pending in failed:
            if pending.failure is None:
                # One error object a request: each gets its own traceback.
                midway = closed_error(self.connection.address, midway=pending.is_response_started)
                pending.failure = midway if error is None else type(error)(*error.args)
            close_descriptor(pending)
            pending.is_done = True
        return [pending for pending in failed if not pending.is_abandoned]

    def close_when_idle(self) -> None:
        """Sends no more requests, and closes the connection once no request waits for a response. Takes the lock."""
        with self.lock:
            self.is_closing = True
            if not self.has_pending:
                self.close()

    def close_if_stuck(self) -> bool:
        """Closes the connection if it is full of abandoned requests and the server is silent. Takes the lock.

        Returns whether it did. A connection with a live server has capacity soon.
        """
        with self.lock:
            is_useless = not self.has_capacity and not self.has_pending and self.is_stuck()
            if is_useless:
                self.close()
            return is_useless

    def is_stuck(self) -> bool:
        """Whether no bytes have come since the oldest request was sent."""
        oldest = self.unanswered()
        return bool(oldest) and oldest[0].request_id > self._last_id_at_receive

    def abandon(self, pending: PendingRequest) -> None:
        """Drops a request: the connection discards its response. Takes the lock."""
        with self.lock:
            pending.discard_locked()

    def close_if_unresponsive(self, pending: PendingRequest) -> None:
        """Sends no more requests if the server seems to hang: this one timed out, and no later one has a response."""
        with self.lock:
            later = self.connection.last_id - pending.request_id
            if later == sum(1 for request_id in self._operations if request_id > pending.request_id):
                self.is_closing = True
                if not self.has_pending:
                    self.close()

    def detach_if_idle(self) -> Connection | None:
        """Removes and returns the connection, or returns None if a request waits for a response. Takes the lock.

        The returned connection is closed if the response to an abandoned request is still to come.
        """
        with self.lock:
            if self.has_pending:
                return None
            if self.is_closing or self.unanswered():
                self.close()
            self.is_closing = True
            return self.connection

    def close(self, keep: frozenset[int] = frozenset()) -> None:
        """Closes the connection with its pending requests. Keeps the descriptors in `keep` open."""
        self.is_closed = True
        self.pending.clear()
        self._operations.clear()
        self._receiving = None
        self._fds_expected = 0
        self.is_closing = True
        self.outgoing.clear()
        self._unsent.clear()
        self.connection.close(keep)
