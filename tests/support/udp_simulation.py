"""A transfer without sockets or waiting: the client's machine, a small server, weather, and a clock turned by hand.

What takes a network minutes takes this seconds, and goes the same way every time.
"""

import heapq
import itertools
from dataclasses import dataclass, field

from objmapper_client._udp.path_state import PathState
from objmapper_client._udp.transfer import Transfer
from objmapper_client.protocol.udp import (
    MAX_PIECES,
    MAX_REMOTE_CHUNK,
    Data,
    Error,
    Pull,
    Retry,
    decode_request,
    encode_data,
    encode_error,
    encode_retry,
)
from tests.support.network_faults import NetworkFaults

COOKIE = b"sixteen bytes..."


@dataclass
class Server:
    """Answers as the engine does. Tests change what it has, and how it behaves."""

    objects: dict[str, bytes]
    versions: dict[str, int] = field(default_factory=dict)
    most_chunk: int = 65471
    wants_cookie: bool = False
    pulls: int = 0
    #: Bytes of all answers.
    sent: int = 0

    def answers(self, datagram: bytes) -> list[bytes]:
        """The datagrams that a datagram is answered with."""
        question = decode_request(datagram)
        if not isinstance(question, Pull):
            return []
        self.pulls += 1
        answers = list(self._answers(question))
        self.sent += sum(map(len, answers))
        return answers

    def _answers(self, pull: Pull) -> "list[bytes]":
        if self.wants_cookie and pull.cookie != COOKIE:
            return [encode_retry(Retry(pull.request_id, COOKIE))]
        content = self.objects.get(pull.uri)
        if content is None:
            return [encode_error(Error(pull.request_id, 0x01, "no such object"))]
        version, total = self.versions.get(pull.uri, 1), len(content)
        chunk = min(pull.chunk, self.most_chunk)
        length = max(0, min(pull.length, chunk * MAX_PIECES, total - pull.offset))
        return [
            encode_data(
                Data(
                    pull.request_id,
                    version,
                    total,
                    pull.offset + at,
                    content[pull.offset + at : pull.offset + min(at + chunk, length)],
                ),
                pull.uri,
            )
            for at in range(0, max(1, length), chunk)
        ]


@dataclass
class Outcome:
    """What came of a transfer: the bytes, and how long it took by its own clock."""

    content: bytes
    seconds: float
    datagrams: int


def new_path(chunk: int = MAX_REMOTE_CHUNK, first_timeout: float = 0.333, most: int = 128) -> PathState:
    return PathState(chunk, first_timeout, most)


def transfer(
    server: Server,
    uri: str,
    weather: NetworkFaults,
    seed: int,
    *,
    path: PathState | None = None,
    offset: int = 0,
    length: int | None = None,
) -> Outcome:
    """Runs a transfer to its end. Raises what the machine raises."""
    machine = Transfer(path or new_path(), uri, offset, length)
    sky, order = weather.sequence(seed), itertools.count()
    # Time, order of making, whether it goes to the server, the datagram.
    under_way: list[tuple[float, int, bool, bytes]] = []
    now, sent, room = 0.0, 0, bytearray()

    def send(datagrams: list[bytes], to_server: bool) -> None:
        for datagram in datagrams:
            for delay, arrives in sky.fate(datagram):
                heapq.heappush(under_way, (now + delay, next(order), to_server, arrives))

    while not machine.is_done:
        asked = machine.poll_outgoing(now)
        sent += len(asked)
        send(asked, to_server=True)
        if under_way and under_way[0][0] <= machine.next_timeout():
            now, _, to_server, datagram = heapq.heappop(under_way)
            if to_server:
                send(server.answers(datagram), to_server=False)
            else:
                machine.feed(datagram, now)
                if machine.total is not None and not room:
                    room = bytearray(machine.size)
                    machine.attach(memoryview(room))
        else:
            assert machine.next_timeout() > now, "it would look again at once, for ever"
            now = machine.next_timeout()
    return Outcome(bytes(room), now, sent)
