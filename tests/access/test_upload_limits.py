"""What one user may be sending, and may have reserved of the disk: its own share, given back however a put ends."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objmapper_server import Concurrency, Server
from tests.access.conftest import needs_other_users, serving, unix
from tests.support import file_systems
from tests.support.eventually import eventually
from tests.support.raw_client import INVALID_REQUEST, NOT_FOUND, OK, TIMEOUT, UNAVAILABLE
from tests.support.raw_client_v2 import CONFLICT, PUT, STORAGE_ERROR, RawClientV2
from tests.support.users import OtherUser

MAX_UPLOADS, RESERVED = 2, 2 << 20
SIZE = 32 << 20
#: What a file system adds to a file that has been written to.
SLACK = 128 << 10


@contextlib.contextmanager
def uploading(shared_directory: Path, writable_root: Path, model: Concurrency, **settings: object) -> Iterator[Server]:
    settings = {"max_uploads_per_uid": MAX_UPLOADS, "max_reserved_per_uid": RESERVED} | settings
    with serving(shared_directory, model, root=writable_root, writable=True, **settings) as server:
        yield server


def begin(v2: RawClientV2, uri: str, length: int = SIZE, **parameters: Any) -> RawClientV2:
    """Announces a content and sends the first byte of it."""
    v2.send(v2.encode(PUT, uri, content_len=length, **parameters), b"x")
    return v2


def may_begin(connection: socket.socket) -> bool:
    """Whether the user of this new connection may send one content more."""
    with RawClientV2(connection) as v2:
        begin(v2, "/asked", 2)
        v2.socket.settimeout(0.2)
        try:
            return not v2.answer().fails(UNAVAILABLE)
        except TimeoutError:
            v2.socket.settimeout(20)
            v2.send(b"y")
            return v2.answer().status == OK


def reserved() -> int:
    """Bytes that unfinished files of this process have of the disk."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "(deleted)" in os.readlink(entry):
                total += entry.stat().st_blocks * 512
    return total


@needs_other_users
def test_one_user_has_as_many_uploads_as_one_may_have_and_another_its_own(
    shared_directory: Path, writable_root: Path, model: Concurrency, alice: OtherUser, bob: OtherUser
) -> None:
    with uploading(shared_directory, writable_root, model) as server, contextlib.ExitStack() as stack:
        for number in range(MAX_UPLOADS):
            begin(stack.enter_context(RawClientV2(alice.connect(unix(server)))), f"/alice-{number}")
        # Another connection's request may overtake them until then.
        assert eventually(lambda: server.statistics().uploads_in_flight == MAX_UPLOADS)
        with RawClientV2(alice.connect(unix(server))) as more:
            begin(more, "/alice-more", 2)
            refusal = more.answer()
            assert refusal.fails(UNAVAILABLE)
            assert "uploads" in (refusal.metadata.message or "")
            # The connection goes on behind the content that was refused, and what comes in one piece is no upload.
            more.send(b"y")
            assert more.put("/alice-small", b"small").status == OK
        assert may_begin(bob.connect(unix(server)))
        assert not may_begin(alice.connect(unix(server)))
    assert not (writable_root / "alice-more").exists()


@needs_other_users
def test_one_users_reservations_leave_another_its_own(
    shared_directory: Path, writable_root: Path, model: Concurrency, alice: OtherUser, bob: OtherUser
) -> None:
    before = reserved()
    with uploading(shared_directory, writable_root, model) as server, contextlib.ExitStack() as stack:
        uploads = [
            begin(stack.enter_context(RawClientV2(alice.connect(unix(server)))), f"/alice-{n}")
            for n in range(MAX_UPLOADS)
        ]
        assert eventually(lambda: reserved() - before >= RESERVED)
        assert reserved() - before <= RESERVED + MAX_UPLOADS * SLACK
        begin(stack.enter_context(RawClientV2(bob.connect(unix(server)))), "/bob")
        assert eventually(lambda: reserved() - before >= 2 * RESERVED)
        assert reserved() - before <= 2 * RESERVED + 3 * SLACK
        # What has come is no longer reserved: all of it is stored, though it is more than may be reserved at once.
        for v2 in uploads:
            v2.send(bytes(SIZE - 1))
        for number, v2 in enumerate(uploads):
            assert v2.answer().status == OK
            assert (writable_root / f"alice-{number}").stat().st_size == SIZE
    assert eventually(lambda: reserved() <= before)


def succeed(v2: RawClientV2) -> None:
    begin(v2, "/done", 1 << 20).send(bytes((1 << 20) - 1))
    assert v2.answer().status == OK


def lose(v2: RawClientV2) -> None:
    """The condition does not hold when the content is there."""
    begin(v2, "/open/a", 100, if_none_match="*").send(bytes(99))
    assert v2.answer().fails(CONFLICT)


def fail_at_once(v2: RawClientV2) -> None:
    begin(v2, "/no/such/directory", 100)
    assert v2.answer().fails(NOT_FOUND)
    v2.send(bytes(99))


def fail_unfinished(v2: RawClientV2) -> None:
    """The rest of the content never comes: the share is given back as soon as the client hears of it."""
    begin(v2, "/no/such/directory", SIZE)
    assert v2.answer().fails(NOT_FOUND)


def be_refused(v2: RawClientV2) -> None:
    begin(v2, "/a//b", 100)
    assert v2.answer().fails(INVALID_REQUEST)
    v2.send(bytes(99))


def disconnect(v2: RawClientV2) -> None:
    begin(v2, "/vanished").close()


def reset_connection(v2: RawClientV2) -> None:
    """Closed while the answer to another request lies unread."""
    begin(v2, "/vanished").send(bytes(300_000))
    v2.close()


def send_slowly(v2: RawClientV2) -> None:
    begin(v2, "/late")
    assert v2.answer().fails(TIMEOUT)


ENDS = [succeed, lose, fail_at_once, fail_unfinished, be_refused, disconnect, reset_connection, send_slowly]


@needs_other_users
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_share_is_given_back_however_a_put_ends(
    shared_directory: Path,
    writable_root: Path,
    model: Concurrency,
    alice: OtherUser,
    end: Callable[[RawClientV2], None],
) -> None:
    settings = {"request_timeout": 1} if end is send_slowly else {}
    before = reserved()
    with (
        uploading(shared_directory, writable_root, model, max_uploads_per_uid=1, **settings) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(3):
            v2 = stack.enter_context(RawClientV2(alice.connect(unix(server))))
            end(v2)
            if end in {disconnect, reset_connection, send_slowly}:
                # A client that has gone hears of nothing.
                assert eventually(lambda: may_begin(alice.connect(unix(server))))
            else:
                assert may_begin(alice.connect(unix(server)))
        assert eventually(lambda: reserved() <= before)


@needs_other_users
@pytest.mark.skipif(file_systems.why_not() != "", reason=file_systems.why_not() or "file systems can be mounted")
def test_a_share_is_given_back_where_the_disk_is_full(shared_directory: Path, alice: OtherUser, bob: OtherUser) -> None:
    with (
        file_systems.tmpfs() as full,
        uploading(shared_directory, full, Concurrency.EPOLL, max_uploads_per_uid=1) as server,
    ):
        for _ in range(3):
            with RawClientV2(alice.connect(unix(server))) as v2:
                begin(v2, "/too-large", 1 << 30)
                refusal = v2.answer()
                assert refusal.fails(STORAGE_ERROR)
                assert "no space left" in (refusal.metadata.message or "")
                assert may_begin(alice.connect(unix(server)))
        assert may_begin(bob.connect(unix(server)))
        assert sorted(path.name for path in full.iterdir()) == [".objmapper", "asked"]
