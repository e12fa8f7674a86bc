"""Servers for several users, and who these are."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from tests.support import users
from tests.support.models import MODELS
from tests.support.users import OtherUser

#: The rules name Alice's user and one of Bob's groups; they do not name Mallory.
ALICE, BOB, MALLORY, FRIENDS = 40001, 40002, 40003, 50001
OBJECTS = ("open/a", "shut/x", "shut/sub/y", "shut/hole/z", "shutter")

SOCKET_NUMBERS = itertools.count()

needs_other_users = pytest.mark.skipif(users.why_no_users() != "", reason=users.why_no_users())


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="objmapper-peers-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def root(shared_directory: Path) -> Path:
    root = shared_directory / "root"
    for name in OBJECTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture
def writable_root(shared_directory: Path) -> Iterator[Path]:
    """A root that may be written to."""
    with tempfile.TemporaryDirectory(dir=shared_directory) as name:
        (Path(name) / "open").mkdir()
        (Path(name) / "open" / "a").write_bytes(b"open/a")
        yield Path(name)


@pytest.fixture(scope="module")
def alice() -> Iterator[OtherUser]:
    with OtherUser(ALICE, ALICE) as alice:
        yield alice


@pytest.fixture(scope="module")
def bob() -> Iterator[OtherUser]:
    with OtherUser(BOB, BOB, 49999, FRIENDS) as bob:
        yield bob


@pytest.fixture(scope="module")
def mallory() -> Iterator[OtherUser]:
    with OtherUser(MALLORY, MALLORY, 49999) as mallory:
        yield mallory


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> Concurrency:
    return Concurrency(request.param)


@contextlib.contextmanager
def serving(shared_directory: Path, model: Concurrency = Concurrency.EPOLL, **settings: object) -> Iterator[Server]:
    """A server whose socket every user may connect to."""
    given = {
        "root": shared_directory / "root",
        "unix": shared_directory / f"s{next(SOCKET_NUMBERS)}",
        "unix_mode": 0o666,
        "admin": None,
    } | settings
    with Server(Config(**given, concurrency_model=model)) as server:  # type: ignore[arg-type]
        yield server


def unix(server: Server) -> str:
    return server.addresses["unix"]
