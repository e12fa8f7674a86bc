"""Who may connect, and to what: in every model, both versions and every operation."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import Client, PermissionDenied, ServerBusy
from objmapper_server import Concurrency, Config, Server
from tests.access.conftest import ALICE, BOB, FRIENDS, OBJECTS, needs_other_users, serving, unix
from tests.support import users
from tests.support.eventually import eventually
from tests.support.raw_client import COPY, FDPASS, FORBIDDEN, OK, SPLICE, UNAVAILABLE, RawClient, request
from tests.support.raw_client_v2 import DELETE, EXTENDED, LIST, PLAIN, STAT, RawClientV2
from tests.support.raw_client_v2 import FDPASS as FDPASS_TWO
from tests.support.users import OtherUser

RULES = {"/shut": [f"uid:{ALICE}"], "/shut/hole": [f"uid:{ALICE}", f"gid:{FRIENDS}"]}


@pytest.fixture(scope="module")
def server(root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser) -> Iterator[Server]:
    with serving(
        shared_directory,
        model,
        tcp="127.0.0.1:0",
        writable=True,
        allow_uid=[ALICE],
        allow_gid=[FRIENDS],
        allow_prefix=RULES,
    ) as server:
        # Once it has answered, it has opened all that it needs: what is open after a test was opened by it.
        with RawClient(alice.connect(unix(server))) as first, RawClient(server.addresses["tcp"]) as second:
            assert first.ask(COPY, "/open/a").status == second.ask(COPY, "/open/a").status == OK
        yield server


@needs_other_users
def test_an_unlisted_user_gets_an_error_and_is_closed(server: Server, mallory: OtherUser) -> None:
    before = server.statistics().denied_total["user"]
    for ahead in (b"", request(COPY, "/open/a") * 100):
        # The last of it may find the server gone: the word is there all the same.
        with (
            RawClient(mallory.connect(unix(server))) as v1,
            contextlib.suppress(BrokenPipeError, ConnectionResetError),
        ):
            v1.send(ahead)
            reply = v1.reply(COPY)
            assert reply.status == FORBIDDEN
            assert b"allow_uid" in reply.content
            assert v1.at_end()
    assert server.statistics().denied_total["user"] == before + 2
    assert server.statistics().rejected_total == 0


@needs_other_users
def test_root_is_no_exception(server: Server) -> None:
    with pytest.raises(PermissionDenied, match="this user may not connect"), Client(unix(server)) as client:
        client.read("/open/a")


@needs_other_users
def test_users_and_members_of_groups_are_let_in(server: Server, alice: OtherUser, bob: OtherUser) -> None:
    for known in (alice, bob):
        with RawClient(known.connect(unix(server))) as v1:
            assert [v1.ask(mode, "/open/a").read() for mode in (FDPASS, COPY, SPLICE)] == [b"open/a"] * 3
        with RawClientV2(known.connect(unix(server))) as v2:
            assert v2.call(FDPASS_TWO, "/open/a").read() == b"open/a"


@needs_other_users
@pytest.mark.parametrize("uri", ["/shut/x", "shut/x", "/shut/sub/y", "/shut/is-not-there", "/shut"])
def test_closed_prefixes_are_forbidden_in_version_1(server: Server, alice: OtherUser, bob: OtherUser, uri: str) -> None:
    with RawClient(bob.connect(unix(server))) as v1:
        for mode in (FDPASS, COPY, SPLICE):
            reply = v1.ask(mode, uri)
            assert reply.status == FORBIDDEN
            assert b"allow_prefix" in reply.content
        assert v1.ask(COPY, "/shut/hole/z").read() == b"shut/hole/z"
        assert v1.ask(COPY, "/shutter").read() == b"shutter"
    with RawClient(alice.connect(unix(server))) as v1:
        assert v1.ask(COPY, uri).status == v1.ask(COPY, uri).status
        assert v1.ask(COPY, "/shut/x").read() == b"shut/x"


@needs_other_users
@pytest.mark.parametrize("capabilities", [PLAIN, EXTENDED])
def test_closed_prefixes_are_forbidden_in_version_2(server: Server, bob: OtherUser, capabilities: int) -> None:
    with RawClientV2(bob.connect(unix(server)), capabilities) as v2:
        for operation in (FDPASS_TWO, *((STAT, DELETE) if capabilities == EXTENDED else ())):
            assert v2.call(operation, "/shut/x").fails(FORBIDDEN)
        assert v2.call(FDPASS_TWO, "/shut/hole/z").read() == b"shut/hole/z"


@needs_other_users
def test_closed_prefixes_cannot_be_written(server: Server, root: Path, bob: OtherUser, alice: OtherUser) -> None:
    with RawClientV2(bob.connect(unix(server))) as v2, (root / "open" / "a").open("rb") as source:
        assert v2.put("/shut/new", b"content" * 100_000).fails(FORBIDDEN)
        assert v2.put_descriptor("/shut/new", source.fileno()).fails(FORBIDDEN)
        assert v2.call(DELETE, "/shut/x").fails(FORBIDDEN)
        assert v2.put("/shut/hole/new", b"content").status == OK
        assert v2.call(DELETE, "/shut/hole/new").status == OK
    with RawClientV2(alice.connect(unix(server))) as v2:
        assert v2.put("/shut/new", b"content").status == OK
        assert v2.call(DELETE, "/shut/new").status == OK
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == sorted(OBJECTS)


@needs_other_users
def test_a_listing_has_what_one_may_use(server: Server, alice: OtherUser, bob: OtherUser) -> None:
    def listed(v2: RawClientV2, prefix: str, limit: int) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            answer = v2.call(LIST, prefix, limit=limit, **({} if cursor is None else {"cursor": cursor}))
            found += [entry.uri for entry in answer.entries()]
            cursor = answer.metadata.cursor
            if cursor is None:
                return found

    with RawClientV2(alice.connect(unix(server))) as v2:
        assert listed(v2, "/", 1) == sorted(f"/{name}" for name in OBJECTS)
    with RawClientV2(bob.connect(unix(server))) as v2:
        for limit in (1, 100):
            assert listed(v2, "/", limit) == ["/open/a", "/shut/hole/z", "/shutter"]
            assert listed(v2, "/shut/", limit) == ["/shut/hole/z"]
            assert listed(v2, "/shut/hole/", limit) == ["/shut/hole/z"]
        assert v2.call(LIST, "/shut/sub/").fails(FORBIDDEN)
        assert v2.call(LIST, "/shut/x").fails(FORBIDDEN)


@needs_other_users
def test_closed_prefixes_stay_closed_without_user_ids(server: Server) -> None:
    with RawClient(server.addresses["tcp"]) as v1:
        assert v1.ask(COPY, "/shut/hole/z").status == FORBIDDEN
        assert v1.ask(COPY, "/open/a").read() == b"open/a"
    with RawClientV2(server.addresses["tcp"]) as v2:
        assert v2.call(STAT, "/shut/x").fails(FORBIDDEN)
        assert [entry.uri for entry in v2.call(LIST, "/").entries()] == ["/open/a", "/shutter"]


@pytest.mark.parametrize("model", [Concurrency.EPOLL, Concurrency.THREAD_POOL, Concurrency.WORK_STEALING], ids=str)
def test_nor_does_udp_have_users(root: Path, shared_directory: Path, model: Concurrency) -> None:
    with (
        serving(shared_directory, Concurrency.EPOLL, udp="127.0.0.1:0", allow_prefix=RULES) as server,
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


@needs_other_users
def test_new_rules_hold_for_open_connections(
    root: Path, shared_directory: Path, model: Concurrency, alice: OtherUser
) -> None:
    file = shared_directory / "o.toml"

    file.write_text("")
    flags = {
        "root": root,
        "unix": shared_directory / "reloaded",
        "unix_mode": 0o666,
        "admin": "none",
        "concurrency_model": str(model),
    }
    with (
        Server(Config.load(file, environment=False, **flags)) as server,
        RawClient(alice.connect(unix(server))) as v1,
    ):

        def rule(text: str) -> None:
            file.write_text(text)
            server.reload()

        assert v1.ask(COPY, "/shut/x").status == OK
        rule('[allow_prefix]\n"/shut" = []\n')
        assert v1.ask(COPY, "/shut/x").status == FORBIDDEN
        assert v1.ask(COPY, "/open/a").status == OK
        rule(f"allow_uid = [{BOB}]\n")
        assert v1.ask(COPY, "/open/a").status == FORBIDDEN
        with RawClient(alice.connect(unix(server))) as late:
            assert late.reply(COPY).status == FORBIDDEN
        rule(f"allow_uid = [{ALICE}]\nmax_connections_per_uid = 1\n")
        assert v1.ask(COPY, "/shut/x").status == OK
        with RawClient(alice.connect(unix(server))) as second:
            assert second.reply(COPY).status == UNAVAILABLE
        rule("")
        with RawClient(alice.connect(unix(server))) as second:
            assert v1.ask(COPY, "/shut/x").status == second.ask(COPY, "/shut/x").status == OK


def test_the_sdk_says_what_it_is(root: Path, shared_directory: Path) -> None:
    me = os.geteuid()
    with serving(shared_directory, allow_uid=[me + 1]) as server, Client(unix(server)) as client:
        for act in (lambda: client.read("/open/a"), lambda: client.stat("/open/a"), lambda: list(client.list("/"))):
            with pytest.raises(PermissionDenied, match="allow_uid"):
                act()
    with (
        serving(shared_directory, allow_uid=[me], allow_prefix={"/shut": []}) as server,
        Client(unix(server)) as client,
    ):
        assert client.read("/open/a") == b"open/a"
        with pytest.raises(PermissionDenied, match=r"/shut/x: .*allow_prefix"):
            client.read("/shut/x")
        assert [entry.uri for entry in client.list("/")] == ["/open/a", "/shutter"]
    with serving(shared_directory, max_connections_per_uid=1) as server, RawClient(unix(server)) as v1:
        assert v1.ask(COPY, "/open/a").status == OK
        with Client(unix(server), timeout=5) as client, pytest.raises(ServerBusy, match="limit of connections"):
            client.read("/open/a")


def test_one_line_tells_of_all_refusals_of_a_second(
    root: Path, shared_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "objmapper_server")
    me = os.geteuid()
    with serving(shared_directory, allow_prefix={"/shut": [f"uid:{me + 1}"]}) as server, RawClient(unix(server)) as v1:
        for _ in range(50):
            assert v1.ask(COPY, "/shut/a\nb").status == FORBIDDEN
        assert server.statistics().denied_total["prefix"] == 50
        assert eventually(lambda: len(caplog.records) > 0)
    # Denials after the first report's second are reported at the end.
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


def test_a_refused_client_that_only_waits_is_not_kept_waiting(root: Path, shared_directory: Path) -> None:
    with serving(shared_directory, allow_gid=[(1 << 32) - 2]) as server, socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(10)
        silent.connect(unix(server).removeprefix("unix:"))
        assert silent.recv(1)[0] == FORBIDDEN
        while silent.recv(1000):
            pass
        assert eventually(lambda: server.statistics().connections == 0)


@pytest.mark.skipif(users.why_no_command() != "", reason=users.why_no_command())
def test_the_command_of_a_denied_user_prints_one_line(root: Path, shared_directory: Path) -> None:
    with serving(shared_directory, allow_uid=[os.geteuid()]) as server:
        command = [*users.COMMAND, sys.executable, "-m", "objmapper_cli", "get", "/open/a", "--server", unix(server)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert refused.returncode == 6
        assert refused.stdout == ""
        assert refused.stderr.count("\n") == 1
        assert "this user may not connect" in refused.stderr
        own = subprocess.run(command[len(users.COMMAND) :], capture_output=True, timeout=60, check=True, cwd="/")
        assert own.stdout == b"open/a"
