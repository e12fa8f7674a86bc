"""Clients that ask and do not read: the server holds a bounded part of their answers; they get all once they read."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.soak.process_resources import ProcessResources
from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.raw_client import COPY as COPY_ONE
from tests.support.raw_client import OK, UNAVAILABLE, RawClient, request
from tests.support.raw_client_v2 import COPY, LIST, SPLICE, STAT, Answer, RawClientV2
from tests.support.server_process import ServerProcess

PER_CONNECTION, TOTAL, MIN_SERVED = 256 << 10, 1 << 20, 16 << 10
#: Of each client.
REQUESTS = 30
CLIENTS = 12
NAMES = 2000
CONTENT = random.Random(5).randbytes(60_000)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objects")
    (root / "content").write_bytes(CONTENT)
    (root / "names").mkdir()
    for number in range(NAMES):
        (root / "names" / f"{number:0100}").touch()
    return root


@contextlib.contextmanager
def serving(objects: Path, tmp_path: Path, model: Concurrency, cache_size: int = 0) -> Iterator[Server]:
    config = Config(
        root=objects,
        unix=tmp_path / "socket",
        tcp="127.0.0.1:0",
        admin=None,
        concurrency_model=model,
        cache_size=cache_size,
        max_output_buffer=PER_CONNECTION,
        max_output_memory=TOTAL,
    )
    with Server(config) as server:
        yield server


def served_answers(v2: RawClientV2) -> list[Answer]:
    """All answers come; a pool that is short of time may have refused some, or all of one client."""
    answers = v2.answers(REQUESTS).values()
    assert all(answer.fails(UNAVAILABLE) for answer in answers if answer.status != OK)
    return [answer for answer in answers if answer.status == OK]


def take_lists(v2: RawClientV2) -> int:
    answers = served_answers(v2)
    for answer in answers:
        entries = answer.entries()
        # As far as the page goes: short ones say where the next goes on.
        assert entries[0].uri == f"/names/{0:0100}"
        assert len(entries) == NAMES or answer.metadata.cursor
    return len(answers)


def take_contents(v2: RawClientV2) -> int:
    answers = served_answers(v2)
    assert all(answer.content == CONTENT for answer in answers)
    return len(answers)


def take_metadata(v2: RawClientV2) -> int:
    answers = served_answers(v2)
    assert all(answer.metadata.size == len(CONTENT) for answer in answers)
    return len(answers)


KINDS: dict[str, tuple[Callable[[RawClientV2], bytes], Callable[[RawClientV2], int]]] = {
    "lists": (lambda v2: v2.encode(LIST, "/names/", limit=10_000), take_lists),
    "copies": (lambda v2: v2.encode(COPY, "/content"), take_contents),
    "splices": (lambda v2: v2.encode(SPLICE, "/content"), take_contents),
    "metadata": (lambda v2: v2.encode(STAT, "/content"), take_metadata),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_answers_wait_in_bounds_and_come_whole(
    objects: Path, tmp_path: Path, model: Concurrency, transport: str, kind: str
) -> None:
    ask, take = KINDS[kind]
    with serving(objects, tmp_path, model) as server, contextlib.ExitStack() as clients:
        address = server.addresses[transport]
        v2_clients = [clients.enter_context(RawClientV2(address, timeout=60)) for _ in range(CLIENTS)]
        most = 0
        for v2 in v2_clients:
            v2.send(b"".join(ask(v2) for _ in range(REQUESTS)))
            most = max(most, server.statistics().output_bytes)
        with RawClientV2(address, timeout=60) as honest:
            for _ in range(10):
                assert honest.call_until_served(COPY, "/content").content == CONTENT
                assert honest.call_until_served(LIST, "/names/", limit=10).entries()
                most = max(most, server.statistics().output_bytes)
        assert most <= TOTAL + (CLIENTS + 1) * MIN_SERVED
        if kind == "lists":
            assert most > MIN_SERVED
        assert sum(take(v2) for v2 in v2_clients) > 0
        assert eventually(lambda: server.statistics().output_bytes == 0)


def test_version_1_too(objects: Path, tmp_path: Path, model: Concurrency) -> None:
    with serving(objects, tmp_path, model, 1 << 20) as server, contextlib.ExitStack() as clients:
        address = server.addresses["tcp"]
        connections = [clients.enter_context(RawClient(address, timeout=60)) for _ in range(CLIENTS)]
        for v1 in connections:
            v1.send(request(COPY_ONE, "/content") * REQUESTS)
        with RawClient(address, timeout=60) as honest:
            for _ in range(20):
                while (reply := honest.ask(COPY_ONE, "/content")).status == UNAVAILABLE:
                    pass
                assert reply.read() == CONTENT
                assert server.statistics().output_bytes <= TOTAL + (CLIENTS + 1) * MIN_SERVED
        for v1 in connections:
            replies = [v1.reply(COPY_ONE) for _ in range(REQUESTS)]
            assert all(reply.status == UNAVAILABLE or reply.read() == CONTENT for reply in replies)
        assert eventually(lambda: server.statistics().output_bytes == 0)


def test_nothing_of_it_is_left_when_they_leave(objects: Path, tmp_path: Path, model: Concurrency) -> None:
    with serving(objects, tmp_path, model) as server:
        with contextlib.ExitStack() as clients:
            for _ in range(CLIENTS):
                v2 = clients.enter_context(RawClientV2(server.addresses["unix"]))
                v2.send(b"".join(KINDS["lists"][0](v2) for _ in range(REQUESTS)))
            assert eventually(lambda: server.statistics().output_bytes > MIN_SERVED)
        assert eventually(lambda: server.statistics().output_bytes == 0)
        assert eventually(lambda: server.statistics().connections == 0)


def test_idle_connections_keep_no_buffers(objects: Path, tmp_path: Path, model: Concurrency) -> None:
    count = 300
    flags = ["--tcp", "127.0.0.1:0", "--concurrency-model", model, "--max-threads", str(2 * count)]
    with ServerProcess(objects, tmp_path / "socket", *flags) as server, contextlib.ExitStack() as clients:
        address = server.addresses["tcp"]
        connections = [clients.enter_context(RawClient(address, timeout=60)) for _ in range(count)]
        heavy = clients.enter_context(RawClient(address, timeout=60))

        def mix(step: int) -> None:
            """Small questions by all between large answers to one, and a few of those to each."""
            for v1 in connections[::step]:
                heavy.send(request(COPY_ONE, "/content") * 8)
                v1.send(request(COPY_ONE, "/content") * 3 + request(COPY_ONE, "/missing"))
                assert all(heavy.reply(COPY_ONE).status in {OK, UNAVAILABLE} for _ in range(8))
                assert all(v1.reply(COPY_ONE).status in {OK, UNAVAILABLE} for _ in range(3))
                v1.reply(COPY_ONE)

        mix(30)
        before = ProcessResources.of(server.pid).resident
        mix(1)
        # A thread for each connection gives its buffers back within seconds, and has its stack.
        assert eventually(lambda: ProcessResources.of(server.pid).resident - before < count * (48 << 10), 10)
