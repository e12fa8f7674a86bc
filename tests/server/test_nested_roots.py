"""Two servers, one on a directory and one below it: what the inner one prepares is no object of the outer one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from objmapper_client import Client, ObjectNotFound, ObjmapperError, PermissionDenied
from objmapper_server import Config, Server
from tests.support.raw_client import NOT_FOUND, OK
from tests.support.raw_client_v2 import DELETE, LIST, STAT, RawClientV2


@pytest.fixture(params=[False, True], ids=["without links", "following links"])
def outer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub/object").write_bytes(b"whole")
    config = Config(
        root=root,
        unix=tmp_path / "outer.sock",
        udp="127.0.0.1:0",
        writable=True,
        follow_symlinks=request.param,
    )
    with Server(config) as server:
        yield server


@pytest.fixture
def staged(outer: Server, tmp_path: Path) -> Iterator[str]:
    """The URI, below the outer root, of the directory in which the inner server prepares writes."""
    root = tmp_path / "root"
    with Server(Config(root=root / "sub", unix=tmp_path / "inner.sock", writable=True)):
        own = next((root / "sub/.objmapper").iterdir())
        (own / "unfinished").write_bytes(b"half of it")
        (root / "top").symlink_to("sub/.objmapper")
        (root / "own").symlink_to(f"sub/.objmapper/{own.name}")
        (root / "file").symlink_to(f"sub/.objmapper/{own.name}/unfinished")
        yield f"/sub/.objmapper/{own.name}"
        assert [path.name for path in own.iterdir()] == ["unfinished"]
        assert (own / "unfinished").read_bytes() == b"half of it"


def test_what_another_server_below_prepares_is_no_object(outer: Server, staged: str) -> None:
    own = staged.rpartition("/")[2]
    uris = [f"{staged}/unfinished", "/sub/.objmapper", "/own/unfinished", f"/top/{own}/unfinished", "/file"]
    for scheme in ("unix", "udp"):
        with Client(outer.addresses[scheme]) as client:
            assert client.read("/sub/object") == b"whole"
            for uri in uris:
                with pytest.raises((ObjectNotFound, PermissionDenied)):
                    client.read(uri)
    with Client(outer.addresses["unix"]) as client:
        assert [entry.uri for entry in client.list("/")] == ["/sub/object"]
        assert [entry.uri for entry in client.list("/sub/.obj")] == []
        for prefix in ("/own/", "/top/", f"/top/{own}/"):
            assert [entry.uri for entry in client.list(prefix)] == []
        for uri in uris:
            with pytest.raises((ObjectNotFound, PermissionDenied)):
                client.stat(uri)
            with pytest.raises((ObjectNotFound, PermissionDenied)):
                client.delete(uri)
        for uri in [*uris, f"{staged}/new", "/own/new", "/top/new", "/top/new/deeper"]:
            with pytest.raises(ObjmapperError):
                client.put(uri, b"planted", make_parents=True)


def test_its_name_is_taken_at_any_depth(outer: Server, staged: str) -> None:
    with RawClientV2(outer.addresses["unix"]) as v2:
        for uri in (staged, f"{staged}/x", "/sub/.objmapper/x", "/deep/.objmapper/x", "/sub/.ObjMapper/x"):
            assert v2.call(STAT, uri).fails(NOT_FOUND)
            assert v2.call(DELETE, uri).fails(NOT_FOUND)
            assert v2.put(uri, b"x", make_parents=True).fails(NOT_FOUND)
        assert v2.call(LIST, f"{staged}/").fails(NOT_FOUND)
        assert v2.call(LIST, "/sub/.objmapper/").fails(NOT_FOUND)
        # What only begins or ends like it is a name like any other.
        assert v2.put("/sub/.objmapper2", b"x").status == OK
        assert v2.call(DELETE, "/sub/.objmapper2").status == OK
