"""Objects over UDP, with real sockets: through good weather and bad, from servers that die, lie, or are pelted."""

import asyncio
import os
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from objmapper_client import (
    AsyncClient,
    Client,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    LocalProtocolError,
    Mode,
    ObjectNotFound,
    PermissionDenied,
    RemoteProtocolError,
    RequestTimeout,
    ServerBusy,
    UnsupportedMode,
    UnsupportedOperation,
    _path,
    _udp_connection,
)
from objmapper_client.datagrams import (
    FAR_CHUNK,
    Data,
    Error,
    Pull,
    Retry,
    encode_data,
    encode_error,
    encode_pull,
    encode_retry,
)
from objmapper_server import Concurrency, Config, Server
from tests.lossy_relay import lossy_relay
from tests.udp_pretender import Script, pretending
from tests.weather import Weather
from tests.wire import COPY, FDPASS, descriptors_of, request

FAIR = Weather()
ROUGH = Weather(loss=0.05, duplicates=0.05, reordering=0.2, corruption=0.01, delay=0.0005)
SIZES = {"empty": 0, "a": 1, "small": 1000, "medium": 200_000, "large": 1 << 20, "huge": 16 << 20}
Read = Callable[..., bytes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    generator = random.Random(1)
    for name, size in SIZES.items():
        (root / name).write_bytes(generator.randbytes(size))
    (root / "directory").mkdir()
    with (root / "too-large").open("wb") as file:
        file.truncate((64 << 20) + 1)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with Server(Config(root=root, udp="127.0.0.1:0")) as server:
        with Client(server.addresses["udp"]) as client:
            client.read("/a")
        yield server


@pytest.fixture(scope="module")
def address(server: Server) -> str:
    return server.addresses["udp"]


def read_sync(address: str, uri: str, **options: Any) -> bytes:
    with Client(address, **options) as client:
        return client.read(uri)


def read_async(address: str, uri: str, **options: Any) -> bytes:
    async def read() -> bytes:
        async with AsyncClient(address, **options) as client:
            return await client.read(uri)

    return asyncio.run(read())


@pytest.fixture(params=[read_sync, read_async], ids=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SIZES)
def test_every_verb_gives_the_object(address: str, root: Path, name: str) -> None:
    content = (root / name).read_bytes()
    with Client(address) as client:
        assert client.read(f"/{name}") == content
        assert client.read(f"/{name}", offset=10, length=20) == content[10:30]
        assert client.read(f"/{name}", offset=len(content) + 5) == b""
        assert b"".join(client.stream(f"/{name}", chunk_size=70_000)) == content
        buffer = bytearray(len(content) + 5)
        assert client.readinto(f"/{name}", buffer) == len(content)
        assert buffer[: len(content)] == content
        with client.open(f"/{name}") as found:
            assert (found.size, found.read(), found.mode) == (len(content), content, Mode.COPY)
            assert found.view() == content
        assert len(client._pool) == 1


@pytest.mark.parametrize("name", SIZES)
def test_every_verb_gives_the_object_to_a_task(address: str, root: Path, name: str) -> None:
    content = (root / name).read_bytes()

    async def use() -> None:
        async with AsyncClient(address) as client:
            assert await client.read(f"/{name}") == content
            assert await client.read(f"/{name}", offset=10, length=20) == content[10:30]
            assert b"".join([chunk async for chunk in client.stream(f"/{name}", chunk_size=70_000)]) == content
            buffer = bytearray(len(content))
            assert await client.readinto(f"/{name}", buffer) == len(content)
            assert buffer == content
            with await client.open(f"/{name}") as found:
                assert found.read() == content

    asyncio.run(use())


@pytest.mark.parametrize("weather", [FAIR, ROUGH], ids=["fair", "rough"])
@pytest.mark.parametrize("name", SIZES)
def test_it_arrives_whole_whatever_the_weather(
    address: str, root: Path, read: Read, weather: Weather, name: str
) -> None:
    with lossy_relay(address, weather, seed=len(name)) as relay:
        assert read(relay.address, f"/{name}", timeout=60) == (root / name).read_bytes()


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.3])
def test_it_arrives_however_much_is_lost(address: str, root: Path, loss: float) -> None:
    """`benchmarks/udp_loss.py` does it two hundred times each, and says what it costs."""
    content = (root / "large").read_bytes()
    weather = Weather(loss=loss, duplicates=0.05, reordering=0.2)
    for seed in range(3):
        with lossy_relay(address, weather, seed) as relay, Client(relay.address) as client:
            assert client.read("/large") == content


def test_pieces_for_networks_arrive_as_well(
    address: str, root: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_udp_connection, "_NEAR_CHUNK", FAR_CHUNK)
    with lossy_relay(address, ROUGH, seed=3) as relay:
        assert read(relay.address, "/medium") == (root / "medium").read_bytes()


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("/none", ObjectNotFound),
        ("/directory", PermissionDenied),
        ("/../x", InvalidRequest),
        ("", LocalProtocolError),
        ("/\ud800", LocalProtocolError),
        ("/too-large", UnsupportedMode),
    ],
)
def test_a_refusal_is_its_error_and_the_connection_stays(address: str, uri: str, kind: type[Exception]) -> None:
    with Client(address, max_connections=1) as client:
        client.read("/small")
        connection = client._pool._idle[0]
        for verb in (client.read, client.open, lambda uri: list(client.stream(uri))):
            with pytest.raises(kind):
                verb(uri)
        client.read("/small")
        assert client._pool._idle == [connection]


def test_an_object_that_is_too_large_is_refused_with_advice(address: str) -> None:
    with Client(address) as client, pytest.raises(UnsupportedMode, match=r"64 MiB.*use tcp://"):
        client.open("/too-large")


@pytest.mark.parametrize("mode", ["fdpass", "splice"])
def test_only_copies_come_over_udp(address: str, mode: str) -> None:
    with Client(address, mode=mode) as client:
        for verb in (client.read, client.open, lambda uri: list(client.stream(uri))):
            with pytest.raises(UnsupportedMode, match="by copy"):
                verb("/a")


def test_a_buffer_is_filled_as_far_as_it_goes(address: str, root: Path) -> None:
    content = (root / "small").read_bytes()
    buffer = bytearray(10)
    with Client(address) as client:
        assert client.readinto("/small", buffer) == 10
        assert buffer == content[:10]
        assert client.readinto("/small", buffer, offset=995) == 5
        assert buffer == content[995:] + content[5:10]
        assert client.readinto("/small", bytearray(), offset=5) == 0


def test_a_stream_of_a_range(address: str, root: Path) -> None:
    content = (root / "huge").read_bytes()
    with Client(address, max_connections=1) as client:
        for offset, length in [
            (0, 10),
            (1_000_000, 3_000_000),
            (len(content) - 5, 100),
            (len(content) + 5, None),
            (7, 0),
        ]:
            end = len(content) if length is None else offset + length
            assert b"".join(client.stream("/huge", offset=offset, length=length)) == content[offset:end]
        with pytest.raises(LocalProtocolError, match="at least 1 byte"):
            list(client.stream("/huge", chunk_size=0))


def test_what_is_said_of_an_object_is_what_other_transports_say(root: Path) -> None:
    with (
        Server(Config(root=root, udp="127.0.0.1:0", tcp="127.0.0.1:0")) as server,
        Client(server.addresses["udp"]) as client,
        Client(server.addresses["tcp"]) as other,
    ):
        for name in ("empty", "a", "huge", "too-large"):
            assert client.stat(f"/{name}") == other.stat(f"/{name}")._replace(mtime=0)
        with client.open("/a") as found, other.open("/a") as same:
            assert found.etag == same.etag != ""
        with pytest.raises(ObjectNotFound):
            client.stat("/none")


@pytest.mark.parametrize(
    ("verb", "use"),
    [
        ("put", lambda client: client.put("/new", b"content")),
        ("delete", lambda client: client.delete("/a")),
        ("list", lambda client: list(client.list())),
        ("open_many", lambda client: client.open_many(["/a"])),
    ],
)
def test_what_needs_a_stream_is_refused_with_advice(address: str, verb: str, use: Callable[[Client], object]) -> None:
    with Client(address) as client, pytest.raises(UnsupportedOperation, match=rf"no {verb} over UDP.*tcp://"):
        use(client)


def test_what_needs_a_stream_is_refused_to_a_task_too(address: str) -> None:
    async def use() -> None:
        async with AsyncClient(address) as client:
            for refused in (client.put("/new", b"content"), client.delete("/a"), client.open_many(["/a"])):
                with pytest.raises(UnsupportedOperation, match="over UDP"):
                    await refused
            with pytest.raises(UnsupportedOperation, match="over UDP"):
                [entry async for entry in client.list()]
            assert (await client.stat("/small")).size == 1000

    asyncio.run(use())


def test_a_negative_range_is_the_callers_fault(address: str) -> None:
    with Client(address) as client, pytest.raises(LocalProtocolError, match="from 0 on"):
        client.read("/small", offset=-1)


def test_nobody_there_is_said_at_once(read: Read) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{taken.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(ConnectionFailed, match=r"not reached.*is it running"):
        read(address, "/a")
    assert time.monotonic() - start < 5
    with pytest.raises(ConnectionFailed, match="unknown host"):
        read("udp://no-such-host.invalid:1", "/a")


def test_a_host_is_tried_at_its_other_address(root: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost is ::1 first in many places, and the server is on 127.0.0.1."""
    with Server(Config(root=root, udp="127.0.0.1:0")) as server:
        port = int(server.addresses["udp"].rpartition(":")[2])
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        start = time.monotonic()
        assert read("udp://both:1", "/large") == (root / "large").read_bytes()
        # Not after a silence.
        assert time.monotonic() - start < 0.3


def test_silence_ends_in_a_timeout(read: Read) -> None:
    with pretending(lambda _: []) as address:
        start = time.monotonic()
        with pytest.raises(RequestTimeout):
            read(address, "/a", timeout=0.5)
        assert 0.4 < time.monotonic() - start < 5


def test_five_silences_end_it_before_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_udp_connection, "_NEAR_PATIENCE", 0.05)
    with pretending(lambda _: []) as address, Client(address, timeout=60) as client:
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match="after 5 tries"):
            client.read("/a")
        # Each twice as long as the one before.
        assert 31 * 0.05 < time.monotonic() - start < 15


def test_a_server_that_dies_midway_is_an_error_in_bounded_time(root: Path) -> None:
    start = time.monotonic()
    with Server(Config(root=root, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        chunks = client.stream("/huge")
        next(chunks)
        server.stop()
        with pytest.raises((ConnectionFailed, RequestTimeout)):
            list(chunks)
    assert time.monotonic() - start < 20


def test_a_server_that_falls_silent_midway_is_an_error_in_bounded_time(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_path, "_LEAST_SILENCE", 0.05)
    with lossy_relay(address, FAIR, 0) as relay, Client(relay.address, timeout=60) as client:
        weather = relay._sky.fate

        def until_the_thirtieth(datagram: bytes) -> list[tuple[float, bytes]]:
            return weather(datagram) if relay.datagrams_from_server < 30 else []

        relay._sky.fate = until_the_thirtieth  # type: ignore[method-assign]
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match="after 5 tries"):
            client.read("/huge")
        assert 31 * 0.05 < time.monotonic() - start < 15


def replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    beside.rename(path)


def test_an_object_that_changes_midway_arrives_as_it_is_then(tmp_path: Path, read: Read) -> None:
    path, old, new = tmp_path / "object", b"old!" * 200_000, b"new, and longer" * 60_000
    with Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server:
        for number in (2, 10):
            replace(path, old)
            with lossy_relay(server.addresses["udp"], FAIR, 0) as relay:
                relay.on_answer = lambda at, wanted=number: replace(path, new) if at == wanted else None  # type: ignore[misc]
                assert read(relay.address, "/object") == new


def test_an_object_that_never_stops_changing_is_given_up(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "object"
    replace(path, bytes(1 << 20))
    with (
        Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server,
        lossy_relay(server.addresses["udp"], FAIR, 0) as relay,
    ):
        relay.on_answer = lambda at: replace(path, bytes([at % 256]) * (1 << 20))
        with pytest.raises(Conflict, match="changed 3 times"):
            read(relay.address, "/object")
        # It begins again twice, not for ever.
        assert relay.datagrams_from_server < 200


def test_an_object_that_is_deleted_midway_is_not_there(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "object"
    replace(path, bytes(1 << 20))
    with (
        Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server,
        lossy_relay(server.addresses["udp"], FAIR, 0) as relay,
    ):
        relay.on_answer = lambda at: path.unlink(missing_ok=True) if at == 3 else None
        with pytest.raises(ObjectNotFound):
            read(relay.address, "/object")


def test_a_stream_cannot_take_back_what_it_handed_out(tmp_path: Path) -> None:
    path, old = tmp_path / "object", os.urandom(3 << 20)
    replace(path, old)
    with Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        chunks = client.stream("/object", chunk_size=100_000)
        assert next(chunks) == old[:100_000]
        replace(path, os.urandom(3 << 20))
        with pytest.raises(Conflict, match="while it was streamed"):
            list(chunks)
        assert client.read("/object") == path.read_bytes()


def test_an_object_that_is_written_in_place_is_never_torn(tmp_path: Path) -> None:
    """Every state of it is one byte, many times: no transfer brings two of them together."""
    path, size, stop = tmp_path / "object", 400_000, threading.Event()
    path.write_bytes(bytes(size))

    def write() -> None:
        for turn in range(100_000):
            if stop.is_set():
                return
            path.write_bytes(bytes([turn % 256]) * size)
            time.sleep(0.002)

    with Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(60):
                try:
                    assert len(set(client.read("/object"))) <= 1
                except (Conflict, ServerBusy):
                    continue
        finally:
            stop.set()
            writer.join()
        assert client.read("/object") == path.read_bytes()


def piece_of(content: bytes, total: int | None = None, version: int = 1) -> Script:
    """Sends the range's first piece."""

    def script(pull: Pull) -> list[bytes]:
        payload = content[pull.offset : pull.offset + min(pull.length, pull.chunk)]
        size = len(content) if total is None else total
        return [encode_data(Data(pull.request_id, version, size, pull.offset, payload), pull.uri)]

    return script


def versions(pull: Pull) -> list[bytes]:
    return [encode_data(Data(pull.request_id, random.getrandbits(63), 10**6, pull.offset, b"x"), pull.uri)]


def sizes(pull: Pull) -> list[bytes]:
    payload = bytes(min(pull.length, pull.chunk))
    return [
        encode_data(Data(pull.request_id, 1, pull.offset + len(payload) + more, pull.offset, payload), pull.uri)
        for more in (100_000, 200_000)
    ]


def damaged(pull: Pull) -> list[bytes]:
    return [piece_of(b"content")(pull)[0][:-1] + b"?"]


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (piece_of(b"short", total=100_000), RemoteProtocolError, "bytes of a piece that has"),
        (piece_of(b"", total=1), RemoteProtocolError, "sent 0 bytes of a piece that has 1"),
        (piece_of(b"x", total=1 << 60), UnsupportedMode, "64 MiB"),
        (sizes, RemoteProtocolError, "two sizes"),
        (versions, Conflict, "changed 3 times"),
        (damaged, RequestTimeout, "no answer"),
        (lambda pull: [encode_error(Error(pull.request_id, 0x01, "no"))], ObjectNotFound, "/x: no"),
        (lambda pull: [encode_error(Error(pull.request_id, 0x14, "busy"))], ServerBusy, "/x: busy"),
        (lambda pull: [encode_retry(Retry(pull.request_id, os.urandom(16)))], RequestTimeout, "no answer"),
        (lambda pull: [os.urandom(100), b"", b"U", bytes(65000)], RequestTimeout, "no answer"),
        (lambda pull: piece_of(b"theirs")(pull._replace(request_id=7)), RequestTimeout, "no answer"),
        (lambda pull: piece_of(b"theirs")(pull._replace(uri="/y")), RequestTimeout, "no answer"),
    ],
)
def test_a_server_that_lies_is_met_with_an_error(
    read: Read, script: Script, error: type[Exception], words: str
) -> None:
    with pretending(script) as address, pytest.raises(error, match=words):
        read(address, "/x", timeout=0.4 if error is RequestTimeout else 10)


def test_what_a_liar_may_not_do_an_honest_server_may(read: Read) -> None:
    with pretending(piece_of(b"content" * 9000)) as address:
        assert read(address, "/x") == b"content" * 9000


def test_threads_share_a_client(address: str, root: Path) -> None:
    content = (root / "small").read_bytes()
    with Client(address, max_connections=4) as client, ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda _: client.read("/small") == content, range(400)))
        assert len(client._pool) <= 4


def test_tasks_share_a_client(address: str, root: Path) -> None:
    content = (root / "medium").read_bytes()

    async def use() -> None:
        async with AsyncClient(address, max_connections=4) as client:
            results = await asyncio.gather(*(client.read("/medium") for _ in range(100)))
            assert all(result == content for result in results)

    asyncio.run(use())


def test_a_cancelled_task_leaves_nothing_behind(address: str, root: Path) -> None:
    async def use() -> None:
        async with AsyncClient(address) as client:
            for _ in range(20):
                task = asyncio.create_task(client.read("/large"))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await client.read("/large") == (root / "large").read_bytes()

    asyncio.run(use())


def test_a_stream_left_early_costs_nothing(address: str) -> None:
    with Client(address, max_connections=1) as client:
        for _ in range(5):
            for _chunk in client.stream("/huge", chunk_size=1000):
                break
        assert client.read("/small")


def test_a_forked_child_has_a_socket_of_its_own(address: str, root: Path) -> None:
    content = (root / "large").read_bytes()
    with Client(address) as client:
        assert client.read("/large") == content
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if client.read("/large") == content else 2
            finally:
                os._exit(code)
        assert client.read("/large") == content
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_client_travels_by_its_address(address: str) -> None:
    with Client(address, timeout=7) as client, pickle.loads(pickle.dumps(client)) as other:
        assert (other.address, other.timeout) == (client.address, 7)
        assert other.read("/small") == client.read("/small")


def test_sockets_close_on_exec(address: str) -> None:
    with Client(address) as client:
        client.read("/small")
        assert not client._pool._idle[0].socket.get_inheritable()


def test_the_model_changes_while_objects_arrive(root: Path) -> None:
    content = (root / "large").read_bytes()
    stop = threading.Event()

    def fetch(address: str) -> int:
        fetched = 0
        with Client(address, timeout=60) as client:
            while not stop.is_set() or not fetched:
                assert client.read("/large") == content
                fetched += 1
        return fetched

    with Server(Config(root=root, udp="127.0.0.1:0")) as server, ThreadPoolExecutor(3) as threads:
        fetching = [threads.submit(fetch, server.addresses["udp"]) for _ in range(3)]
        try:
            models = [Concurrency.THREAD_POOL, Concurrency.WORK_STEALING, Concurrency.EPOLL, Concurrency.BY_TRANSPORT]
            for turn in range(40):
                server.set_concurrency(udp=models[turn % 4])
                time.sleep(0.01)
            with pytest.raises(ValueError, match="udp has no connections"):
                server.set_concurrency(udp=Concurrency.THREAD_PER_CONNECTION)
        finally:
            stop.set()
        assert all(fetched.result() > 0 for fetched in fetching)
        assert server.statistics().concurrency_model == {"udp": "epoll"}


def test_requests_are_counted_by_transport_and_by_kind(root: Path) -> None:
    with Server(Config(root=root, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        client.read("/small")
        with pytest.raises(ObjectNotFound):
            client.read("/none")
        deadline = time.monotonic() + 10
        while (statistics := server.statistics()).requests_total < 3:
            assert time.monotonic() < deadline
        figures = statistics.transports["udp"]
        # What is refused is asked for twice.
        assert (figures.requests_total, figures.bytes_total, figures.errors_total) == (3, 1000, {"NOT_FOUND": 2})
        assert figures.address == server.addresses["udp"]
        assert statistics.datagrams is not None
        assert statistics.datagrams.pull_received_total == 3
        assert (statistics.datagrams.data_sent_total, statistics.datagrams.error_sent_total) == (1, 2)
    with Server(Config(root=root, tcp="127.0.0.1:0")) as server:
        assert server.statistics().datagrams is None


def test_a_drained_server_answers_no_more(root: Path) -> None:
    with Server(Config(root=root, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"], timeout=0.5) as client:
        assert client.read("/a")
        assert server.drain(timeout=10)
        with pytest.raises(RequestTimeout):
            client.read("/a")


def test_a_bind_to_more_than_loopback_says_what_it_means(root: Path) -> None:
    with Server(Config(root=root, udp="0.0.0.0:0")) as server:
        (notice,) = server.notices
        assert notice.startswith(server.addresses["udp"])
        assert "not loopback" in notice
        assert "udp_trusted" in notice
    with Server(Config(root=root, udp="localhost:0")) as server:
        assert server.notices == ()


def junk(generator: random.Random) -> bytes:
    """A datagram that means no good: cut, too long, forged, repeated, or just bytes."""
    pull = encode_pull(
        Pull(
            generator.getrandbits(32),
            generator.choice([0, 1, 10**6, 2**64 - 1]),
            generator.choice([0, 1, 5000, 2**32 - 1]),
            generator.choice([0, 1, 1152, 65535]),
            generator.choice([b"", generator.randbytes(16)]),
            generator.choice(["/a", "/none", "/../a", "/directory", "/" + "n" * 4000]),
        )
    )
    kind = generator.randrange(6)
    if kind == 0:
        return pull[: generator.randrange(len(pull))]
    if kind == 1:
        return pull + bytes(generator.randrange(5000))
    if kind == 2:
        return generator.randbytes(generator.randrange(300))
    if kind == 3:
        return b"U\x01" + generator.randbytes(generator.randrange(100))
    if kind == 4:
        return request(generator.choice([COPY, FDPASS]), "/a")[: generator.randrange(6)] + generator.randbytes(3)
    place = generator.randrange(len(pull))
    return pull[:place] + generator.randbytes(1) + pull[place + 1 :]


def test_junk_changes_nothing(server: Server, address: str, root: Path) -> None:
    """`benchmarks/udp_junk.py` sends a million, from elsewhere than loopback too."""
    generator = random.Random(5)
    before, threads = descriptors_of(), threading.active_count()
    host, _, port = address.removeprefix("udp://").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source, Client(address) as honest:
        source.connect((host, int(port)))
        for turn in range(20_000):
            source.send(junk(generator))
            if turn % 1000 == 0:
                assert honest.read("/small") == (root / "small").read_bytes()
        assert honest.read("/large") == (root / "large").read_bytes()
        assert descriptors_of() <= before + 2
    assert threading.active_count() == threads
