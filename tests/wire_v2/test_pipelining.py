"""Who is answered when: requests ahead, out of order, in order, the window, the end of a connection.

Storage is as slow as a test wants: the threads that read, that write and that copy files are held, and what goes by way
of them waits. That is every list, put and delete, every name that the kernel has not looked up before, every content
that is not in memory.
"""

import itertools
import os
import platform
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client.protocol.hello import Capability
from objmapper_client.protocol.v2_requests import CLOSE, ORDERED, PRIORITY, CloseAck, Operation, encode_close
from objmapper_server import Concurrency
from tests.support.cold_cache import PREADV2
from tests.support.eventually import eventually
from tests.support.raw_client import COPY as COPY_ONE
from tests.support.raw_client import INVALID_REQUEST, NOT_FOUND, OK, RawClient, descriptors_of
from tests.support.raw_client import request as request_one
from tests.support.raw_client_v2 import (
    CAPABILITY_ERROR,
    COPY,
    DELETE,
    FDPASS,
    LIST,
    PUT,
    PUT_DESCRIPTOR,
    SPLICE,
    STAT,
    RawClientV2,
)
from tests.support.server_process import ServerProcess
from tests.support.thread_freezer import ThreadFreezer

#: The names of threads, as far as the kernel keeps them, and how many there are of each.
READERS, WRITERS, COPIERS, STORAGE_THREADS = "objmapper-stora", "objmapper-write", "objmapper-copie", 4
UNCACHED_URIS = itertools.count()


@pytest.fixture(scope="module")
def served(root: Path, model: Concurrency, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    socket_path = tmp_path_factory.mktemp("run") / "o.sock"
    flags = ["--tcp", "127.0.0.1:0", "--writable", "--concurrency-model", model]
    with ServerProcess(root, socket_path, *flags) as served:
        yield served


@pytest.fixture
def address(served: ServerProcess, transport: str) -> str:
    return str(served.addresses[transport])


def slow_storage(served: ServerProcess, *, writes: bool = True) -> ThreadFreezer:
    """Holds what reads; what writes, too, where the server takes writes."""
    threads = served.threads(READERS, STORAGE_THREADS)
    if writes:
        threads += served.threads(WRITERS, STORAGE_THREADS)
        with RawClientV2(served.addresses["unix"]) as v2, Path("/dev/null").open("rb") as device:
            # A thread that copies is made when there is work, and waits for more of it.
            assert v2.put_descriptor("/refused", device.fileno()).fails(INVALID_REQUEST)
        tasks = Path(f"/proc/{served.pid}/task").iterdir()
        threads += [int(task.name) for task in tasks if (task / "comm").read_text().startswith(COPIERS)]
    try:
        return ThreadFreezer(threads)
    except PermissionError as error:
        pytest.skip(f"ptrace(2) is not to be had here: {error}")


def uncached_uri() -> str:
    """A URI whose look-up waits for the storage: no request has named it before."""
    return f"/never-asked-for-{os.getpid()}-{next(UNCACHED_URIS)}"


def is_silent(v1: RawClient) -> bool:
    """Whether nothing has come that was not taken."""
    return not select.select([v1.socket], [], [], 0)[0]


@pytest.mark.parametrize("operation", [COPY, SPLICE, FDPASS, STAT, LIST, PUT, PUT_DESCRIPTOR, DELETE])
def test_a_hundred_fast_objects_overtake_a_slow_one(
    served: ServerProcess, address: str, transport: str, root: Path, operation: Operation
) -> None:
    if operation in {FDPASS, PUT_DESCRIPTOR} and transport != "unix":
        pytest.skip("descriptors pass over Unix sockets only")
    (root / "victim").write_bytes(b"x")
    with RawClientV2(address) as v2, slow_storage(served) as storage, (root / "a").open("rb") as source:
        match operation:
            case _ if operation is PUT:
                v2.send(v2.encode(PUT, "/slow", content_len=4), b"slow")
                slow = v2.next_id - 1
            case _ if operation is PUT_DESCRIPTOR:
                socket.send_fds(v2.socket, [v2.encode(PUT_DESCRIPTOR, "/slow")], [source.fileno()])
                slow = v2.next_id - 1
            case _ if operation is DELETE:
                slow = v2.ask(DELETE, "/victim")
            case _ if operation is LIST:
                slow = v2.ask(LIST, "/many/")
            case _:
                slow = v2.ask(operation, uncached_uri())
        fast = [v2.ask(*requests) for _ in range(50) for requests in ((COPY, "/small"), (STAT, "/a"))]
        assert list(v2.answers(100)) == fast
        storage.release()
        answer = v2.answer()
        assert answer.id == slow
        assert answer.status == (NOT_FOUND if operation in {COPY, SPLICE, FDPASS, STAT} else OK)
        assert (root / "victim").exists() == (operation is not DELETE)


@pytest.fixture(scope="module")
def unready(root: Path, model: Concurrency, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that finds nothing in memory, and keeps nothing there."""
    if platform.machine() not in PREADV2:
        pytest.skip(f"what preadv2(2) is called on {platform.machine()} is not known here")
    flags = ["--tcp", "127.0.0.1:0", "--concurrency-model", model, "--cache-size", "0"]
    socket_path = tmp_path_factory.mktemp("run") / "o.sock"
    with ServerProcess(root, socket_path, *flags, program="tests.support.cold_cache") as unready:
        yield unready


@pytest.mark.parametrize("operation", [COPY, SPLICE])
@pytest.mark.parametrize("name", ["small", "large", "huge"])
def test_a_content_on_the_disk_holds_nothing_up(
    unready: ServerProcess, transport: str, root: Path, operation: Operation, name: str
) -> None:
    with RawClientV2(unready.addresses[transport]) as v2, slow_storage(unready, writes=False) as storage:
        slow = v2.ask(operation, f"/{name}")
        others = [STAT, FDPASS] if transport == "unix" else [STAT]
        fast = [v2.ask(other, "/small") for _ in range(50) for other in others]
        for number in fast:
            answer = v2.answer()
            assert answer.id == number
            answer.read()
        storage.release()
        answer = v2.answer()
        assert answer.id == slow
        assert answer.read() == (root / name).read_bytes()


def test_in_version_1_a_slow_object_holds_up_its_own_connection_only(
    served: ServerProcess, address: str, model: Concurrency
) -> None:
    if model is Concurrency.THREAD_PER_CONNECTION:
        pytest.skip("there every connection has a thread of its own to wait for storage")
    with RawClient(address) as slow, RawClient(address) as fast, slow_storage(served) as storage:
        slow.send(request_one(COPY_ONE, uncached_uri()), request_one(COPY_ONE, "/a"))
        for _ in range(100):
            assert fast.ask(COPY_ONE, "/small").status == OK
        assert is_silent(slow)
        storage.release()
        assert slow.reply(COPY_ONE).status == NOT_FOUND
        assert slow.reply(COPY_ONE).status == OK


def test_an_ordered_request_overtakes_nothing(served: ServerProcess, address: str) -> None:
    with RawClientV2(address) as v2, slow_storage(served) as storage:
        slow = [v2.ask(LIST, "/many/"), v2.ask(STAT, uncached_uri())]
        fast = v2.ask(COPY, "/a")
        ordered = v2.ask(COPY, "/a", flags=ORDERED)
        behind = v2.ask(COPY, "/a")
        assert v2.answer().id == fast
        with RawClientV2(address) as other:
            # The server has had its turn, and has kept to it.
            assert other.call(COPY, "/a").status == OK
        assert is_silent(v2)
        storage.release()
        assert {v2.answer().id, v2.answer().id} == set(slow)
        assert [v2.answer().id, v2.answer().id] == [ordered, behind]


def test_an_ordered_request_may_be_overtaken(served: ServerProcess, address: str) -> None:
    with RawClientV2(address) as v2, slow_storage(served) as storage:
        ordered = v2.ask(LIST, "/many/", flags=ORDERED)
        fast = v2.ask(COPY, "/a")
        assert v2.answer().id == fast
        storage.release()
        assert v2.answer().id == ordered


@pytest.mark.parametrize("capabilities", [Capability.EXTENDED, Capability.EXTENDED | Capability.PIPELINING])
def test_without_the_capability_everything_comes_in_order(
    served: ServerProcess, address: str, capabilities: int
) -> None:
    with RawClientV2(address, capabilities) as v2, slow_storage(served) as storage:
        requests = []
        for _ in range(10):
            requests += [
                v2.ask(LIST, "/many/"),
                v2.ask(COPY, "/a"),
                v2.ask(STAT, uncached_uri()),
                v2.ask(SPLICE, "/large"),
            ]
        storage.release()
        assert list(v2.answers(40)) == requests


def test_a_request_with_priority_goes_before_those_that_wait(root: Path, model: Concurrency, tmp_path: Path) -> None:
    flags = ["--writable", "--concurrency-model", model, "--storage-pool-size", "1"]
    with (
        ServerProcess(root, tmp_path / "o.sock", *flags) as served,
        RawClientV2(served.addresses["unix"]) as v2,
        ThreadFreezer(served.threads("objmapper-storage"[:15], 1)) as storage,
    ):
        for _ in range(40):
            v2.ask(STAT, uncached_uri())
        urgent = v2.ask(STAT, uncached_uri(), flags=PRIORITY)
        behind = v2.ask(COPY, "/a")
        assert v2.answer().id == behind
        storage.release()
        # The thread may have taken one before it was held.
        assert list(v2.answers(41)).index(urgent) <= 1


def test_beyond_four_listings_the_rest_waits_unread(served: ServerProcess, address: str) -> None:
    with RawClientV2(address) as v2, slow_storage(served) as storage:
        lists = [v2.ask(LIST, "/many/") for _ in range(4)]
        fast = v2.ask(COPY, "/a")
        behind = [v2.ask(LIST, "/many/"), v2.ask(COPY, "/a")]
        assert v2.answer().id == fast
        with RawClientV2(address) as other:
            # The server has had its turn, and others are served meanwhile.
            assert other.call(COPY, "/a").status == OK
        assert is_silent(v2)
        storage.release()
        assert set(v2.answers(6)) == {*lists, *behind}


def test_the_work_of_clients_that_left_is_dropped(root: Path, model: Concurrency, tmp_path: Path) -> None:
    flags = ["--concurrency-model", model, "--storage-pool-size", "1"]
    with ServerProcess(root, tmp_path / "o.sock", *flags) as served:
        files = Path(f"/proc/{served.pid}/fd")
        with ThreadFreezer(served.threads("objmapper-storage"[:15], 1)) as storage:
            before = len(list(files.iterdir()))
            for operation in (LIST, STAT):
                for _ in range(8):
                    with RawClientV2(served.addresses["unix"]) as disconnected:
                        for _ in range(40):
                            disconnected.ask(operation, "/many/" if operation == LIST else uncached_uri())
                        if operation == STAT:
                            fast = disconnected.ask(COPY, "/a")
                            assert disconnected.answer().id == fast
            # Work that waits keeps its connection open. The thread may have taken one piece before it was held.
            assert eventually(lambda: len(list(files.iterdir())) <= before + 1)
            storage.release()
        with RawClientV2(served.addresses["unix"]) as v2:
            assert v2.call(LIST, "/many/").status == OK


@pytest.mark.parametrize(("operation", "count"), [(COPY, 16), (SPLICE, 48), (STAT, 48)])
def test_listings_leave_room_for_the_requests_behind_them(
    served: ServerProcess, address: str, operation: Operation, count: int
) -> None:
    with RawClientV2(address) as v2, slow_storage(served) as storage:
        listings = [v2.ask(LIST, "/many/") for _ in range(4)]
        slow = [v2.ask(operation, uncached_uri()) for _ in range(count)]
        fast = v2.ask(COPY, "/a")
        assert v2.answer().id == fast
        storage.release()
        assert set(v2.answers(4 + count)) == {*listings, *slow}


@pytest.mark.parametrize("most", [1, 2, 8, 1000])
def test_more_ahead_than_agreed_in_one_packet_is_an_error(address: str, most: int) -> None:
    with RawClientV2(address, max_pipeline=most) as v2:
        requests = [v2.next_id + number for number in range(most)]
        v2.send(*(v2.encode(COPY, "/a") for _ in range(most + 1)))
        v2.expect(0)
        assert [v2.answer().id for _ in range(most)] == requests
        refused = v2.answer()
        assert refused.id == 0
        assert refused.fails(CAPABILITY_ERROR)
        assert v2.is_closed()


@pytest.mark.parametrize("most", [1, 2, 8, 1000])
def test_as_many_ahead_as_agreed_are_answered_again_and_again(address: str, most: int) -> None:
    with RawClientV2(address, max_pipeline=most) as v2:
        for _ in range(5):
            v2.send(*(v2.encode(COPY, "/a") for _ in range(most)))
            assert all(answer.status == OK for answer in v2.answers(most).values())


def test_the_window_slides(address: str) -> None:
    with RawClientV2(address, max_pipeline=16) as v2:
        for _ in range(16):
            v2.ask(COPY, "/a")
        for _ in range(500):
            assert v2.answer().status == OK
            v2.ask(STAT, "/a")
        assert all(answer.status == OK for answer in v2.answers(16).values())


def test_requests_in_flight_count_against_the_window(served: ServerProcess, address: str) -> None:
    with RawClientV2(address, max_pipeline=4) as v2, slow_storage(served) as storage:
        slow = [v2.ask(LIST, "/many/") for _ in range(3)]
        for _ in range(10):
            assert v2.call(COPY, "/a").status == OK
        slow.append(v2.ask(LIST, "/many/"))
        with RawClientV2(address) as other:
            assert other.call(COPY, "/a").status == OK
        too_many = v2.ask(COPY, "/a")
        v2.expect(0)
        refused = v2.answer()
        assert refused.id == 0
        assert refused.fails(CAPABILITY_ERROR)
        storage.release()
        # What was under way is still answered.
        assert set(v2.answers(4)) == set(slow)
        assert v2.is_closed()
        assert list(v2.pending) == [too_many]


def test_more_requests_than_one_client_may_have_with_storage_all_come(served: ServerProcess, address: str) -> None:
    with RawClientV2(address) as v2:
        with slow_storage(served) as storage:
            v2.send(*(v2.encode(LIST, "/many/") for _ in range(900)), *(v2.encode(COPY, "/a") for _ in range(100)))
            storage.release()
        assert set(v2.answers(1000)) == set(range(1, 1001))


@pytest.mark.parametrize("reason", [0, 1, 2, 3, 77])
def test_a_close_says_how_many_are_not_answered_and_they_still_are(
    served: ServerProcess, address: str, reason: int
) -> None:
    with RawClientV2(address) as v2, slow_storage(served) as storage:
        slow = [v2.ask(LIST, "/many/"), v2.ask(STAT, uncached_uri()), v2.ask(COPY, uncached_uri())]
        fast = v2.ask(COPY, "/a")
        v2.send(encode_close(reason))
        assert v2.answer().id == fast
        assert v2.next() == CloseAck(3)
        storage.release()
        assert set(v2.answers(3)) == set(slow)
        assert v2.is_closed()


def test_a_close_ends_an_idle_connection(address: str) -> None:
    with RawClientV2(address) as v2:
        assert v2.call(COPY, "/a").status == OK
        v2.send(bytes([CLOSE]))
        v2.send(b"\0")
        assert v2.next() == CloseAck(0)
        assert v2.is_closed()


def test_what_follows_a_close_is_not_answered(address: str) -> None:
    with RawClientV2(address) as v2:
        v2.send(encode_close(0), v2.encode(COPY, "/a"), b"\xff" * 100)
        assert v2.next() == CloseAck(0)
        assert v2.is_closed()


def test_a_client_that_ends_its_side_is_answered_when_storage_is_ready(served: ServerProcess, address: str) -> None:
    with RawClientV2(address) as v2, slow_storage(served) as storage:
        slow = {v2.ask(LIST, "/many/"), v2.ask(STAT, uncached_uri())}
        fast = v2.ask(COPY, "/a")
        v2.send(b"\1\0\0")
        v2.socket.shutdown(socket.SHUT_WR)
        assert v2.answer().id == fast
        storage.release()
        assert set(v2.answers(2)) == slow
        assert v2.is_closed()


def test_clients_that_vanish_while_storage_is_slow_cost_nothing(
    served: ServerProcess, address: str, transport: str
) -> None:
    with RawClientV2(address) as v2:
        assert v2.call(COPY, "/a").status == OK
    before = descriptors_of(served.pid)
    with slow_storage(served) as storage:
        disconnected = [RawClientV2(address) for _ in range(20)]
        for v2 in disconnected:
            for number in range(16):
                v2.ask(FDPASS if transport == "unix" else SPLICE, uncached_uri())
                if number % 4 == 0:
                    v2.ask(LIST, "/many/")
            fast = v2.ask(COPY, "/a")
            # A pool that is short of time may have refused some of the others.
            while v2.answer().id != fast:
                pass
            v2.close()
        storage.release()
    assert eventually(lambda: descriptors_of(served.pid) <= before), (before, descriptors_of(served.pid))
