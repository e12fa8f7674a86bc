"""Several event loops: each gets its share of the connections, however they come."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.raw_client import COPY, OK, RawClient
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="as many loops as cores, and a single one has them all"
)


def sessions(pid: int) -> list[int]:
    """How many sockets of clients each event loop watches; all loops watch the same few things besides."""
    watched = []
    for place in Path(f"/proc/{pid}/fd").iterdir():
        # One that is closed meanwhile is none.
        with suppress(FileNotFoundError):
            if os.readlink(place) == "anon_inode:[eventpoll]":
                watched.append((Path(f"/proc/{pid}/fdinfo") / place.name).read_text().count("tfd:"))
    return sorted(watched)


def test_connections_that_come_at_once_are_shared(root: Path, tmp_path: Path) -> None:
    flags = ("--concurrency-model", "epoll", "--pool-size", "2")
    with ServerProcess(root, tmp_path / "socket", *flags) as server:
        server.threads("objmapper-loop", 1)
        assert eventually(lambda: len(set(sessions(server.pid))) == 1)
        before = sessions(server.pid)
        assert len(before) == 2
        # They wait in the backlog: the loop that wakes first accepts all of them.
        with server.stopped():
            connections = [RawClient(server.addresses["unix"]) for _ in range(60)]
        for v1 in connections:
            assert v1.ask(COPY, "/a").status == OK
        assert eventually(lambda: sum(sessions(server.pid)) == sum(before) + len(connections))
        shares = [now - then for now, then in zip(sessions(server.pid), before, strict=True)]
        # Both loops may be accepting, and count what is on its way to the other a moment apart.
        assert min(shares) >= 25, shares
        for v1 in connections:
            v1.close()
        assert eventually(lambda: sessions(server.pid) == before)
