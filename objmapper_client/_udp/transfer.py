"""A transfer by pulling, sans-IO: datagrams and the time go in, datagrams and the time of the next look come out.

The server sends what it is asked for, once. So everything that a network does to datagrams is met here: pieces that are
missing are asked for again, what comes twice or late is dropped by its offset, what is damaged by its checksum.

Congestion is met as in TCP (additive increase, multiplicative decrease: RFC 5681): a window of pieces is under way, one
more after each round trip, half as many after a loss. As each PULL has a number of its own, which its pieces carry, it
is always known which question a piece answers.
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

#: Larger objects are for a transport that the kernel looks after.
MAX_OBJECT = 64 << 20
#: Silences in a row that end a transfer.
MAX_TIMEOUTS = 5
#: A PULL that is lost, or comes twice, should not cost all that is under way: it asks for this part of the window, and
#: the first, which does not know what there is, for so many bytes.
_PART = 4
_FIRST = 128 << 10
#: Answers to different questions, in a row, that bring too little, or refuse an object that was there a moment ago: so
#: many are believed. Fewer may come of questions that were damaged on their way.
_BELIEVED = 3
#: RETRY in a row that are followed at once; a server that never has enough of them is met with silences.
_MAX_RETRIES = 3


class ObjectChanged(Exception):
    """The object is another than the one that the transfer began with."""


class Transfer:
    """One range of one object: `due` says what is to be sent, `received` takes what came, until it `is_done`.

    The size is known with the first piece; then `attach` the memory for the content. `length` of None is the rest of
    the object; `version` is given where the range must be of that state.
    """

    def __init__(
        self, path: PathState, uri: str, offset: int = 0, length: int | None = None, version: int | None = None
    ) -> None:
        self.uri = uri
        self.offset = offset
        self.version = version
        #: Bytes of the whole object; None until the first piece.
        self.total: int | None = None
        self._path = path
        self._seed = checksum_of_uri(uri)
        self._wanted = length
        self._chunk = path.chunk
        self._first_id = int.from_bytes(os.urandom(4), "big")
        #: When each PULL was sent; its number is `_first_id` and its place here.
        self._sent: list[float] = []
        #: Pieces under way and when they were asked for, the longest ago first.
        self._asked: dict[int, float] = {}
        #: Pieces to be asked for again, and the first that was never asked for.
        self._again: list[int] = []
        self._next = 0
        #: Which pieces have come, and how many have not.
        self._have = bytearray()
        self._left = 0
        #: The PULL that brought the first piece, and whether others brought some, too.
        self._bringer: int | None = None
        self.is_from_several = False
        self._room: memoryview | None = None
        self._early: list[tuple[int, bytes | memoryview]] = []
        #: When the newest PULL was sent of those that were answered, and when the window was last halved.
        self._newest_answered = -1.0
        self._halved_at = -1.0
        self._grown = 0
        #: Since when nothing came, how often that became a silence, whether it was probed before.
        self._quiet_since: float | None = None
        self._timeouts = 0
        self._is_probed = False
        self._retries = 0
        self._busy = ""
        #: The PULLs that were refused since something good came, all with the same status.
        self._refused: set[int] = set()
        self._status = 0
        #: The PULLs whose answers brought too little since something good came, and how much they brought.
        self._short: dict[int, int] = {}
        self._is_divided_again = False

    @property
    def size(self) -> int:
        """Bytes of the range, once the object's size is known."""
        rest = max(0, (self.total or 0) - self.offset)
        return rest if self._wanted is None else min(rest, self._wanted)

    @property
    def arrived(self) -> int:
        """Bytes of the range that have come, to a piece."""
        return (len(self._have) - self._left) * self._chunk

    @property
    def is_done(self) -> bool:
        """Whether every byte is in its place."""
        return self._room is not None and self._left == 0

    def attach(self, room: memoryview) -> None:
        """Gives the memory for the content, `size` bytes."""
        self._room = room
        for start, payload in self._early:
            room[start : start + len(payload)] = payload
        self._early.clear()

    # What is to be sent.

    def poll_outgoing(self, now: float) -> list[bytes]:
        """The datagrams that are to be sent now. Raises RequestTimeout or ServerBusy after the last silence."""
        if self._quiet_since is None:
            self._quiet_since = now
        self._detect_losses(now)
        self._detect_timeout(now)
        pieces = self._next_run()
        datagrams: list[bytes] = []
        while pieces:
            run = self._run_of(pieces)
            # One more of each for every silence there was: on a path that loses much, one is not enough.
            datagrams += [self._pull(run[0], len(run), now) for _ in range(1 + self._timeouts)]
            self._asked.update(dict.fromkeys(run, now))
        return datagrams

    def ask_again(self) -> None:
        """Forgets what is under way: it went nowhere."""
        self._quiet_since = None
        self._mark_all_lost()

    def next_timeout(self) -> float:
        """The time at which `due` has something to do even if nothing comes."""
        path, quiet_since = self._path, self._quiet_since or 0.0
        at = quiet_since + path.idle_timeout * (1 << self._timeouts)
        if path.round_trip is not None and not self._is_probed:
            at = min(at, quiet_since + path.rto)
        oldest = next(iter(self._asked.values()), None)
        if oldest is not None and oldest <= self._newest_answered:
            at = min(at, oldest + path.rto)
        return at

    def _detect_losses(self, now: float) -> None:
        """Pieces that are overdue although what was asked for with them, or later, has come."""
        lost = False
        while self._asked:
            piece, requested = next(iter(self._asked.items()))
            if requested > self._newest_answered or now < requested + self._path.rto:
                break
            self._mark_lost(piece)
            # One loss a round trip: what was lost together is one.
            lost = lost or requested > self._halved_at
        if lost:
            self._halve(now)

    def _detect_timeout(self, now: float) -> None:
        assert self._quiet_since is not None
        path = self._path
        if now >= self._quiet_since + path.idle_timeout * (1 << self._timeouts):
            self._timeouts += 1
            if self._timeouts >= MAX_TIMEOUTS:
                if self._busy:
                    raise error_for(Status.UNAVAILABLE, self._busy, self.uri)
                raise RequestTimeout(f"{self.uri}: no answer over UDP, after {MAX_TIMEOUTS} tries")
            self._quiet_since = now
            self._is_probed = False
            self._retries = 0
            self._mark_all_lost()
            self._halve(now)
        elif path.round_trip is not None and not self._is_probed and now >= self._quiet_since + path.rto:
            # A quicker try, which is no silence yet ("tail loss probe": RFC 8985).
            self._is_probed = True
            for piece in list(self._asked)[: max(0, len(self._asked) - path.window) + MIN_WINDOW]:
                self._mark_lost(piece)

    def _halve(self, now: float) -> None:
        self._path.window = max(MIN_WINDOW, self._path.window // 2)
        self._halved_at = now
        self._grown = 0

    def _mark_lost(self, piece: int) -> None:
        del self._asked[piece]
        self._again.append(piece)

    def _mark_all_lost(self) -> None:
        self._again.extend(self._asked)
        self._asked.clear()

    def _next_run(self) -> list[int]:
        """The pieces to ask for, in order, as many as may be under way."""
        window = self._path.window
        free = window - len(self._asked)
        if free <= 0 or (self._asked and not self._again and (self.total is None or free < window // 2)):
            # Few large questions are better than many small ones.
            return []
        self._again.sort()
        pieces, self._again = self._again[:free], self._again[free:]
        if self.total is None:
            end = self._next + max(1, _FIRST // self._chunk)
            if self._wanted is not None:
                end = min(end, -(-self._wanted // self._chunk))
        else:
            end = len(self._have)
        while len(pieces) < free and self._next < end:
            # It may have come without being asked for, in answer to a question of other pieces.
            if self.total is None or not self._have[self._next]:
                pieces.append(self._next)
            self._next += 1
        if not pieces and not self._asked and self.total is None:
            # Nothing of nothing, which tells the size.
            return [0]
        return pieces

    def _run_of(self, pieces: list[int]) -> list[int]:
        """Takes pieces off the front that follow each other, for one PULL."""
        most = MAX_PIECES if self.total is None else min(MAX_PIECES, max(1, self._path.window // _PART))
        count = 1
        while count < min(most, len(pieces)) and pieces[count] == pieces[0] + count:
            count += 1
        run = pieces[:count]
        del pieces[:count]
        return run

    def _pull(self, piece: int, count: int, now: float) -> bytes:
        start = piece * self._chunk
        length = count * self._chunk
        wanted = self._wanted if self.total is None else self.size
        if wanted is not None:
            length = max(0, min(length, wanted - start))
        number = self._first_id + len(self._sent) & 0xFFFFFFFF
        self._sent.append(now)
        return encode_pull(Pull(number, self.offset + start, length, self._chunk, self._path.cookie, self.uri))

    # What came.

    def feed(self, datagram: bytes | memoryview, now: float) -> None:
        """Takes a datagram. Raises Changed, RemoteProtocolError, UnsupportedMode, or what the server answered."""
        answer = decode_reply(datagram, self._seed)
        if answer is None:
            return
        number = answer.request_id - self._first_id & 0xFFFFFFFF
        if number >= len(self._sent):
            return  # an answer to another client, or to an earlier transfer
        match answer:
            case Data():
                self._take(answer, number, now)
            case Retry(_, cookie):
                self._on_retry(cookie)
            case Error():
                self._on_error(answer)

    def _take(self, data: Data, number: int, now: float) -> None:
        sent, is_first = self._sent[number], self.total is None
        if self.version is None:
            self.version = data.version
        elif self.version != data.version:
            raise ObjectChanged
        if self.total is None:
            self._begin(data.total)
        elif self.total != data.total:
            raise self._violation("gave one state of the object two sizes")
        self._newest_answered = max(self._newest_answered, sent)
        # What comes twice, or is of no use, is no progress: only that ends a silence.
        if self._put(data.offset - self.offset, data.payload, number) or is_first:
            self._quiet_since, self._timeouts, self._is_probed = now, 0, False
            self._retries, self._busy = 0, ""
            self._refused.clear()
            self._path.add_rtt_sample(now - sent)

    def _begin(self, total: int) -> None:
        if total > MAX_OBJECT and self._wanted != 0:
            most = MAX_OBJECT >> 20
            words = f"{total} bytes are more than the {most} MiB that go over UDP; use tcp:// or a Unix socket"
            raise UnsupportedMode(Status.UNSUPPORTED_OP, words, self.uri)
        self.total = total
        self._divide()

    def _divide(self) -> None:
        """Lays out the pieces, of which none has come."""
        count = -(-self.size // self._chunk)
        self._have, self._left = bytearray(count), count
        self._asked = {piece: requested for piece, requested in self._asked.items() if piece < count}
        self._again = [piece for piece in self._again if piece < count]
        self._next = min(self._next, count)

    def _put(self, start: int, payload: bytes | memoryview, number: int) -> bool:
        """Puts a piece in its place; False where it had come before, or is none of ours."""
        piece, past = divmod(start, self._chunk)
        if start < 0 or past or piece >= len(self._have):
            return False
        if self._have[piece]:
            self._asked.pop(piece, None)
            return False
        due = min(self._chunk, self.size - start)
        if len(payload) < due:
            self._on_short_piece(piece, len(payload), due, number)
            return False
        self._short.clear()
        if self._bringer is None:
            self._bringer = number
        self.is_from_several = self.is_from_several or number != self._bringer
        payload = payload[:due]
        self._have[piece] = 1
        self._left -= 1
        if self._asked.pop(piece, None) is None and piece in self._again:
            self._again.remove(piece)
        if self._room is None:
            self._early.append((start, payload))
        else:
            self._room[start : start + len(payload)] = payload
        self._grown += 1
        if self._grown >= self._path.window:
            self._path.window = min(self._path.window + 1, self._path.most)
            self._grown = 0
        return True

    def _on_short_piece(self, piece: int, length: int, due: int, number: int) -> None:
        """Meets a piece that is shorter than it should be.

        A server that believes us farther away than we do makes smaller pieces than we asked for: then we ask for those.
        Where that is not it, the question was damaged on its way, and is asked again.
        """
        is_known = length in self._short.values() and number not in self._short
        self._short[number] = length
        nothing_came = self._left == len(self._have)
        if is_known and length and nothing_came and not self._is_divided_again:
            self._is_divided_again = True
            self._chunk = self._path.chunk = length
            self._next = 0
            self._asked.clear()
            self._again.clear()
            self._short.clear()
            self._divide()
        elif len(self._short) >= _BELIEVED:
            raise self._violation(f"sent {length} bytes of a piece that has {due}")
        elif piece in self._asked:
            self._mark_lost(piece)

    def _on_retry(self, cookie: bytes) -> None:
        if cookie == self._path.cookie or self._retries >= _MAX_RETRIES:
            return
        self._retries += 1
        self._path.cookie = cookie
        self._mark_all_lost()

    def _on_error(self, error: Error) -> None:
        """An ERROR has no checksum, and may answer a damaged question: it is believed when others say the same."""
        if error.status == Status.UNAVAILABLE and self.total is not None:
            # Too much for it at this moment: the timers ask again, ever more slowly.
            self._busy = error.message or "busy"
            return
        if error.status != self._status:
            self._refused.clear()
            self._status = error.status
        if error.request_id in self._refused:
            return
        self._refused.add(error.request_id)
        if len(self._refused) >= (2 if self.total is None else _BELIEVED):
            raise error_for(error.status, error.message, self.uri)
        self._mark_all_lost()

    def _violation(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self.uri}: the server {what}")
