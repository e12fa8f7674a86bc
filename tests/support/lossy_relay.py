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

_BUFFER_SIZE = 4 << 20


class Relay:
    """Receives datagrams at `address` and forwards them in both directions, with the faults."""

    def __init__(self, server: str, fault_sequence: FaultSequence) -> None:
        host, _, port = server.removeprefix("udp://").rpartition(":")
        self._server = (host.strip("[]"), int(port))
        self._fault_sequence = fault_sequence
        self._client_socket = _socket()
        self._client_socket.bind(("127.0.0.1", 0))
        self.address = f"udp://127.0.0.1:{self._client_socket.getsockname()[1]}"
        #: A socket towards the server for each client, so that answers find their way back.
        self._server_sockets: dict[tuple[str, int], socket.socket] = {}
        #: Bytes that the server sent, before anything was done to them.
        self.bytes_from_server = 0
        self.datagrams_from_server = 0
        #: Called with the number of each datagram from the server, before it is handed on.
        self.on_answer: Callable[[int], None] = lambda descriptor: None
        self._delayed: list[tuple[float, int, socket.socket, tuple[str, int] | None, bytes]] = []
        self._order = itertools.count()
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="relay")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop_sender.close()
        self._thread.join(30)
        assert not self._thread.is_alive()
        for each in (self._client_socket, self._stop_receiver, *self._server_sockets.values()):
            each.close()

    def _run(self) -> None:
        poll = select.poll()
        sockets = {self._client_socket.fileno(): self._client_socket}
        poll.register(self._client_socket, select.POLLIN)
        poll.register(self._stop_receiver, select.POLLIN)
        clients: dict[int, tuple[str, int]] = {}
        while True:
            wait = None if not self._delayed else max(0.0, self._delayed[0][0] - time.monotonic()) * 1000
            for descriptor, _ in poll.poll(wait):
                if descriptor == self._stop_receiver.fileno():
                    return
                for datagram, client in _received_datagrams(sockets[descriptor]):
                    if descriptor != self._client_socket.fileno():
                        self._from_server(datagram, clients[descriptor])
                        continue
                    server_socket = self._server_sockets.get(client)
                    if server_socket is None:
                        server_socket = self._server_sockets[client] = _socket()
                        server_socket.connect(self._server)
                        sockets[server_socket.fileno()], clients[server_socket.fileno()] = server_socket, client
                        poll.register(server_socket, select.POLLIN)
                    self._forward(datagram, server_socket, None)
            now = time.monotonic()
            while self._delayed and self._delayed[0][0] <= now:
                _, _, sender, target, datagram = heapq.heappop(self._delayed)
                try:
                    sender.sendto(datagram, target) if target else sender.send(datagram)
                except (BlockingIOError, ConnectionError):
                    continue  # one more that is lost

    def _from_server(self, datagram: bytes, client: tuple[str, int]) -> None:
        self.datagrams_from_server += 1
        self.bytes_from_server += len(datagram)
        self.on_answer(self.datagrams_from_server)
        self._forward(datagram, self._client_socket, client)

    def _forward(self, datagram: bytes, sender: socket.socket, target: tuple[str, int] | None) -> None:
        now = time.monotonic()
        for delay, arrives in self._fault_sequence.apply(datagram):
            heapq.heappush(self._delayed, (now + delay, next(self._order), sender, target, arrives))


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_SIZE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_SIZE)
    return sock


def _received_datagrams(source: socket.socket) -> Iterator[tuple[bytes, tuple[str, int]]]:
    for _ in range(64):
        try:
            yield source.recvfrom(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            continue  # the receiver of an earlier one was closed


@contextmanager
def lossy_relay(server: str, faults: NetworkFaults, seed: int) -> Iterator[Relay]:
    """A relay in front of this server, in a thread, until the end of the block."""
    relay = Relay(server, faults.sequence(seed))
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()
