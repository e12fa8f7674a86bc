"""Clients that never read use up the memory for answers: the server stops reading from them, and serves all others."""

import contextlib
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support.eventually import eventually
from tests.support.raw_client import COPY as COPY_ONE
from tests.support.raw_client import FDPASS as FDPASS_ONE
from tests.support.raw_client import NOT_FOUND, UNAVAILABLE, RawClient, request
from tests.support.raw_client_v2 import (
    COPY,
    DELETE,
    FDPASS,
    LIST,
    PUT,
    PUT_DESCRIPTOR,
    SPLICE,
    STAT,
    RawClientV2,
    frame,
)
from tests.support.users import OtherUser, why_no_users

PER_CONNECTION, TOTAL, MIN_SERVED = 256 << 10, 1 << 20, 16 << 10
#: A connection may have an eighth of what is free: this number of them has all of it, down to the `MIN_SERVED` of each.
NON_READING_CLIENTS = 64
NAMES = 3000
#: Long names, so that no more requests come in one piece than a client may have under way.
CONTENT_URI, SMALL_URI, NAMES_URI, MISSING_URI = (
    "/an-object-of-60000-bytes",
    "/a-small-object",
    "/names-of-objects/",
    "/no-such-object",
)
CONTENT = bytes(range(240)) * 250
#: What a client can send before the server has stopped reading: far more than the buffers of both sockets.
MAX_SENT = 64 << 20


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objects")
    (root / CONTENT_URI[1:]).write_bytes(CONTENT)
    (root / SMALL_URI[1:]).write_bytes(b"hello")
    names = root / NAMES_URI[1:]
    names.mkdir()
    for number in range(NAMES):
        (names / f"{number:0100}").touch()
    return root


@pytest.fixture(scope="module")
def served(objects: Path, model: Concurrency) -> Iterator[Server]:
    # In a directory that every user may enter.
    with tempfile.TemporaryDirectory(prefix="objmapper-budget-") as directory:
        Path(directory).chmod(0o755)
        config = Config(
            root=objects,
            unix=Path(directory) / "socket",
            unix_mode=0o666,
            tcp="127.0.0.1:0",
            admin=None,
            concurrency_model=model,
            max_output_buffer=PER_CONNECTION,
            max_output_memory=TOTAL,
        )
        with Server(config) as server:
            yield server


@pytest.fixture
def settled_server(served: Server) -> Iterator[Server]:
    yield served
    assert eventually(lambda: served.statistics().output_bytes == 0)
    assert eventually(lambda: served.statistics().connections == 0)


def ask_for_all(v2: RawClientV2) -> None:
    """What a client may ask for over this transport, and how it is answered."""
    assert v2.call_until_served(STAT, CONTENT_URI).metadata.size == len(CONTENT)
    for operation in (COPY, SPLICE, *([FDPASS] if v2.socket.family == socket.AF_UNIX else [])):
        assert v2.call_until_served(operation, CONTENT_URI).read() == CONTENT
    assert v2.call_until_served(COPY, MISSING_URI).status == NOT_FOUND
    found, cursor = 0, None
    while True:
        answer = v2.call_until_served(LIST, NAMES_URI, limit=10_000, cursor=cursor)
        found += len(answer.entries())
        if (cursor := answer.metadata.cursor) is None:
            break
    assert found == NAMES


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_others_are_served_while_the_budget_is_used_up(settled_server: Server, transport: str) -> None:
    address = settled_server.addresses[transport]
    with contextlib.ExitStack() as clients:
        for _ in range(NON_READING_CLIENTS):
            v2 = clients.enter_context(RawClientV2(address, timeout=60))
            v2.send(b"".join(v2.encode(LIST, NAMES_URI, limit=10_000) for _ in range(60)))
        # Then an eighth of what is free is hardly more than each has in any case.
        assert eventually(lambda: settled_server.statistics().output_bytes > TOTAL - 10 * MIN_SERVED, 60)
        with RawClientV2(address, timeout=60) as same_user:
            ask_for_all(same_user)
        with RawClient(address, timeout=60) as version_1:
            while (reply := version_1.ask(COPY_ONE, CONTENT_URI)).status == UNAVAILABLE:
                pass
            assert reply.read() == CONTENT
        if transport == "unix" and not why_no_users():
            with OtherUser(4001, 4001) as other, RawClientV2(other.connect(address), timeout=60) as other_user:
                ask_for_all(other_user)
        assert TOTAL // 2 < settled_server.statistics().output_bytes <= TOTAL + (NON_READING_CLIENTS + 4) * MIN_SERVED


def two_addresses(*arguments: object) -> Callable[[RawClientV2], bytes]:
    return lambda v2: v2.encode(*arguments)  # type: ignore[arg-type]  # an operation and its URI


#: What a client sends again and again.
KINDS: dict[str, Callable[[RawClientV2], bytes]] = {
    "metadata": two_addresses(STAT, CONTENT_URI),
    "small copies": two_addresses(COPY, SMALL_URI),
    "copies": two_addresses(COPY, CONTENT_URI),
    "splices": two_addresses(SPLICE, CONTENT_URI),
    "descriptors": two_addresses(FDPASS, CONTENT_URI),
    "lists": two_addresses(LIST, NAMES_URI),
    "not found": two_addresses(COPY, MISSING_URI),
    "no directory to list": two_addresses(LIST, MISSING_URI + "/"),
    "not writable": two_addresses(DELETE, CONTENT_URI),
    "no descriptor": two_addresses(PUT_DESCRIPTOR, MISSING_URI),
    "contents that are refused": lambda v2: v2.encode(PUT, MISSING_URI, content_len=4) + b"abcd",
    "bad URIs": two_addresses(COPY, "/.." + CONTENT_URI),
    "unknown operations": lambda _: frame(7, b"?", CONTENT_URI.encode()),
    "conditions": lambda v2: v2.encode(COPY, CONTENT_URI, if_match=b"another"),
}
KINDS_ONE = {
    "small copies": request(COPY_ONE, SMALL_URI),
    "copies": request(COPY_ONE, CONTENT_URI),
    "descriptors": request(FDPASS_ONE, CONTENT_URI),
    "not found": request(COPY_ONE, MISSING_URI),
}


def send_until_blocked(v1: RawClient, message: bytes) -> int:
    """Sends without reading until the server takes nothing more. Returns how many bytes went."""
    messages = message * max(1, (64 << 10) // len(message))
    sent, begun = 0, 0
    with contextlib.suppress(ConnectionError):
        while sent <= MAX_SENT:
            if not select.select([], [v1.socket], [], 1)[1]:
                break
            with contextlib.suppress(BlockingIOError):
                taken = v1.socket.send(messages[begun:], socket.MSG_DONTWAIT)
                sent += taken
                begun = (begun + taken) % len(messages)
    return sent


def check_bounds(server: Server, v1: RawClient, address: str, message: bytes) -> None:
    assert send_until_blocked(v1, message) <= MAX_SENT
    assert server.statistics().output_bytes <= PER_CONNECTION + MIN_SERVED
    with RawClientV2(address, timeout=60) as honest:
        assert honest.call_until_served(COPY, CONTENT_URI).content == CONTENT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_the_server_stops_reading_from_a_client_that_does_not_read(
    settled_server: Server, transport: str, kind: str
) -> None:
    address = settled_server.addresses[transport]
    with RawClientV2(address, timeout=60) as v2:
        check_bounds(settled_server, v2, address, KINDS[kind](v2))


@pytest.mark.parametrize("kind", KINDS_ONE)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_nor_in_version_1(settled_server: Server, transport: str, kind: str) -> None:
    address = settled_server.addresses[transport]
    with RawClient(address, timeout=60) as v1:
        check_bounds(settled_server, v1, address, KINDS_ONE[kind])
