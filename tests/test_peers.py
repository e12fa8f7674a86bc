"""Who may connect, to what, and how much one user may have of it: in every model, both versions and every operation."""

import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import Client, PermissionDenied, ServerBusy
from objmapper_server import Concurrency, Config, Server
from tests import nobody, somebody
from tests.eventually import eventually
from tests.somebody import Somebody
from tests.version_two.client import COPY as COPY_TWO
from tests.version_two.client import DELETE, EXTENDED, LIST, PLAIN, PUT, STAT, Two
from tests.version_two.client import FDPASS as FDPASS_TWO
from tests.version_two.conftest import MODELS
from tests.wire import COPY, FDPASS, FORBIDDEN, OK, SPLICE, UNAVAILABLE, Wire, request

#: Alice is named herself, Bob belongs to a group that is, besides his own; nobody has named Mallory.
ALICE, BOB, MALLORY, FRIENDS = 40001, 40002, 40003, 50001
OBJECTS = ("open/a", "shut/x", "shut/sub/y", "shut/hole/z", "shutter")
RULES = {"/shut": [f"uid:{ALICE}"], "/shut/hole": [f"uid:{ALICE}", f"gid:{FRIENDS}"]}

NUMBERS = itertools.count()

needs_others = pytest.mark.skipif(somebody.why_not() != "", reason=somebody.why_not())


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="objmapper-peers-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def root(place: Path) -> Path:
    root = place / "root"
    for name in OBJECTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture
def written(place: Path) -> Iterator[Path]:
    """A root that may be written to."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        (Path(name) / "open").mkdir()
        (Path(name) / "open" / "a").write_bytes(b"open/a")
        yield Path(name)


@pytest.fixture(scope="module")
def alice() -> Iterator[Somebody]:
    with Somebody(ALICE, ALICE) as alice:
        yield alice


@pytest.fixture(scope="module")
def bob() -> Iterator[Somebody]:
    with Somebody(BOB, BOB, 49999, FRIENDS) as bob:
        yield bob


@pytest.fixture(scope="module")
def mallory() -> Iterator[Somebody]:
    with Somebody(MALLORY, MALLORY, 49999) as mallory:
        yield mallory


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> Concurrency:
    return Concurrency(request.param)


@contextlib.contextmanager
def serving(place: Path, model: Concurrency = Concurrency.EPOLL, **settings: object) -> Iterator[Server]:
    """A server to whose socket everybody has the permissions."""
    given = {"root": place / "root", "unix": place / f"s{next(NUMBERS)}", "unix_mode": 0o666, "admin": None} | settings
    with Server(Config(**given, concurrency_model=model)) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture(scope="module")
def server(root: Path, place: Path, model: Concurrency, alice: Somebody) -> Iterator[Server]:
    with serving(
        place,
        model,
        tcp="127.0.0.1:0",
        writable=True,
        allow_uid=[ALICE],
        allow_gid=[FRIENDS],
        allow_prefix=RULES,
    ) as server:
        # Once it has answered, it has opened all that it needs: what is open after a test was opened by it.
        with Wire(alice.connect(unix(server))) as first, Wire(server.addresses["tcp"]) as second:
            assert first.ask(COPY, "/open/a").status == second.ask(COPY, "/open/a").status == OK
        yield server


def unix(server: Server) -> str:
    return server.addresses["unix"]


@needs_others
def test_whoever_is_not_named_is_told_so_and_let_go(server: Server, mallory: Somebody) -> None:
    before = server.statistics().denied_total["user"]
    for ahead in (b"", request(COPY, "/open/a") * 100):
        # The last of it may find the server gone: the word is there all the same.
        with Wire(mallory.connect(unix(server))) as wire, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(ahead)
            reply = wire.reply(COPY)
            assert reply.status == FORBIDDEN
            assert b"allow_uid" in reply.content
            assert wire.at_end()
    assert server.statistics().denied_total["user"] == before + 2
    assert server.statistics().rejected_total == 0


@needs_others
def test_root_is_no_exception(server: Server) -> None:
    with pytest.raises(PermissionDenied, match="this user may not connect"), Client(unix(server)) as client:
        client.read("/open/a")


@needs_others
def test_users_and_members_of_groups_are_let_in(server: Server, alice: Somebody, bob: Somebody) -> None:
    for known in (alice, bob):
        with Wire(known.connect(unix(server))) as wire:
            assert [wire.ask(mode, "/open/a").read() for mode in (FDPASS, COPY, SPLICE)] == [b"open/a"] * 3
        with Two(known.connect(unix(server))) as two:
            assert two.call(FDPASS_TWO, "/open/a").read() == b"open/a"


@needs_others
@pytest.mark.parametrize("uri", ["/shut/x", "shut/x", "/shut/sub/y", "/shut/is-not-there", "/shut"])
def test_what_is_shut_is_forbidden_in_version_1_whatever_is_there(
    server: Server, alice: Somebody, bob: Somebody, uri: str
) -> None:
    with Wire(bob.connect(unix(server))) as wire:
        for mode in (FDPASS, COPY, SPLICE):
            reply = wire.ask(mode, uri)
            assert reply.status == FORBIDDEN
            assert b"allow_prefix" in reply.content
        assert wire.ask(COPY, "/shut/hole/z").read() == b"shut/hole/z"
        assert wire.ask(COPY, "/shutter").read() == b"shutter"
    with Wire(alice.connect(unix(server))) as wire:
        assert wire.ask(COPY, uri).status == wire.ask(COPY, uri).status
        assert wire.ask(COPY, "/shut/x").read() == b"shut/x"


@needs_others
@pytest.mark.parametrize("capabilities", [PLAIN, EXTENDED])
def test_what_is_shut_is_forbidden_in_version_2(server: Server, bob: Somebody, capabilities: int) -> None:
    with Two(bob.connect(unix(server)), capabilities) as two:
        for operation in (FDPASS_TWO, *((STAT, DELETE) if capabilities == EXTENDED else ())):
            assert two.call(operation, "/shut/x").fails(FORBIDDEN)
        assert two.call(FDPASS_TWO, "/shut/hole/z").read() == b"shut/hole/z"


@needs_others
def test_nothing_is_written_to_what_is_shut(server: Server, root: Path, bob: Somebody, alice: Somebody) -> None:
    with Two(bob.connect(unix(server))) as two, (root / "open" / "a").open("rb") as source:
        assert two.put("/shut/new", b"content" * 100_000).fails(FORBIDDEN)
        assert two.put_descriptor("/shut/new", source.fileno()).fails(FORBIDDEN)
        assert two.call(DELETE, "/shut/x").fails(FORBIDDEN)
        assert two.put("/shut/hole/new", b"content").status == OK
        assert two.call(DELETE, "/shut/hole/new").status == OK
    with Two(alice.connect(unix(server))) as two:
        assert two.put("/shut/new", b"content").status == OK
        assert two.call(DELETE, "/shut/new").status == OK
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == sorted(OBJECTS)


@needs_others
def test_a_listing_has_what_one_may_use(server: Server, alice: Somebody, bob: Somebody) -> None:
    def listed(two: Two, prefix: str, limit: int) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            answer = two.call(LIST, prefix, limit=limit, **({} if cursor is None else {"cursor": cursor}))
            found += [entry.uri for entry in answer.entries()]
            cursor = answer.metadata.cursor
            if cursor is None:
                return found

    with Two(alice.connect(unix(server))) as two:
        assert listed(two, "/", 1) == sorted(f"/{name}" for name in OBJECTS)
    with Two(bob.connect(unix(server))) as two:
        for limit in (1, 100):
            assert listed(two, "/", limit) == ["/open/a", "/shut/hole/z", "/shutter"]
            assert listed(two, "/shut/", limit) == ["/shut/hole/z"]
            assert listed(two, "/shut/hole/", limit) == ["/shut/hole/z"]
        assert two.call(LIST, "/shut/sub/").fails(FORBIDDEN)
        assert two.call(LIST, "/shut/x").fails(FORBIDDEN)


@needs_others
def test_where_there_are_no_users_what_is_shut_stays_so(server: Server) -> None:
    with Wire(server.addresses["tcp"]) as wire:
        assert wire.ask(COPY, "/shut/hole/z").status == FORBIDDEN
        assert wire.ask(COPY, "/open/a").read() == b"open/a"
    with Two(server.addresses["tcp"]) as two:
        assert two.call(STAT, "/shut/x").fails(FORBIDDEN)
        assert [entry.uri for entry in two.call(LIST, "/").entries()] == ["/open/a", "/shutter"]


@pytest.mark.parametrize("model", [Concurrency.EPOLL, Concurrency.THREAD_POOL, Concurrency.WORK_STEALING], ids=str)
def test_nor_does_udp_have_users(root: Path, place: Path, model: Concurrency) -> None:
    with (
        serving(place, Concurrency.EPOLL, udp="127.0.0.1:0", allow_prefix=RULES) as server,
        Client(server.addresses["udp"]) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
    ):
        server.set_concurrency(udp=model)
        assert client.read("/open/a") == b"open/a"
        for forbidden in (client.read, client.stat):
            with pytest.raises(PermissionDenied):
                forbidden("/shut/hole/z")
        host, _, port = server.addresses["udp"].removeprefix("udp://").rpartition(":")
        plain.settimeout(20)
        plain.connect((host, int(port)))
        plain.send(request(COPY, "/shut/hole/z"))
        assert plain.recv(65536)[0] == FORBIDDEN


@needs_others
def test_one_user_has_as_many_connections_as_one_may_have(
    root: Path, place: Path, model: Concurrency, alice: Somebody, bob: Somebody
) -> None:
    with serving(place, model, max_connections_per_uid=2) as server:
        with Wire(alice.connect(unix(server))) as first, Wire(alice.connect(unix(server))) as second:
            assert first.ask(COPY, "/open/a").status == second.ask(COPY, "/open/a").status == OK
            with Wire(alice.connect(unix(server))) as third:
                assert third.reply(COPY).status == UNAVAILABLE
                assert third.at_end()
            with Wire(bob.connect(unix(server))) as other:
                assert other.ask(COPY, "/open/a").status == OK
        assert eventually(lambda: server.statistics().connections == 0)
        with Wire(alice.connect(unix(server))) as again:
            assert again.ask(COPY, "/open/a").status == OK
        statistics = server.statistics()
        assert statistics.denied_total == {"connections": 1, "descriptors": 0, "prefix": 0, "user": 0}
        # It is a want of room, too.
        assert statistics.rejected_total == 1


@needs_others
def test_one_user_has_as_many_unread_descriptors_as_one_may_have(
    root: Path, place: Path, model: Concurrency, alice: Somebody, bob: Somebody
) -> None:
    with serving(place, model, max_descriptors_per_uid=3) as server:
        one, two = Wire(alice.connect(unix(server))), Two(alice.connect(unix(server)))
        with one, two:
            one.send(request(FDPASS, "/open/a") * 2)
            assert eventually(lambda: server.statistics().requests_total == 2)
            # Of the other version, on another connection: one more, and no further.
            two.send(b"".join(two.encode(FDPASS_TWO, "/open/a") for _ in range(3)))
            first, *others = (answer for _, answer in sorted(two.answers(3).items()))
            assert first.read() == b"open/a"
            assert [answer.status for answer in others] == [UNAVAILABLE] * 2
            # What needs no descriptor goes on, and so does everybody else.
            assert two.call(STAT, "/open/a").status == OK
            with Wire(bob.connect(unix(server))) as other:
                assert [other.ask(FDPASS, "/open/a").read() for _ in range(10)] == [b"open/a"] * 10
            # Once they are read, there is room again, whichever connection they were read from.
            assert [one.reply(FDPASS).read() for _ in range(2)] == [b"open/a"] * 2
            assert eventually(lambda: read_one(two))
        assert server.statistics().denied_total["descriptors"] >= 2
        assert eventually(lambda: server.statistics().descriptors_in_flight == 0)


def test_the_cap_is_for_those_who_do_not_read(root: Path, place: Path, model: Concurrency) -> None:
    with serving(place, model, max_descriptors_per_uid=20) as server, Wire(unix(server)) as wire:
        wire.send(request(FDPASS, "/open/a") * 10)
        for _ in range(500):
            # There is always something on its way, but never as much as one may have.
            assert wire.reply(FDPASS).read() == b"open/a"
            wire.send(request(FDPASS, "/open/a"))
        assert server.statistics().denied_total["descriptors"] == 0


@needs_others
def test_the_cap_counts_what_writes_have_open(
    written: Path, place: Path, model: Concurrency, alice: Somebody, bob: Somebody
) -> None:
    """Two for a content that comes in: the new file, and the directory that it is for."""
    with serving(place, model, root=written, max_descriptors_per_uid=5, writable=True) as server:

        def open_now() -> int:
            return server.statistics().descriptors_in_flight

        with contextlib.ExitStack() as stack:
            stalled = [stack.enter_context(Two(alice.connect(unix(server)))) for _ in range(2)]
            for two in stalled:
                two.send(two.encode(PUT, "/open/stalled", content_len=10))
            assert eventually(lambda: open_now() == 4)
            third = stack.enter_context(Two(alice.connect(unix(server))))
            # One more descriptor may be out, but no write begins, also where its content is here as a whole.
            for content in (b"", b"content"):
                third.send(third.encode(PUT, "/open/new", content_len=7), content)
                assert third.answer().fails(UNAVAILABLE)
                third.send(b"" if content else b"content")
            third.send(third.encode(FDPASS_TWO, "/open/a"))
            assert eventually(lambda: open_now() == 5)
            with Two(alice.connect(unix(server))) as fourth:
                assert fourth.call(FDPASS_TWO, "/open/a").fails(UNAVAILABLE)
                assert put_descriptor(fourth, "/open/passed", written / "open" / "a") == UNAVAILABLE
                assert fourth.call(COPY_TWO, "/open/a").read() == b"open/a"
            with Two(bob.connect(unix(server))) as other:
                assert other.call(FDPASS_TWO, "/open/a").read() == b"open/a"
                other.send(other.encode(PUT, "/open/new", content_len=1), b"b")
                assert other.answer().status == OK
            # Whoever finishes its writes, or takes what it asked for, may have others.
            assert third.answer().read() == b"open/a"
            stalled[0].send(b"0123456789")
            assert stalled[0].answer().status == OK
            third.send(third.encode(PUT, "/open/new", content_len=1), b"a")
            assert third.answer().status == OK
            assert put_descriptor(third, "/open/passed", written / "open" / "a") == OK
        assert eventually(lambda: open_now() == 0)
        assert server.statistics().denied_total["descriptors"] >= 4


@needs_others
def test_no_cap_forbids_a_write_altogether(written: Path, place: Path, model: Concurrency, alice: Somebody) -> None:
    with serving(place, model, root=written, max_descriptors_per_uid=1, writable=True) as server:
        for number in range(20):
            with Two(alice.connect(unix(server))) as two:
                two.send(two.encode(PUT, f"/open/{number}", content_len=3))
                two.send(b"abc")
                assert two.answer().status == OK
                assert put_descriptor(two, f"/open/{number}", written / "open" / "a") == OK
        assert eventually(lambda: server.statistics().descriptors_in_flight == 0)


def put_descriptor(two: Two, uri: str, source: Path) -> int:
    with source.open("rb") as file:
        return two.put_descriptor(uri, file.fileno()).status


@needs_others
def test_whoever_reads_what_it_gets_is_not_held_up_by_the_cap(
    root: Path, place: Path, model: Concurrency, alice: Somebody
) -> None:
    with serving(place, model, max_descriptors_per_uid=4) as server:
        wires = [Wire(alice.connect(unix(server))) for _ in range(8)]
        with contextlib.ExitStack() as stack:
            for wire in wires:
                stack.enter_context(wire)
            for _ in range(100):
                for wire in wires:
                    # What was read last may not have been noticed, for the blink of an eye.
                    assert eventually(lambda wire=wire: read_one(wire))  # type: ignore[misc]


def read_one(client: Wire | Two) -> bool:
    """Whether a descriptor came; else there was no room for it."""
    reply = client.call(FDPASS_TWO, "/open/a") if isinstance(client, Two) else client.ask(FDPASS, "/open/a")
    return reply.status != UNAVAILABLE and reply.read() == b"open/a"


@needs_others
def test_new_rules_hold_for_whoever_is_connected(root: Path, place: Path, model: Concurrency, alice: Somebody) -> None:
    file = place / "o.toml"

    file.write_text("")
    flags = {
        "root": root,
        "unix": place / "reloaded",
        "unix_mode": 0o666,
        "admin": "none",
        "concurrency_model": str(model),
    }
    with Server(Config.load(file, environment=False, **flags)) as server, Wire(alice.connect(unix(server))) as wire:

        def rule(text: str) -> None:
            file.write_text(text)
            server.reload()

        assert wire.ask(COPY, "/shut/x").status == OK
        rule('[allow_prefix]\n"/shut" = []\n')
        assert wire.ask(COPY, "/shut/x").status == FORBIDDEN
        assert wire.ask(COPY, "/open/a").status == OK
        rule(f"allow_uid = [{BOB}]\n")
        assert wire.ask(COPY, "/open/a").status == FORBIDDEN
        with Wire(alice.connect(unix(server))) as late:
            assert late.reply(COPY).status == FORBIDDEN
        rule(f"allow_uid = [{ALICE}]\nmax_connections_per_uid = 1\n")
        assert wire.ask(COPY, "/shut/x").status == OK
        with Wire(alice.connect(unix(server))) as second:
            assert second.reply(COPY).status == UNAVAILABLE
        rule("")
        with Wire(alice.connect(unix(server))) as second:
            assert wire.ask(COPY, "/shut/x").status == second.ask(COPY, "/shut/x").status == OK


def test_a_cap_on_descriptors_that_comes_later_counts_what_is_out_already(root: Path, place: Path) -> None:
    file = place / "later.toml"
    file.write_text("")
    flags = {"root": root, "unix": place / "later", "admin": "none"}
    with Server(Config.load(file, environment=False, **flags)) as server, Wire(unix(server)) as wire:
        wire.send(request(FDPASS, "/open/a") * 5)
        assert eventually(lambda: server.statistics().requests_total == 5)
        file.write_text("max_descriptors_per_uid = 5\n")
        server.reload()
        wire.send(request(FDPASS, "/open/a"))
        assert eventually(lambda: server.statistics().requests_total == 6)
        assert [wire.reply(FDPASS).read() for _ in range(5)] == [b"open/a"] * 5
        assert wire.reply(FDPASS).status == UNAVAILABLE
        file.write_text("")
        server.reload()
        assert wire.ask(FDPASS, "/open/a").read() == b"open/a"
    with serving(place) as server:
        assert server.statistics().descriptors_in_flight == 0


def test_a_cap_that_comes_later_counts_writes_that_are_under_way(written: Path, place: Path) -> None:
    file = place / "later.toml"
    file.write_text("")
    flags = {"root": written, "unix": place / "later", "admin": "none", "writable": True}
    with Server(Config.load(file, environment=False, **flags)) as server, Two(unix(server)) as two:
        two.send(two.encode(PUT, "/open/stalled", content_len=10))
        assert eventually(lambda: server.statistics().descriptors_in_flight == 2)
        file.write_text("max_descriptors_per_uid = 2\n")
        server.reload()
        with Two(unix(server)) as other:
            # A session looks at new rules at its next turn, or within a second.
            two.send(b"01234")
            assert eventually(lambda: not read_one(other))
            two.send(b"56789")
            assert two.answer().status == OK
            assert other.call(FDPASS_TWO, "/open/a").read() == b"open/a"
        file.write_text("")
        server.reload()
        assert server.statistics().descriptors_in_flight == 0


def test_the_sdk_says_what_it_is(root: Path, place: Path) -> None:
    me = os.geteuid()
    with serving(place, allow_uid=[me + 1]) as server, Client(unix(server)) as client:
        for act in (lambda: client.read("/open/a"), lambda: client.stat("/open/a"), lambda: list(client.list("/"))):
            with pytest.raises(PermissionDenied, match="allow_uid"):
                act()
    with serving(place, allow_uid=[me], allow_prefix={"/shut": []}) as server, Client(unix(server)) as client:
        assert client.read("/open/a") == b"open/a"
        with pytest.raises(PermissionDenied, match=r"/shut/x: .*allow_prefix"):
            client.read("/shut/x")
        assert [entry.uri for entry in client.list("/")] == ["/open/a", "/shutter"]
    with serving(place, max_connections_per_uid=1) as server, Wire(unix(server)) as wire:
        assert wire.ask(COPY, "/open/a").status == OK
        with Client(unix(server), timeout=5) as client, pytest.raises(ServerBusy, match="as many connections"):
            client.read("/open/a")


def test_one_line_tells_of_all_refusals_of_a_second(root: Path, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "objmapper_server")
    me = os.geteuid()
    with serving(place, allow_prefix={"/shut": [f"uid:{me + 1}"]}) as server, Wire(unix(server)) as wire:
        for _ in range(50):
            assert wire.ask(COPY, "/shut/a\nb").status == FORBIDDEN
        assert server.statistics().denied_total["prefix"] == 50
        assert eventually(lambda: len(caplog.records) > 0)
    # What came behind the first line's second is told at the end.
    ours = [record for record in caplog.records if record.__dict__["facts"]["pid"] == os.getpid()]
    facts = [record.__dict__["facts"] for record in ours]
    assert len(facts) <= 2
    assert sum(1 + each["suppressed"] for each in facts) == 50
    assert facts[0] | {"suppressed": 0} == {
        "event": "refused",
        "reason": "prefix",
        "uid": me,
        "pid": os.getpid(),
        "uri": "/shut/a\nb",
        "suppressed": 0,
    }
    line = ours[0].getMessage()
    assert line.startswith(rf"refused: uid {me} (pid {os.getpid()}) may not use '/shut/a\nb' (allow_prefix)")


def test_a_refused_client_that_only_waits_is_not_kept_waiting(root: Path, place: Path) -> None:
    with serving(place, allow_gid=[(1 << 32) - 2]) as server, socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(10)
        silent.connect(unix(server).removeprefix("unix:"))
        assert silent.recv(1)[0] == FORBIDDEN
        while silent.recv(1000):
            pass
        assert server.statistics().connections == 0


@pytest.mark.skipif(nobody.why_not() != "", reason=nobody.why_not())
def test_the_command_of_a_user_who_may_not_says_so_in_one_line(root: Path, place: Path) -> None:
    with serving(place, allow_uid=[os.geteuid()]) as server:
        command = [*nobody.COMMAND, sys.executable, "-m", "objmapper_cli", "get", "/open/a", "--server", unix(server)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert refused.returncode == 6
        assert refused.stdout == ""
        assert refused.stderr.count("\n") == 1
        assert "this user may not connect" in refused.stderr
        own = subprocess.run(command[len(nobody.COMMAND) :], capture_output=True, timeout=60, check=True, cwd="/")
        assert own.stdout == b"open/a"
