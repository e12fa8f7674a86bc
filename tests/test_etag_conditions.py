"""Conditions are exact for what is put through a server, also where the file system's clock hardly moves.

A state machine puts, gets, lists and deletes beside a dict, on a file system whose times are whole seconds, on tmpfs
and on btrfs. Every put has its own etag; a condition on an etag holds for that content and no other.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from objmapper_client import Client, Conflict, ObjectNotFound
from objmapper_server import Config, Server
from tests.support import file_systems
from tests.support.file_systems import BTRFS, EXT4_OF_SECONDS, mounted, tmpfs
from tests.support.strace import Strace, threads_of
from tests.support.strace import why_not as why_no_strace

KINDS: dict[str, tuple[str, Callable[[], AbstractContextManager[Path]]]] = {
    "ext4 of seconds": (file_systems.why_not(EXT4_OF_SECONDS), mounted),
    "tmpfs": ("" if os.geteuid() == 0 else "only root can mount a file system", tmpfs),
    "btrfs": (file_systems.why_not(BTRFS), lambda: mounted(BTRFS)),
}
COARSE = pytest.mark.skipif(KINDS["ext4 of seconds"][0] != "", reason=KINDS["ext4 of seconds"][0] or "can be mounted")
URIS = st.sampled_from(["/a", "/b", "/deep/er/c"])
#: Of one length, so that a size never tells two apart.
CONTENTS = st.binary(min_size=4, max_size=4)


@pytest.fixture(
    params=[
        pytest.param(kind, marks=pytest.mark.skipif(why != "", reason=why or "can be mounted"))
        for kind, (why, _) in KINDS.items()
    ]
)
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    with KINDS[request.param][1]() as made:
        yield made


@pytest.fixture
def coarse() -> Iterator[Path]:
    with mounted(EXT4_OF_SECONDS) as made:
        yield made


def serving(root: Path, folder: Path, **given: Any) -> Server:
    return Server(Config(root=root, unix=folder / "o.sock", writable=True, **given))


def test_three_puts_within_a_tick_have_three_etags(root: Path, tmp_path: Path) -> None:
    """Each put frees the inode number that the next one gets."""
    with serving(root, tmp_path), Client(f"unix:{tmp_path}/o.sock") as client:
        puts = [client.put("/object", content) for content in (b"AAAA", b"BBBB", b"CCCC")]
        assert len({put.etag for put in puts}) == 3
        assert client.stat("/object").etag == puts[-1].etag
        for stale in puts[:2]:
            with pytest.raises(Conflict):
                client.put("/object", b"DDDD", if_match=stale.etag)
            with pytest.raises(Conflict):
                client.delete("/object", if_match=stale.etag)
        assert client.read("/object") == b"CCCC"
        assert client.put("/object", b"DDDD", if_match=puts[-1].etag).etag not in {put.etag for put in puts}


def test_an_etag_outlives_the_server(root: Path, tmp_path: Path) -> None:
    with serving(root, tmp_path), Client(f"unix:{tmp_path}/o.sock") as client:
        etag = client.put("/object", b"AAAA").etag
    with serving(root, tmp_path), Client(f"unix:{tmp_path}/o.sock") as client:
        assert client.stat("/object").etag == etag
        client.put("/object", b"BBBB", if_match=etag)


@COARSE
def test_no_old_content_comes_from_memory_where_times_are_whole_seconds(coarse: Path, tmp_path: Path) -> None:
    """Another program writes to the file in place, within the second in which it was read."""
    with serving(coarse, tmp_path, tcp="127.0.0.1:0") as server, Client(server.addresses["tcp"]) as client:
        for number in range(30):
            for content in (b"AAAA", b"BBBB", b"CCCC"):
                with (coarse / "object").open("r+b" if number else "w+b") as file:
                    file.write(content)
                assert client.read("/object") == content
            time.sleep(0.05)


@COARSE
@pytest.mark.skipif(why_no_strace() != "", reason=why_no_strace() or "strace works")
def test_a_slow_read_keeps_nothing_that_changed_meanwhile(coarse: Path, tmp_path: Path) -> None:
    """The read takes longer than times need to settle: the time before the look at the file counts."""
    flags = {"concurrency_model": "epoll", "async_storage": False}
    with serving(coarse, tmp_path, tcp="127.0.0.1:0", **flags) as server, Client(server.addresses["tcp"]) as client:
        client.put("/other", b"....")
        while time.time() % 1 > 0.2:
            time.sleep(0.01)
        (coarse / "object").write_bytes(b"AAAA")
        delay = "preadv2,pread64:delay_exit=2500000:when=1"
        with Strace(threads_of(os.getpid()), tmp_path / "calls", delay):
            reader = threading.Thread(target=client.read, args=("/object",))
            reader.start()
            time.sleep(0.4)
            with (coarse / "object").open("r+b") as file:
                file.write(b"BBBB")
            reader.join(30)
        assert "(DELAYED)" in (tmp_path / "calls").read_text()
        for _ in range(3):
            assert client.read("/object") == b"BBBB"


class Objects(RuleBasedStateMachine):
    """Puts, gets, lists and deletes, with and without conditions, beside a dict."""

    client: Client
    root: Path

    def __init__(self) -> None:
        super().__init__()
        #: URI → content and etag.
        self.there: dict[str, tuple[bytes, str]] = {}
        #: Every etag that a put of this run was answered with, and its content.
        self.given: dict[str, bytes] = {}

    @initialize()
    def empty(self) -> None:
        for entry in self.client.list():
            self.client.delete(entry.uri)

    def _put(self, uri: str, content: bytes, **conditions: str) -> None:
        etag = self.client.put(uri, content, make_parents=True, **cast("Any", conditions)).etag
        assert etag is not None
        assert etag not in self.given, "two puts have one etag"
        self.given[etag] = content
        self.there[uri] = content, etag

    @rule(uri=URIS, content=CONTENTS)
    def put(self, uri: str, content: bytes) -> None:
        self._put(uri, content)

    @rule(uri=URIS, content=CONTENTS)
    def put_where_nothing_is(self, uri: str, content: bytes) -> None:
        if uri in self.there:
            with pytest.raises(Conflict):
                self.client.put(uri, content, make_parents=True, if_none_match="*")
        else:
            self._put(uri, content, if_none_match="*")

    @rule(uri=URIS, content=CONTENTS)
    def put_over_what_was_read(self, uri: str, content: bytes) -> None:
        if uri in self.there:
            self._put(uri, content, if_match=self.there[uri][1])

    @precondition(lambda self: self.given)
    @rule(uri=URIS, content=CONTENTS, data=st.data())
    def put_over_what_was_there_once(self, uri: str, content: bytes, data: st.DataObject) -> None:
        etag = data.draw(st.sampled_from(sorted(self.given)))
        if uri in self.there and self.there[uri][1] == etag:
            return
        with pytest.raises((Conflict, ObjectNotFound)):
            self.client.put(uri, content, make_parents=True, if_match=etag)

    @rule(uri=URIS, is_stale=st.booleans(), data=st.data())
    def delete(self, uri: str, is_stale: bool, data: st.DataObject) -> None:
        if uri not in self.there:
            with pytest.raises(ObjectNotFound):
                self.client.delete(uri)
        elif is_stale and (stale := sorted(self.given.keys() - {self.there[uri][1]})):
            with pytest.raises(Conflict):
                self.client.delete(uri, if_match=data.draw(st.sampled_from(stale)))
        else:
            self.client.delete(uri, if_match=self.there.pop(uri)[1])

    @rule(uri=URIS)
    def get(self, uri: str) -> None:
        if uri not in self.there:
            with pytest.raises(ObjectNotFound):
                self.client.read(uri)
        else:
            assert self.client.read(uri) == self.there[uri][0]
            with self.client.open(uri) as found:
                assert (found.read(), found.etag) == self.there[uri]

    @invariant()
    def everything_is_there(self) -> None:
        assert [entry.uri for entry in self.client.list()] == sorted(self.there)
        for uri, (_, etag) in self.there.items():
            assert self.client.stat(uri).etag == etag


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_objects_are_what_a_dict_says(root: Path, tmp_path: Path, transport: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serving(root, tmp_path, tcp="127.0.0.1:0"))
        client = stack.enter_context(Client(server.addresses[transport]))
        machine = type("Served", (Objects,), {"client": client, "root": root})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
