"""A relay between a client and a server on loopback, in user space, that does to datagrams what a bad network does."""

import heapq
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.network_faults import FaultSequence, NetworkFaults

_ROOM = 4 << 20


class Relay:
    """Receives datagrams at `address` and forwards them in both directions, with the faults."""

    def __init__(self, server: str, sky: FaultSequence) -> None:
        host, _, port = server.removeprefix("udp://").rpartition(":")
        self._server = (host.strip("[]"), int(port))
        self._sky = sky
        self._front = _socket()
        self._front.bind(("127.0.0.1", 0))
        self.address = f"udp://127.0.0.1:{self._front.getsockname()[1]}"
        #: A socket towards the server for each client, so that answers find their way back.
        self._backs: dict[tuple[str, int], socket.socket] = {}
        #: Bytes that the server sent, before anything was done to them.
        self.bytes_from_server = 0
        self.datagrams_from_server = 0
        #: Called with the number of each datagram from the server, before it is handed on.
        self.on_answer: Callable[[int], None] = lambda number: None
        self._under_way: list[tuple[float, int, socket.socket, tuple[str, int] | None, bytes]] = []
        self._order = itertools.count()
        self._bell, self._ringer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="relay")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ringer.close()
        self._thread.join(30)
        assert not self._thread.is_alive()
        for each in (self._front, self._bell, *self._backs.values()):
            each.close()

    def _run(self) -> None:
        poll = select.poll()
        sockets = {self._front.fileno(): self._front}
        poll.register(self._front, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        clients: dict[int, tuple[str, int]] = {}
        while True:
            wait = None if not self._under_way else max(0.0, self._under_way[0][0] - time.monotonic()) * 1000
            for number, _ in poll.poll(wait):
                if number == self._bell.fileno():
                    return
                for datagram, client in _arrived(sockets[number]):
                    if number != self._front.fileno():
                        self._from_server(datagram, clients[number])
                        continue
                    back = self._backs.get(client)
                    if back is None:
                        back = self._backs[client] = _socket()
                        back.connect(self._server)
                        sockets[back.fileno()], clients[back.fileno()] = back, client
                        poll.register(back, select.POLLIN)
                    self._hand_on(datagram, back, None)
            now = time.monotonic()
            while self._under_way and self._under_way[0][0] <= now:
                _, _, out, target, datagram = heapq.heappop(self._under_way)
                try:
                    out.sendto(datagram, target) if target else out.send(datagram)
                except (BlockingIOError, ConnectionError):
                    continue  # one more that is lost

    def _from_server(self, datagram: bytes, client: tuple[str, int]) -> None:
        self.datagrams_from_server += 1
        self.bytes_from_server += len(datagram)
        self.on_answer(self.datagrams_from_server)
        self._hand_on(datagram, self._front, client)

    def _hand_on(self, datagram: bytes, out: socket.socket, target: tuple[str, int] | None) -> None:
        now = time.monotonic()
        for delay, arrives in self._sky.fate(datagram):
            heapq.heappush(self._under_way, (now + delay, next(self._order), out, target, arrives))


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
    return made


def _arrived(source: socket.socket) -> Iterator[tuple[bytes, tuple[str, int]]]:
    for _ in range(64):
        try:
            yield source.recvfrom(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            continue  # the receiver of an earlier one was closed


@contextmanager
def lossy_relay(server: str, weather: NetworkFaults, seed: int) -> Iterator[Relay]:
    """A relay in front of this server, in a thread, until the end of the block."""
    relay = Relay(server, weather.sequence(seed))
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()
