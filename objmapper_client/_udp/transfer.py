"""A sans-IO transfer over UDP: datagrams and the time go in, datagrams and the time of the next timeout come out.

The server sends each requested piece once. The client handles all faults of the network: it requests missing pieces
again, drops duplicate and late ones by their offset, and damaged ones by their checksum.

Congestion control is that of TCP (additive increase, multiplicative decrease: RFC 5681): the window of pieces grows by
one each round trip and is halved after a loss. Each PULL has its own request id, which its pieces carry, so that each
piece gives a valid round-trip time.
"""

import os

from objmapper_client._udp.path_state import MIN_WINDOW, PathState
from objmapper_client.errors import RemoteProtocolError, RequestTimeout, UnsupportedMode, error_for
from objmapper_client.protocol.udp import (
    MAX_PIECES,
    Data,
    Error,
    Pull,
    Retry,
    checksum_of_uri,
    decode_reply,
    encode_pull,
)
from objmapper_client.protocol.v1 import Status

#: Maximum bytes of an object. Larger ones need a transport with the kernel's congestion control.
MAX_OBJECT = 64 << 20
#: Consecutive timeouts that end a transfer.
MAX_TIMEOUTS = 5
#: A lost or duplicated PULL should not affect the whole window: each requests 1 / `_PULLS_PER_WINDOW` of it. The first
#: PULL, sent before the size is known, requests `_FIRST_PULL_BYTES`.
_PULLS_PER_WINDOW = 4
_FIRST_PULL_BYTES = 128 << 10
#: Responses to different PULLs, in a row, that must agree before the client accepts an error or a short piece. Fewer
#: may come from PULLs that the network damaged.
_MIN_CONFIRMATIONS = 3
#: Consecutive RETRY responses that the client follows at once; it ignores more, and timeouts end the transfer.
_MAX_RETRIES = 3


class ObjectChanged(Exception):
    """The object's version changed during the transfer."""


class Transfer:
    """Transfers a range of an object: send what `poll_outgoing` returns and `feed` what comes, until it `is_done`.

    The first piece gives the size; then `attach` a buffer for the content. `length` None means to the object's end.
    With `version` the range must be of that version.
    """

    def __init__(
        self, path: PathState, uri: str, offset: int = 0, length: int | None = None, version: int | None = None
    ) -> None:
        self.uri = uri
        self.offset = offset
        self.version = version
        #: Bytes of the whole object; None before the first piece.
        self.total: int | None = None
        self._path = path
        self._seed = checksum_of_uri(uri)
        self._wanted = length
        self._chunk = path.chunk
        self._first_id = int.from_bytes(os.urandom(4), "big")
        #: The time at which each PULL was sent. Its request id is `_first_id` plus its index here.
        self._sent: list[float] = []
        #: Requested pieces that have not come, with the time of the request; oldest first.
        self._in_flight: dict[int, float] = {}
        #: Pieces to request again, and the first piece that was never requested.
        self._lost: list[int] = []
        self._next = 0
        #: A flag for each piece that has come, and the number of missing pieces.
        self._received = bytearray()
        self._missing = 0
        #: The PULL whose response had the first piece, and whether responses to other PULLs had pieces too.
        self._first_request: int | None = None
        self.has_several_requests = False
        self._buffer: memoryview | None = None
        self._early_pieces: list[tuple[int, bytes | memoryview]] = []
        #: The time at which the newest PULL with a response was sent, and the time of the last halving of the window.
        self._newest_answered = -1.0
        self._halved_at = -1.0
        self._pieces_since_growth = 0
        #: The time of the last progress, the timeouts since, and whether a tail loss probe was sent since.
        self._last_progress: float | None = None
        self._timeouts = 0
        self._is_probed = False
        self._retries = 0
        self._busy_message = ""
        #: The PULLs that got an error since the last progress, all with the same status.
        self._refused_requests: set[int] = set()
        self._status = 0
        #: The PULLs with short pieces since the last progress, and the length of these.
        self._short_replies: dict[int, int] = {}
        self._has_resized_chunk = False

    @property
    def size(self) -> int:
        """Bytes of the range, once the object's size is known."""
        rest = max(0, (self.total or 0) - self.offset)
        return rest if self._wanted is None else min(rest, self._wanted)

    @property
    def arrived(self) -> int:
        """Bytes of the range that have come, rounded to whole pieces."""
        return (len(self._received) - self._missing) * self._chunk

    @property
    def is_done(self) -> bool:
        """Whether the buffer has every byte of the range."""
        return self._buffer is not None and self._missing == 0

    def attach(self, buffer: memoryview) -> None:
        """Sets the buffer for the content, which must have `size` bytes."""
        self._buffer = buffer
        for start, payload in self._early_pieces:
            buffer[start : start + len(payload)] = payload
        self._early_pieces.clear()

    # Sending.

    def poll_outgoing(self, now: float) -> list[bytes]:
        """Returns the datagrams to send now. Raises RequestTimeout or ServerBusy after MAX_TIMEOUTS timeouts."""
        if self._last_progress is None:
            self._last_progress = now
        self._detect_losses(now)
        self._detect_timeout(now)
        pieces = self._next_pieces()
        datagrams: list[bytes] = []
        while pieces:
            run = self._take_run(pieces)
            # One more copy of each PULL for each timeout: on a path with much loss one is not enough.
            datagrams += [self._encode_request(run[0], len(run), now) for _ in range(1 + self._timeouts)]
            self._in_flight.update(dict.fromkeys(run, now))
        return datagrams

    def resend_all(self) -> None:
        """Requests all pieces in flight again, after the socket moved to another address."""
        self._last_progress = None
        self._mark_all_lost()

    def next_timeout(self) -> float:
        """The time at which `poll_outgoing` must be called even if no datagram comes."""
        path, last_progress = self._path, self._last_progress or 0.0
        at = last_progress + path.idle_timeout * (1 << self._timeouts)
        if path.round_trip is not None and not self._is_probed:
            at = min(at, last_progress + path.rto)
        oldest = next(iter(self._in_flight.values()), None)
        if oldest is not None and oldest <= self._newest_answered:
            at = min(at, oldest + path.rto)
        return at

    def _detect_losses(self, now: float) -> None:
        """Marks overdue pieces as lost if pieces requested with them or later have come. Halves the window."""
        lost = False
        while self._in_flight:
            piece, requested = next(iter(self._in_flight.items()))
            if requested > self._newest_answered or now < requested + self._path.rto:
                break
            self._mark_lost(piece)
            # At most one halving a round trip.
            lost = lost or requested > self._halved_at
        if lost:
            self._halve(now)

    def _detect_timeout(self, now: float) -> None:
        assert self._last_progress is not None
        path = self._path
        if now >= self._last_progress + path.idle_timeout * (1 << self._timeouts):
            self._timeouts += 1
            if self._timeouts >= MAX_TIMEOUTS:
                if self._busy_message:
                    raise error_for(Status.UNAVAILABLE, self._busy_message, self.uri)
                raise RequestTimeout(f"{self.uri}: no answer over UDP, after {MAX_TIMEOUTS} tries")
            self._last_progress = now
            self._is_probed = False
            self._retries = 0
            self._mark_all_lost()
            self._halve(now)
        elif path.round_trip is not None and not self._is_probed and now >= self._last_progress + path.rto:
            # Tail loss probe (RFC 8985): request the oldest pieces again before the timeout.
            self._is_probed = True
            for piece in list(self._in_flight)[: max(0, len(self._in_flight) - path.window) + MIN_WINDOW]:
                self._mark_lost(piece)

    def _halve(self, now: float) -> None:
        self._path.window = max(MIN_WINDOW, self._path.window // 2)
        self._halved_at = now
        self._pieces_since_growth = 0

    def _mark_lost(self, piece: int) -> None:
        del self._in_flight[piece]
        self._lost.append(piece)

    def _mark_all_lost(self) -> None:
        self._lost.extend(self._in_flight)
        self._in_flight.clear()

    def _next_pieces(self) -> list[int]:
        """Returns the pieces to request now, in order, as far as the window allows."""
        window = self._path.window
        free = window - len(self._in_flight)
        if free <= 0 or (self._in_flight and not self._lost and (self.total is None or free < window // 2)):
            # Wait, to send few large PULLs instead of many small ones.
            return []
        self._lost.sort()
        pieces, self._lost = self._lost[:free], self._lost[free:]
        if self.total is None:
            end = self._next + max(1, _FIRST_PULL_BYTES // self._chunk)
            if self._wanted is not None:
                end = min(end, -(-self._wanted // self._chunk))
        else:
            end = len(self._received)
        while len(pieces) < free and self._next < end:
            # It may have come with the response to a PULL for other pieces.
            if self.total is None or not self._received[self._next]:
                pieces.append(self._next)
            self._next += 1
        if not pieces and not self._in_flight and self.total is None:
            # Empty range: the response carries the size.
            return [0]
        return pieces

    def _take_run(self, pieces: list[int]) -> list[int]:
        """Removes and returns consecutive pieces from the front, for one PULL."""
        limit = MAX_PIECES if self.total is None else min(MAX_PIECES, max(1, self._path.window // _PULLS_PER_WINDOW))
        count = 1
        while count < min(limit, len(pieces)) and pieces[count] == pieces[0] + count:
            count += 1
        run = pieces[:count]
        del pieces[:count]
        return run

    def _encode_request(self, piece: int, count: int, now: float) -> bytes:
        start = piece * self._chunk
        length = count * self._chunk
        wanted = self._wanted if self.total is None else self.size
        if wanted is not None:
            length = max(0, min(length, wanted - start))
        index = self._first_id + len(self._sent) & 0xFFFFFFFF
        self._sent.append(now)
        return encode_pull(Pull(index, self.offset + start, length, self._chunk, self._path.cookie, self.uri))

    # Receiving.

    def feed(self, datagram: bytes | memoryview, now: float) -> None:
        """Processes a datagram. Raises ObjectChanged, RemoteProtocolError, UnsupportedMode, or the server's error."""
        answer = decode_reply(datagram, self._seed)
        if answer is None:
            return
        index = answer.request_id - self._first_id & 0xFFFFFFFF
        if index >= len(self._sent):
            return  # a response to another client, or to an earlier transfer
        match answer:
            case Data():
                self._on_data(answer, index, now)
            case Retry(_, cookie):
                self._on_retry(cookie)
            case Error():
                self._on_error(answer)

    def _on_data(self, data: Data, index: int, now: float) -> None:
        sent, is_first = self._sent[index], self.total is None
        if self.version is None:
            self.version = data.version
        elif self.version != data.version:
            raise ObjectChanged
        if self.total is None:
            self._begin(data.total)
        elif self.total != data.total:
            raise self._violation("sent two sizes of one version of the object")
        self._newest_answered = max(self._newest_answered, sent)
        # Duplicate and useless pieces are not progress and reset no timer.
        if self._store(data.offset - self.offset, data.payload, index) or is_first:
            self._last_progress, self._timeouts, self._is_probed = now, 0, False
            self._retries, self._busy_message = 0, ""
            self._refused_requests.clear()
            self._path.add_rtt_sample(now - sent)

    def _begin(self, total: int) -> None:
        if total > MAX_OBJECT and self._wanted != 0:
            limit = MAX_OBJECT >> 20
            message = f"{total} bytes are more than the {limit} MiB that go over UDP; use tcp:// or a Unix socket"
            raise UnsupportedMode(Status.UNSUPPORTED_OP, message, self.uri)
        self.total = total
        self._lay_out_pieces()

    def _lay_out_pieces(self) -> None:
        """Divides the range into pieces, none of which has come."""
        count = -(-self.size // self._chunk)
        self._received, self._missing = bytearray(count), count
        self._in_flight = {piece: requested for piece, requested in self._in_flight.items() if piece < count}
        self._lost = [piece for piece in self._lost if piece < count]
        self._next = min(self._next, count)

    def _store(self, start: int, payload: bytes | memoryview, index: int) -> bool:
        """Stores a piece. Returns False if it is a duplicate or not a piece of the range."""
        piece, excess = divmod(start, self._chunk)
        if start < 0 or excess or piece >= len(self._received):
            return False
        if self._received[piece]:
            self._in_flight.pop(piece, None)
            return False
        expected = min(self._chunk, self.size - start)
        if len(payload) < expected:
            self._on_short_piece(piece, len(payload), expected, index)
            return False
        self._short_replies.clear()
        if self._first_request is None:
            self._first_request = index
        self.has_several_requests = self.has_several_requests or index != self._first_request
        payload = payload[:expected]
        self._received[piece] = 1
        self._missing -= 1
        if self._in_flight.pop(piece, None) is None and piece in self._lost:
            self._lost.remove(piece)
        if self._buffer is None:
            self._early_pieces.append((start, payload))
        else:
            self._buffer[start : start + len(payload)] = payload
        self._pieces_since_growth += 1
        if self._pieces_since_growth >= self._path.window:
            self._path.window = min(self._path.window + 1, self._path.max_window)
            self._pieces_since_growth = 0
        return True

    def _on_short_piece(self, piece: int, length: int, expected: int, index: int) -> None:
        """Handles a piece that is shorter than requested.

        A server that does not take the client for a local one sends smaller pieces than requested: adopt their size.
        Otherwise the network damaged the PULL: request the piece again.
        """
        is_known = length in self._short_replies.values() and index not in self._short_replies
        self._short_replies[index] = length
        none_received = self._missing == len(self._received)
        if is_known and length and none_received and not self._has_resized_chunk:
            self._has_resized_chunk = True
            self._chunk = self._path.chunk = length
            self._next = 0
            self._in_flight.clear()
            self._lost.clear()
            self._short_replies.clear()
            self._lay_out_pieces()
        elif len(self._short_replies) >= _MIN_CONFIRMATIONS:
            raise self._violation(f"sent {length} bytes of a piece that has {expected}")
        elif piece in self._in_flight:
            self._mark_lost(piece)

    def _on_retry(self, cookie: bytes) -> None:
        if cookie == self._path.cookie or self._retries >= _MAX_RETRIES:
            return
        self._retries += 1
        self._path.cookie = cookie
        self._mark_all_lost()

    def _on_error(self, error: Error) -> None:
        """Handles an ERROR. It has no checksum and may answer a damaged PULL, so several must agree."""
        if error.status == Status.UNAVAILABLE and self.total is not None:
            # The server is overloaded: the timers request again, with growing intervals.
            self._busy_message = error.message or "busy"
            return
        if error.status != self._status:
            self._refused_requests.clear()
            self._status = error.status
        if error.request_id in self._refused_requests:
            return
        self._refused_requests.add(error.request_id)
        if len(self._refused_requests) >= (2 if self.total is None else _MIN_CONFIRMATIONS):
            raise error_for(error.status, error.message, self.uri)
        self._mark_all_lost()

    def _violation(self, violation: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self.uri}: the server {violation}")
