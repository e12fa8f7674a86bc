"""The model changes while requests of version 2 are under way: none fails, each is answered exactly once."""

import os
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from objmapper_client.protocol.v2_requests import ORDERED, CloseAck, Operation, encode_close
from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.models import MODELS
from tests.support.raw_client_v2 import COPY, FDPASS, LIST, PUT, PUT_DESCRIPTOR, SPLICE, STAT, RawClientV2

SWITCHES = 60
#: Requests that a client keeps under way, and clients for each transport.
WINDOW, CLIENTS = 24, 2
CONTENTS = {"small": b"small" * 500, "large": b"large" * 60_000}


class Conversation:
    """A client that keeps a window of requests of every kind under way, and knows what each must bring."""

    def __init__(self, address: str, number: int) -> None:
        self.random = random.Random(number)
        self.operations = [COPY, SPLICE, STAT, LIST, PUT]
        self.operations += [FDPASS, PUT_DESCRIPTOR] if address.startswith("unix:") else []
        self.own = f"/own-{number}"
        self.address = address
        self.answered = 0

    def run(self, stop: threading.Event) -> int:
        """Sends requests until `stop`, then reads the missing replies. Returns their number."""
        with RawClientV2(self.address) as v2:
            expected: dict[int, tuple[Operation, str]] = {}
            while expected or not stop.is_set():
                while len(expected) < WINDOW and not stop.is_set():
                    expected |= self._ask(v2)
                answer = v2.answer()
                # An answer to nothing, or a second one, fails here.
                operation, name = expected.pop(answer.id)
                content = answer.read()
                if operation in {COPY, SPLICE, FDPASS}:
                    assert content == CONTENTS[name]
                self.answered += 1
            v2.send(encode_close(0))
            assert v2.next() == CloseAck(0)
            assert v2.is_closed()
        return self.answered

    def _ask(self, v2: RawClientV2) -> dict[int, tuple[Operation, str]]:
        operation = self.random.choice(self.operations)
        name = self.random.choice(list(CONTENTS))
        flags = self.random.choice([0, 0, 0, ORDERED])
        if operation is PUT:
            # What fits into the socket: while the server waits for its answers to be read, it reads nothing more.
            content = CONTENTS["small"]
            v2.send(v2.encode(PUT, self.own, flags, content_len=len(content)), content)
        elif operation is PUT_DESCRIPTOR:
            with os.fdopen(os.memfd_create("content"), "w+b") as file:
                file.write(CONTENTS[name])
                file.flush()
                socket.send_fds(v2.socket, [v2.encode(PUT_DESCRIPTOR, self.own, flags)], [file.fileno()])
        else:
            v2.ask(operation, "/" if operation is LIST else f"/{name}", flags)
        return {v2.next_id - 1: (operation, name)}


def test_the_model_changes_while_requests_are_under_way(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name, content in CONTENTS.items():
        (root / name).write_bytes(content)
    # A thread for each connection in the pools, too: no connection times out in the queue.
    config = Config(root=root, unix=tmp_path / "s", tcp="127.0.0.1:0", admin=None, writable=True, pool_size=8)
    stop = threading.Event()
    generator = random.Random(6)
    with Server(config) as server, ThreadPoolExecutor(2 * CLIENTS) as threads:
        addresses = [*server.addresses.values()] * CLIENTS
        conversations = [
            threads.submit(Conversation(address, number).run, stop) for number, address in enumerate(addresses)
        ]
        seen = 0
        try:
            for _ in range(SWITCHES):
                choice: dict[str, Concurrency] = {name: generator.choice(MODELS) for name in ("unix", "tcp")}
                server.set_concurrency(**choice)
                # Often before all connections have moved.
                wanted = seen + generator.choice([0, 20, 200])
                assert eventually(lambda wanted=wanted: server.statistics().total.requests_total >= wanted)  # type: ignore[misc]
                seen = server.statistics().total.requests_total
                assert not any(conversation.done() for conversation in conversations)
        finally:
            stop.set()
        answered = sum(conversation.result() for conversation in conversations)
        statistics = server.statistics()
        assert statistics.total.requests_total == answered
        assert statistics.total.errors_total == {}
        assert sum(transport.connections_total for transport in statistics.transports.values()) == len(addresses)
        assert eventually(lambda: server.statistics().descriptors_in_flight == 0)
        # Each of them has had its share.
        assert {name for name, figures in statistics.models.items() if figures.requests_total} >= set(map(str, MODELS))
