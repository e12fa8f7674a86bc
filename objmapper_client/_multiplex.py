"""Many requests on one connection, without I/O of its own accord: who has sent what, and whose answer it is that came.

Descriptors are queued in the order of their arrival; each successful answer to a request for one takes the next.
"""

import os
from collections import deque
from contextlib import AbstractContextManager
from typing import Any

from objmapper_client._ask import Ask, encode
from objmapper_client._transport import AT_ONCE, Ancillary, Connection, broken, ended, send_with
from objmapper_client.errors import ConnectionFailed, DescriptorLimit, ObjmapperError, RemoteProtocolError
from objmapper_client.protocol_v2 import CloseFrame, Operation
from objmapper_client.protocol_v2_responses import ResponseHead


class NoRoom(Exception):
    """The request cannot be sent on this connection; nothing was."""


class Multiplex:
    """What is under way on a connection. Whoever waits (a thread, an event loop) is a subclass's concern.

    None of its methods waits; where threads use it, they hold its lock.
    """

    def __init__(self, connection: Connection, lock: AbstractContextManager[Any]) -> None:
        self.lock = lock
        self.connection = connection
        self.limit = connection.max_pipeline
        self.under_way: dict[int, Ask] = {}
        self._operations: dict[int, Operation] = {}
        #: Requests under way that a descriptor may come for.
        self._due = 0
        #: Whose content is being received, and what has come of it.
        self._receiving: Ask | None = None
        self._pieces: list[bytes] = []
        #: What could not be sent yet, each with the descriptor that goes along, which is its own.
        self.outgoing: deque[tuple[bytes | memoryview, int]] = deque()
        #: Whether the server has answered anything.
        self.is_used = False
        #: Whether the server has said that it reads no further requests.
        self.is_refusing = False
        #: No further requests are sent; it is closed when the last one is answered.
        self.is_closing = False
        self.is_closed = False

    @property
    def has_room(self) -> bool:
        """Whether a further request may be sent."""
        return len(self.under_way) < self.limit and not self.is_closing

    def add(self, ask: Ask, seconds: float) -> bytes | memoryview:
        """Enters a request. Returns its bytes, to be sent. Raises LocalProtocolError, NoRoom."""
        operations = self._operations
        if self.is_closing or len(operations) >= self.limit:
            raise NoRoom
        number = self.connection.last_id + 1 & 0xFFFFFFFF
        while number in operations:
            number = number + 1 & 0xFFFFFFFF
        self.connection.last_id = number
        ask.begin(number, found_idle=self.is_used and not operations)
        operation = ask.operation
        frame = encode(number, operation, ask.uri, ask.details, seconds)
        operations[number] = operation
        self.under_way[number] = ask
        if operation is Operation.FDPASS:
            self._due += 1
        return frame if ask.payload is None else frame + ask.payload

    def queue(self, ask: Ask, frame: bytes | memoryview) -> None:
        """Has it sent by the next `flush`."""
        self.outgoing.append((frame, -1 if ask.passed is None else os.dup(ask.passed)))
        ask.is_sent = True

    def flush(self) -> bool:
        """Sends what is queued, as far as the socket takes it now. Whether all went. Raises ConnectionFailed."""
        outgoing = self.outgoing
        while outgoing:
            data, passed = outgoing.popleft()
            if passed < 0 and outgoing and outgoing[0][1] < 0:
                pieces = [data]
                while outgoing and outgoing[0][1] < 0:
                    pieces.append(outgoing.popleft()[0])
                data = b"".join(pieces)
            try:
                if passed < 0:
                    sent = self.connection.socket.send(data, AT_ONCE)
                else:
                    sent = send_with(self.connection.socket, data, passed, AT_ONCE)
                    os.close(passed)
            except BlockingIOError:
                outgoing.appendleft((data, passed))
                return False
            except (BrokenPipeError, ConnectionResetError):
                # What the server said before it closed is still to be read, and then the end.
                outgoing.appendleft((data, passed))
                self._send_no_more()
                return True
            except OSError as error:
                outgoing.appendleft((data, passed))
                raise broken(self.connection.address, error) from error
            if sent < len(data):
                outgoing.appendleft((memoryview(data)[sent:], -1))
        return True

    def arrived(self, data: bytes, ancillary: Ancillary, flags: int) -> list[Ask]:
        """Takes in what one call brought. Returns the requests that are done; those that were abandoned are left out.

        What breaks the protocol closes the connection: it fails the requests that were answered in this very message,
        or the oldest one; all others fail as on a connection that broke.
        """
        finished: list[Ask] = []
        connection = self.connection
        try:
            if ancillary or flags:
                connection.keep(ancillary, flags)
            if not data:
                return self.fail(None)
            connection.responses.feed(data)
            self._decode(finished)
            if len(connection.descriptors) > self._due:
                due = sum(1 for ask in finished if ask.operation is Operation.FDPASS and not ask.status)
                came = len(connection.descriptors) + due
                raise RemoteProtocolError(
                    f"{connection.address}: the server passed {came} descriptors where "
                    f"{'one was' if due == 1 else f'{due} were'} due"
                )
        except RemoteProtocolError as error:
            return self._blame(error, finished)
        except DescriptorLimit as error:
            wanting = [ask for ask in self.under_way.values() if ask.operation is Operation.FDPASS]
            return self._blame(error, wanting)
        self.is_used = True
        for ask in finished:
            if ask.is_abandoned:
                finished = self._drop_abandoned(finished)
                break
        if self.is_closing and not self.is_wanted:
            self.close()
        return finished

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for an answer."""
        return any(not ask.is_abandoned for ask in (self._receiving, *self.under_way.values()) if ask is not None)

    def _drop_abandoned(self, finished: list[Ask]) -> list[Ask]:
        for ask in finished:
            if ask.is_abandoned:
                ask.drop()
        return [ask for ask in finished if not ask.is_abandoned]

    def _decode(self, finished: list[Ask]) -> None:
        decoder, asked, under_way = self.connection.responses, self._operations.get, self.under_way
        while True:
            if self._receiving is not None and not self._take_content(finished):
                return
            head = decoder.next(asked)
            if head is None:
                return
            if not isinstance(head, ResponseHead):
                if not isinstance(head, CloseFrame):
                    raise RemoteProtocolError(f"{self.connection.address}: the server confirmed a close that was not")
                self.is_closing = self.is_refusing = True
                continue
            ask = under_way[head.id]
            _, ask.status, ask.content_len, ask.metadata = head
            ask.is_begun = True
            finished.append(ask)
            if ask.operation is Operation.FDPASS:
                self._due -= 1
                if ask.status == 0:
                    if not self.connection.descriptors:
                        raise RemoteProtocolError(
                            f"{self.connection.address}: the server passed 0 descriptors where one was due"
                        )
                    ask.descriptor = self.connection.descriptors.popleft()
            elif ask.content_len:
                if ask.content_len > ask.most:
                    raise RemoteProtocolError(
                        f"{self.connection.address}: the server sent {ask.content_len} bytes, more than it was asked for"
                    )
                finished.pop()
                self._receiving = ask
                continue
            self._done(ask)

    def _take_content(self, finished: list[Ask]) -> bool:
        """Whether the content that is being received is whole."""
        ask = self._receiving
        assert ask is not None
        piece = self.connection.responses.take_content(ask.content_len - sum(map(len, self._pieces)))
        if len(piece) == ask.content_len:
            ask.content = piece
        else:
            self._pieces.append(piece)
            if sum(map(len, self._pieces)) < ask.content_len:
                return False
            ask.content = b"".join(self._pieces)
            self._pieces.clear()
        self._receiving = None
        finished.append(ask)
        self._done(ask)
        return True

    def _done(self, ask: Ask) -> None:
        del self.under_way[ask.number], self._operations[ask.number]
        ask.is_done = True

    def _blame(self, error: ObjmapperError, culprits: list[Ask]) -> list[Ask]:
        """Fails these requests, or the oldest, with the error, and all others with the connection."""
        if not culprits:
            culprits = [ask for ask in (self._receiving, *self.under_way.values()) if ask is not None][:1]
        for ask in culprits:
            ask.is_begun = True
            ask.failure = type(error)(*error.args)
            self.under_way[ask.number] = ask
        return self.fail(ConnectionFailed(f"{self.connection.address}: the connection was given up ({error})"))

    def fail(self, error: ConnectionFailed | None) -> list[Ask]:
        """Closes the connection; without an error, because the server did. Returns the requests that failed with it."""
        if self._receiving is not None:
            self._receiving.is_begun = True
        elif not self.connection.responses.is_empty and self.under_way:
            # The first bytes of an answer do not say whose it is; the oldest request is the likeliest.
            next(iter(self.under_way.values())).is_begun = True
        failed = list(self.under_way.values())
        self.close()
        for ask in failed:
            ask.is_done = True
            if ask.failure is None:
                ask.failure = ended(self.connection.address, midway=ask.is_begun) if error is None else _again(error)
            descriptor, ask.descriptor = ask.descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
        return [ask for ask in failed if not ask.is_abandoned]

    def retire(self) -> None:
        """Sends no further requests, and closes the connection once nobody waits for an answer."""
        with self.lock:
            self.is_closing = True
            if not self.is_wanted:
                self.close()

    def close(self) -> None:
        """Closes the connection, whatever is under way."""
        self.is_closing = self.is_closed = True
        self.under_way.clear()
        self._operations.clear()
        self._receiving = None
        self._due = 0
        self._send_no_more()
        self.connection.close()

    def _send_no_more(self) -> None:
        self.is_closing = True
        while self.outgoing:
            _, passed = self.outgoing.popleft()
            if passed >= 0:
                os.close(passed)


def _again(error: ConnectionFailed) -> ConnectionFailed:
    """The same error, for one more: each has a traceback of its own."""
    return type(error)(*error.args)
