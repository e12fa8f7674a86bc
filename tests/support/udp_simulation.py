"""A transfer without sockets or waiting: the client's state machine, a small server, a lossy network, and a clock that
the test sets.

Minutes of a network take seconds here, and each run is the same.
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
    max_chunk: int = 65471
    requires_cookie: bool = False
    pulls: int = 0
    #: Bytes of all answers.
    sent: int = 0

    def answers(self, datagram: bytes) -> list[bytes]:
        """The datagrams that a datagram is answered with."""
        pull = decode_request(datagram)
        if not isinstance(pull, Pull):
            return []
        self.pulls += 1
        answers = list(self._answers(pull))
        self.sent += sum(map(len, answers))
        return answers

    def _answers(self, pull: Pull) -> "list[bytes]":
        if self.requires_cookie and pull.cookie != COOKIE:
            return [encode_retry(Retry(pull.request_id, COOKIE))]
        content = self.objects.get(pull.uri)
        if content is None:
            return [encode_error(Error(pull.request_id, 0x01, "no such object"))]
        version, total = self.versions.get(pull.uri, 1), len(content)
        chunk = min(pull.chunk, self.max_chunk)
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


def new_path(chunk: int = MAX_REMOTE_CHUNK, first_timeout: float = 0.333, max_window: int = 128) -> PathState:
    return PathState(chunk, first_timeout, max_window)


def run_transfer(
    server: Server,
    uri: str,
    faults: NetworkFaults,
    seed: int,
    *,
    path: PathState | None = None,
    offset: int = 0,
    length: int | None = None,
) -> Outcome:
    """Runs a transfer to its end. Raises what the machine raises."""
    transfer = Transfer(path or new_path(), uri, offset, length)
    fault_sequence, order = faults.sequence(seed), itertools.count()
    # Time, order of making, whether it goes to the server, the datagram.
    in_flight: list[tuple[float, int, bool, bytes]] = []
    now, sent, buffer = 0.0, 0, bytearray()

    def send(datagrams: list[bytes], to_server: bool) -> None:
        for datagram in datagrams:
            for delay, received in fault_sequence.apply(datagram):
                heapq.heappush(in_flight, (now + delay, next(order), to_server, received))

    while not transfer.is_done:
        requests = transfer.poll_outgoing(now)
        sent += len(requests)
        send(requests, to_server=True)
        if in_flight and in_flight[0][0] <= transfer.next_timeout():
            now, _, to_server, datagram = heapq.heappop(in_flight)
            if to_server:
                send(server.answers(datagram), to_server=False)
            else:
                transfer.feed(datagram, now)
                if transfer.total is not None and not buffer:
                    buffer = bytearray(transfer.size)
                    transfer.attach(memoryview(buffer))
        else:
            assert transfer.next_timeout() > now, "it would look again at once, for ever"
            now = transfer.next_timeout()
    return Outcome(bytes(buffer), now, sent)
