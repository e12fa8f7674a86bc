"""How much one user may have of a server: connections, descriptors that were not read, writes that are under way."""

import contextlib
import socket
from pathlib import Path

from objmapper_server import Concurrency, Config, Server
from tests.access.conftest import needs_other_users, serving, unix
from tests.support.eventually import eventually
from tests.support.raw_client import COPY, FDPASS, OK, UNAVAILABLE, RawClient, request
from tests.support.raw_client_v2 import COPY as COPY_TWO
from tests.support.raw_client_v2 import FDPASS as FDPASS_TWO
from tests.support.raw_client_v2 import PUT, STAT, RawClientV2
from tests.support.users import OtherUser


@needs_other_users
def test_one_user_has_as_many_connections_as_one_may_have(
    root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser, bob: OtherUser
) -> None:
    with serving(shared_directory, model, max_connections_per_uid=2) as server:
        with RawClient(alice.connect(unix(server))) as first, RawClient(alice.connect(unix(server))) as second:
            assert first.ask(COPY, "/open/a").status == second.ask(COPY, "/open/a").status == OK
            with RawClient(alice.connect(unix(server))) as third:
                assert third.reply(COPY).status == UNAVAILABLE
                assert third.at_end()
            with RawClient(bob.connect(unix(server))) as other:
                assert other.ask(COPY, "/open/a").status == OK
        assert eventually(lambda: server.statistics().connections == 0)
        with RawClient(alice.connect(unix(server))) as again:
            assert again.ask(COPY, "/open/a").status == OK
        statistics = server.statistics()
        assert statistics.denied_total == {"connections": 1, "descriptors": 0, "prefix": 0, "user": 0}
        # It is a want of room, too.
        assert statistics.rejected_total == 1


@needs_other_users
def test_what_a_user_has_left_unread_counts_as_its_connection(
    root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser, bob: OtherUser
) -> None:
    with serving(shared_directory, model, max_connections_per_uid=2) as server:
        with RawClient(alice.connect(unix(server))) as first, RawClient(alice.connect(unix(server))) as second:
            for v1 in (first, second):
                v1.send(request(FDPASS, "/open/a"))
                v1.socket.shutdown(socket.SHUT_WR)
            assert eventually(lambda: server.statistics().requests_total == 2)
            with RawClient(alice.connect(unix(server))) as third:
                assert third.reply(COPY).status == UNAVAILABLE
            with RawClient(bob.connect(unix(server))) as other:
                assert other.ask(COPY, "/open/a").status == OK
        assert eventually(lambda: server.statistics().connections == 0)
        with RawClient(alice.connect(unix(server))) as again:
            assert again.ask(COPY, "/open/a").status == OK


@needs_other_users
def test_one_user_has_as_many_unread_descriptors_as_one_may_have(
    root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser, bob: OtherUser
) -> None:
    with serving(shared_directory, model, max_descriptors_per_uid=3) as server:
        one, v2 = RawClient(alice.connect(unix(server))), RawClientV2(alice.connect(unix(server)))
        with one, v2:
            one.send(request(FDPASS, "/open/a") * 2)
            assert eventually(lambda: server.statistics().requests_total == 2)
            # Of the other version, on another connection: one more, and no further.
            v2.send(b"".join(v2.encode(FDPASS_TWO, "/open/a") for _ in range(3)))
            first, *others = (answer for _, answer in sorted(v2.answers(3).items()))
            assert first.read() == b"open/a"
            assert [answer.status for answer in others] == [UNAVAILABLE] * 2
            # Requests without descriptors go on, and so do other users' requests.
            assert v2.call(STAT, "/open/a").status == OK
            with RawClient(bob.connect(unix(server))) as other:
                assert [other.ask(FDPASS, "/open/a").read() for _ in range(10)] == [b"open/a"] * 10
            # Once they are read, there is room again, whichever connection they were read from.
            assert [one.reply(FDPASS).read() for _ in range(2)] == [b"open/a"] * 2
            assert eventually(lambda: read_one(v2))
        assert server.statistics().denied_total["descriptors"] >= 2
        assert eventually(lambda: server.statistics().descriptors_in_flight == 0)


def test_the_limit_holds_for_clients_that_do_not_read(root: Path, shared_directory: Path, model: Concurrency) -> None:
    with serving(shared_directory, model, max_descriptors_per_uid=20) as server, RawClient(unix(server)) as v1:
        v1.send(request(FDPASS, "/open/a") * 10)
        for _ in range(500):
            # There is always something on its way, but never as much as one may have.
            assert v1.reply(FDPASS).read() == b"open/a"
            v1.send(request(FDPASS, "/open/a"))
        assert server.statistics().denied_total["descriptors"] == 0


@needs_other_users
def test_the_cap_counts_what_writes_have_open(
    writable_root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser, bob: OtherUser
) -> None:
    """Two for a content that comes in: the new file, and the directory that it is for."""
    with serving(shared_directory, model, root=writable_root, max_descriptors_per_uid=5, writable=True) as server:

        def open_now() -> int:
            return server.statistics().descriptors_in_flight

        with contextlib.ExitStack() as stack:
            stalled = [stack.enter_context(RawClientV2(alice.connect(unix(server)))) for _ in range(2)]
            for v2 in stalled:
                v2.send(v2.encode(PUT, "/open/stalled", content_len=10))
            assert eventually(lambda: open_now() == 4)
            third = stack.enter_context(RawClientV2(alice.connect(unix(server))))
            # One more descriptor may be out, but no write begins, also where its content is here as a whole.
            for content in (b"", b"content"):
                third.send(third.encode(PUT, "/open/new", content_len=7), content)
                assert third.answer().fails(UNAVAILABLE)
                third.send(b"" if content else b"content")
            third.send(third.encode(FDPASS_TWO, "/open/a"))
            assert eventually(lambda: open_now() == 5)
            with RawClientV2(alice.connect(unix(server))) as fourth:
                assert fourth.call(FDPASS_TWO, "/open/a").fails(UNAVAILABLE)
                assert put_descriptor(fourth, "/open/passed", writable_root / "open" / "a") == UNAVAILABLE
                assert fourth.call(COPY_TWO, "/open/a").read() == b"open/a"
            with RawClientV2(bob.connect(unix(server))) as other:
                assert other.call(FDPASS_TWO, "/open/a").read() == b"open/a"
                other.send(other.encode(PUT, "/open/new", content_len=1), b"b")
                assert other.answer().status == OK
            # A client that finishes its writes, or takes what it asked for, may have others.
            assert third.answer().read() == b"open/a"
            stalled[0].send(b"0123456789")
            assert stalled[0].answer().status == OK
            third.send(third.encode(PUT, "/open/new", content_len=1), b"a")
            assert third.answer().status == OK
            assert put_descriptor(third, "/open/passed", writable_root / "open" / "a") == OK
        assert eventually(lambda: open_now() == 0)
        assert server.statistics().denied_total["descriptors"] >= 4


@needs_other_users
def test_no_cap_forbids_a_write_altogether(
    writable_root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser
) -> None:
    with serving(shared_directory, model, root=writable_root, max_descriptors_per_uid=1, writable=True) as server:
        for number in range(20):
            with RawClientV2(alice.connect(unix(server))) as v2:
                v2.send(v2.encode(PUT, f"/open/{number}", content_len=3))
                v2.send(b"abc")
                assert v2.answer().status == OK
                assert put_descriptor(v2, f"/open/{number}", writable_root / "open" / "a") == OK
        assert eventually(lambda: server.statistics().descriptors_in_flight == 0)


def put_descriptor(v2: RawClientV2, uri: str, source: Path) -> int:
    with source.open("rb") as file:
        return v2.put_descriptor(uri, file.fileno()).status


@needs_other_users
def test_a_client_that_reads_is_not_slowed_by_the_limit(
    root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser
) -> None:
    with serving(shared_directory, model, max_descriptors_per_uid=4) as server:
        connections = [RawClient(alice.connect(unix(server))) for _ in range(8)]
        with contextlib.ExitStack() as stack:
            for v1 in connections:
                stack.enter_context(v1)
            for _ in range(100):
                for v1 in connections:
                    # What was read last may not have been noticed, for the blink of an eye.
                    assert eventually(lambda v1=v1: read_one(v1))  # type: ignore[misc]


def read_one(client: RawClient | RawClientV2) -> bool:
    """Whether a descriptor came; else there was no room for it."""
    reply = client.call(FDPASS_TWO, "/open/a") if isinstance(client, RawClientV2) else client.ask(FDPASS, "/open/a")
    return reply.status != UNAVAILABLE and reply.read() == b"open/a"


def test_a_later_descriptor_limit_counts_open_descriptors(root: Path, shared_directory: Path) -> None:
    file = shared_directory / "later.toml"
    file.write_text("")
    flags = {"root": root, "unix": shared_directory / "later", "admin": "none"}
    with Server(Config.load(file, environment=False, **flags)) as server, RawClient(unix(server)) as v1:
        v1.send(request(FDPASS, "/open/a") * 5)
        assert eventually(lambda: server.statistics().requests_total == 5)
        file.write_text("max_descriptors_per_uid = 5\n")
        server.reload()
        v1.send(request(FDPASS, "/open/a"))
        assert eventually(lambda: server.statistics().requests_total == 6)
        assert [v1.reply(FDPASS).read() for _ in range(5)] == [b"open/a"] * 5
        assert v1.reply(FDPASS).status == UNAVAILABLE
        file.write_text("")
        server.reload()
        assert v1.ask(FDPASS, "/open/a").read() == b"open/a"
    with serving(shared_directory) as server:
        assert server.statistics().descriptors_in_flight == 0


def test_a_cap_that_comes_later_counts_writes_that_are_under_way(writable_root: Path, shared_directory: Path) -> None:
    file = shared_directory / "later.toml"
    file.write_text("")
    flags = {"root": writable_root, "unix": shared_directory / "later", "admin": "none", "writable": True}
    with Server(Config.load(file, environment=False, **flags)) as server, RawClientV2(unix(server)) as v2:
        v2.send(v2.encode(PUT, "/open/stalled", content_len=10))
        assert eventually(lambda: server.statistics().descriptors_in_flight == 2)
        file.write_text("max_descriptors_per_uid = 2\n")
        server.reload()
        with RawClientV2(unix(server)) as other:
            # A session looks at new rules at its next turn, or within a second.
            v2.send(b"01234")
            assert eventually(lambda: not read_one(other))
            v2.send(b"56789")
            assert v2.answer().status == OK
            assert other.call(FDPASS_TWO, "/open/a").read() == b"open/a"
        file.write_text("")
        server.reload()
        assert server.statistics().descriptors_in_flight == 0
