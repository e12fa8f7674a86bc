"""Many requests on one connection: who has sent what, and whose answer it is that came. It never waits.

Descriptors are queued in the order of their arrival; each successful answer to a request for one takes the next.
"""

from collections import deque
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from objmapper_client._connection.connection import CHUNK, NO_ANCILLARY, NONBLOCKING, TRUNCATED, Ancillary, Connection
from objmapper_client._connection.pending_request import NO_DETAILS, PendingRequest, encode, encoded_tail
from objmapper_client._connection.socket_io import closed_error, io_error, only_descriptor, truncated_error
from objmapper_client._runtime.descriptors import close_descriptor
from objmapper_client.errors import ConnectionFailed, ObjmapperError, RemoteProtocolError
from objmapper_client.protocol.v2_requests import CloseFrame, Operation, encode_with_tail
from objmapper_client.protocol.v2_responses import ResponseHead, decode_common

_FDPASS = Operation.FDPASS
_LAST_ID = 0xFFFFFFFF


class PipelineFull(Exception):
    """The request cannot be sent on this connection; nothing was."""


class Multiplexer:
    """What is under way on a connection. How one waits, as a thread or as a task, is a subclass's concern.

    Where threads use it, they hold `lock`; methods that take it themselves say so.
    """

    def __init__(self, connection: Connection, lock: AbstractContextManager[Any], timeout: float) -> None:
        self.lock = lock
        self.connection = connection
        self.limit = connection.max_pipeline
        #: Those whose answer has not begun.
        self.under_way: dict[int, PendingRequest] = {}
        self._operations: dict[int, Operation] = {}
        self._asked = self._operations.get
        self._next = connection.responses.next
        #: Requests under way that a descriptor may come for.
        self._due = 0
        #: Whose content is being received, and what has come of it.
        self._receiving: PendingRequest | None = None
        self._pieces: list[bytes] = []
        #: Requests that are still to be sent, what is left of each, and which they are.
        self.outgoing: deque[bytes] = deque()
        self._unsent: deque[PendingRequest] = deque()
        #: Whether the server has said that it reads no further requests.
        self.is_refusing = False
        #: No further requests are sent; it is closed when no request waits for an answer.
        self.is_closing = False
        self.is_closed = False
        self._timeout = timeout
        self._tail = encoded_tail(timeout)
        #: The id that was the last one when something last came.
        self._heard = 0

    @property
    def has_room(self) -> bool:
        """Whether a further request may be sent."""
        return self.room > 0 and not self.is_closing

    @property
    def room(self) -> int:
        """How many further requests may be under way."""
        return self.limit - len(self.under_way)

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits for an answer."""
        return any(not pending.is_abandoned for pending in self.unanswered())

    def unanswered(self) -> list[PendingRequest]:
        """Those whose answer is not whole, the oldest first."""
        first = [] if self._receiving is None else [self._receiving]
        return [*first, *self.under_way.values()]

    def register(self, pending: PendingRequest, seconds: float) -> bytes:
        """Knows a request as under way. Returns its bytes, to be sent. Raises LocalProtocolError, NoRoom."""
        operations, connection = self._operations, self.connection
        if self.is_closing or len(operations) >= self.limit:
            raise PipelineFull
        number = connection.last_id + 1
        if number in operations or number > _LAST_ID:
            number = self._free_id(number)
        operation = pending.operation
        if pending.details is NO_DETAILS and seconds == self._timeout:
            frame = encode_with_tail(number, operation, pending.uri, self._tail)
        else:
            frame = encode(number, operation, pending.uri, pending.details, seconds)
            if pending.payload is not None:
                frame += pending.payload
        connection.last_id = pending.number = number
        pending.multiplexer = self
        self.under_way[number] = pending
        operations[number] = operation
        if operation is _FDPASS:
            self._due += 1
        return frame

    def _free_id(self, number: int) -> int:
        while number in self._operations or number > _LAST_ID:
            number = number + 1 if number < _LAST_ID else 1
        return number

    def queue(self, pending: PendingRequest, seconds: float) -> None:
        """Enters a request, and has it sent by the next `flush`. Raises LocalProtocolError, NoRoom."""
        self.leave_to_flush(pending, self.register(pending, seconds))

    def leave_to_flush(self, pending: PendingRequest, rest: bytes) -> None:
        """Has the next `flush` send what is left of a request."""
        pending.is_unsent = True
        self._unsent.append(pending)
        self.outgoing.append(rest)

    def look(self) -> None:
        """Takes in what has come by now: a server that has closed, or said so, gets no further request.

        For requests that are not repeated, while no other thread reads.
        """
        connection = self.connection
        try:
            if connection.is_unix:
                connection.take_now()
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
        """Lets those go on that waited for these requests."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Sends what is queued, as far as the socket takes it now. Whether all went. Raises ConnectionFailed."""
        outgoing = self.outgoing
        while outgoing:
            data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
            try:
                sent = self.connection.socket.send(data, NONBLOCKING)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                # What the server said before it closed is still to be read, and then the end.
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
        """Does as `arrived` for an answer that is nothing out of the ordinary, to the only request under way.

        Whether that is what came; else nothing was touched.
        """
        if flags & TRUNCATED or self.is_closing or len(self.under_way) > 1 or self._receiving is not None:
            return False
        found = decode_common(data, pending.number)
        if found is None or not self.connection.responses.is_empty:
            return False
        content_len, metadata, head_size = found
        if pending.operation is _FDPASS:
            if len(data) != head_size or (descriptor := only_descriptor(ancillary)) is None:
                return False
            pending._descriptor = descriptor
            self.connection.inbox.clear()
            self._due = 0
        else:
            if ancillary or content_len > pending.most or len(data) != head_size + content_len:
                return False
            pending.content = data[head_size:]
            self.connection.inbox.clear()
        self.under_way.clear()
        self._operations.clear()
        pending.metadata = metadata
        pending.is_done = True
        return True

    def feed(self, data: bytes, ancillary: Ancillary, flags: int) -> list[PendingRequest]:
        """Takes in what one call brought. Returns the requests that are done; those that were abandoned are left out.

        What breaks the protocol closes the connection: it fails the requests that were answered in this very message,
        or the oldest one; all others fail as on a connection that broke.
        """
        connection = self.connection
        descriptors = connection.descriptors
        finished: list[PendingRequest] = []
        is_lost = False
        self._heard = connection.last_id
        try:
            if ancillary or flags & TRUNCATED:
                _, is_lost = connection.take_back()
            else:
                connection.inbox.clear()
            if not data:
                return self.fail(None)
            connection.responses.feed(data)
            while self._receiving is None or self._take_content(finished):
                head = self._next(self._asked)
                if type(head) is not ResponseHead:
                    if head is None:
                        break
                    self._take_close(head)
                    continue
                number, status, content_len, metadata = head
                pending = self.under_way[number]
                pending.status = status
                pending.metadata = metadata
                if pending.operation is _FDPASS:
                    self._due -= 1
                    if status == 0:
                        if descriptors:
                            # Both have it for a moment: see `fail`.
                            pending._descriptor = descriptors[0]
                            descriptors.popleft()
                        elif is_lost:
                            pending.failure = truncated_error()
                        else:
                            self._descriptor_mismatch(finished, pending)
                elif content_len:
                    self._expect(pending, content_len)
                    self._retire_id(number)
                    continue
                finished.append(pending)
                pending.is_done = True
                self._retire_id(number)
                if connection.responses.is_empty:
                    break
            if descriptors and len(descriptors) > self._due:
                self._descriptor_mismatch(finished)
        except RemoteProtocolError as error:
            return self._fail_with(error, finished)
        if is_lost and self._due:
            # Which of the answers to come has lost its descriptor is not known.
            finished += self._fail_with(
                truncated_error(), [pending for pending in self.under_way.values() if pending.operation is _FDPASS]
            )
        for pending in finished:
            if pending.is_abandoned:
                finished = self._drop_abandoned(finished)
                break
        if self.is_closing and not self.is_wanted:
            self.close()
        return finished

    def _retire_id(self, number: int) -> None:
        del self._operations[number]
        del self.under_way[number]

    def _take_close(self, frame: object) -> None:
        if not isinstance(frame, CloseFrame):
            raise RemoteProtocolError(f"{self.connection.address}: the server confirmed a close that was not")
        self.is_closing = self.is_refusing = True

    def _expect(self, pending: PendingRequest, content_len: int) -> None:
        """What follows is this request's content."""
        pending.content_len = content_len
        self._receiving = pending
        if content_len > pending.most:
            raise RemoteProtocolError(
                f"{self.connection.address}: the server sends {content_len} bytes, more than it was asked for"
            )

    def _descriptor_mismatch(self, finished: list[PendingRequest], wanting: PendingRequest | None = None) -> NoReturn:
        """Raises the error for too many descriptors, or for one too few."""
        if wanting is not None:
            finished.append(wanting)
        requested = [pending for pending in finished if pending.operation is _FDPASS]
        came = len(self.connection.descriptors) + sum(1 for pending in requested if pending.descriptor >= 0)
        due = sum(1 for pending in requested if pending.status == 0)
        raise RemoteProtocolError(
            f"{self.connection.address}: the server passed {came} descriptors where "
            f"{'one was' if due == 1 else f'{due} were'} due"
        )

    def _take_content(self, finished: list[PendingRequest]) -> bool:
        """Whether the content that is being received is whole."""
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

    def _fail_with(self, error: ObjmapperError, culprits: list[PendingRequest]) -> list[PendingRequest]:
        """Fails these requests, or the oldest, with the error, and all others with the connection."""
        for pending in culprits or self.unanswered()[:1]:
            pending.is_begun = True
            pending.is_done = False
            pending.failure = type(error)(*error.args)
            self.under_way[pending.number] = pending
        return self.fail(ConnectionFailed(f"{self.connection.address}: the connection was given up ({error})"))

    def fail(self, error: ConnectionFailed | None) -> list[PendingRequest]:
        """Closes the connection; without an error, because the server did. Returns the requests that failed with it."""
        # An exception out of a signal handler may have come in the midst of an answer: those that have theirs keep it.
        failed = [pending for pending in self.unanswered() if not pending.is_done]
        if len(failed) == 1 and failed[0].number > 1:
            failed[0].found_idle = True
        if failed and (self._receiving is not None or not self.connection.responses.is_empty):
            # The first bytes of an answer do not say whose it is; the oldest request is the likeliest.
            failed[0].is_begun = True
        taken = frozenset(pending.descriptor for pending in self.unanswered())
        self.close(taken)
        for pending in failed:
            if pending.failure is None:
                # Each has an error of its own, for the sake of its traceback.
                midway = closed_error(self.connection.address, midway=pending.is_begun)
                pending.failure = midway if error is None else type(error)(*error.args)
            close_descriptor(pending)
            pending.is_done = True
        return [pending for pending in failed if not pending.is_abandoned]

    def close_when_idle(self) -> None:
        """Sends no further requests, and closes the connection once no request waits for an answer. Takes the lock."""
        with self.lock:
            self.is_closing = True
            if not self.is_wanted:
                self.close()

    def close_if_stuck(self) -> bool:
        """Closes the connection if it hangs and is full of abandoned requests: whether it was. Takes the lock.

        A connection that answers has room soon.
        """
        with self.lock:
            is_useless = not self.has_room and not self.is_wanted and self.is_stuck()
            if is_useless:
                self.close()
            return is_useless

    def is_stuck(self) -> bool:
        """Whether nothing has come since the oldest request was sent."""
        oldest = self.unanswered()
        return bool(oldest) and oldest[0].number > self._heard

    def abandon(self, pending: PendingRequest) -> None:
        """A request's caller wants no answer any more. Takes the lock."""
        with self.lock:
            pending.discard_locked()

    def suspect_hang(self, pending: PendingRequest) -> None:
        """Sends no further requests where the server hangs: this one's time is up, and no later one was answered."""
        with self.lock:
            later = self.connection.last_id - pending.number
            if later == sum(1 for number in self._operations if number > pending.number):
                self.is_closing = True
                if not self.is_wanted:
                    self.close()

    def detach_if_idle(self) -> Connection | None:
        """Gives the connection away, unless a request waits for an answer. Takes the lock.

        Where an abandoned request's answer is still to come, what is given is closed.
        """
        with self.lock:
            if self.is_wanted:
                return None
            if self.is_closing or self.unanswered():
                self.close()
            self.is_closing = True
            return self.connection

    def close(self, taken: frozenset[int] = frozenset()) -> None:
        """Closes the connection, whatever is under way, but for descriptors that were `taken` from its last message."""
        self.is_closed = True
        self.under_way.clear()
        self._operations.clear()
        self._receiving = None
        self._due = 0
        self.is_closing = True
        self.outgoing.clear()
        self._unsent.clear()
        self.connection.close(taken)
