"""The fsspec file system: fsspec's own suites against a real server, and what is particular to this one."""

import os
import pickle
import resource
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.tests import abstract

from objmapper_client import Client, Conflict, ObjmapperError, PermissionDenied
from objmapper_client.filesystem import ObjmapperFileSystem
from objmapper_server import Config, Server

TRANSPORTS = ("unix", "tcp")


@pytest.fixture
def unix(server: Server) -> Iterator[ObjmapperFileSystem]:
    system = ObjmapperFileSystem(server.addresses["unix"], skip_instance_cache=True)
    with system.client:
        yield system


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """What fsspec's suites want to know."""

    @pytest.fixture
    def fs(self, system: ObjmapperFileSystem) -> ObjmapperFileSystem:
        return system

    @pytest.fixture
    def fs_path(self) -> str:
        return "/suite"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True  # those that `mkdir` makes, within this file system


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    """fsspec's suite for copies within the file system."""


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    """fsspec's suite for copies to local files."""


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    """fsspec's suite for copies of local files."""


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    """fsspec's suite for opening."""


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    """fsspec's suite for storing bytes."""


@pytest.fixture
def tree(root: Path) -> Path:
    for name in ("a", "b/c", "b/d/e", "b-f"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "empty").mkdir()
    (root / "link").symlink_to("a")
    return root


def test_it_moves_objects_and_trees(system: ObjmapperFileSystem, tree: Path) -> None:
    system.mv("/a", "/x/a")
    system.mv("/b", "/y", recursive=True)
    assert system.find("/") == ["/b-f", "/x/a", "/y/c", "/y/d/e"]
    assert (tree / "y/d/e").read_bytes() == b"b/d/e"
    with pytest.raises(FileNotFoundError):
        system.mv("/a", "/z")


def test_directories_are_what_has_objects_below(system: ObjmapperFileSystem, tree: Path) -> None:
    assert system.ls("/", detail=False) == ["/a", "/b", "/b-f"]
    assert [(each["name"], each["type"], each["size"]) for each in system.ls("/b")] == [
        ("/b/c", "file", 3),
        ("/b/d", "directory", 0),
    ]
    assert system.ls("/a", detail=False) == ["/a"]
    assert system.isdir("/b/d")
    assert system.isfile("/b/d/e")
    for nothing in ("/empty", "/link", "/none", "/a/b", "/b//c", "/../a"):
        assert not system.exists(nothing), nothing
        assert not system.isdir(nothing)
        assert not system.isfile(nothing)
    for missing in (system.info, system.ls, system.cat, system.modified):
        with pytest.raises(FileNotFoundError):
            missing("/none")
    system.mkdir("/new")
    assert system.isdir("/new")
    assert system.ls("/new") == []
    system.rmdir("/new")
    assert not system.exists("/new")
    with pytest.raises(OSError, match="directory has objects"):
        system.rmdir("/b")


def test_find_is_one_listing(system: ObjmapperFileSystem, tree: Path) -> None:
    assert system.find("/") == ["/a", "/b-f", "/b/c", "/b/d/e"]
    assert system.find("/b", withdirs=True) == ["/b", "/b/c", "/b/d", "/b/d/e"]
    assert system.find("/", maxdepth=1) == ["/a", "/b-f"]
    assert system.find("/", maxdepth=2, withdirs=True) == ["/", "/a", "/b", "/b-f", "/b/c", "/b/d"]
    assert system.find("/a") == ["/a"]
    assert system.find("/none") == []
    assert system.find("/b", detail=True)["/b/d/e"]["size"] == 5
    assert system.glob("/b*/**/e") == ["/b/d/e"]
    assert system.du("/b") == 8


def test_the_metadata_of_an_object(system: ObjmapperFileSystem, tree: Path) -> None:
    at = (tree / "a").stat()
    info = system.info("/a")
    assert (info["name"], info["size"], info["type"], info["mtime"]) == ("/a", 1, "file", int(at.st_mtime))
    # As exact as a datetime is.
    modified = system.modified("/a") - datetime(1970, 1, 1, tzinfo=UTC)
    assert modified // timedelta(microseconds=1) == at.st_mtime_ns // 1000
    assert system.created("/a") == system.modified("/a")
    before = system.ukey("/a"), system.checksum("/a")
    system.touch("/a", truncate=False)
    assert system.cat("/a") == b"a"
    assert system.ukey("/a") != before[0]
    assert system.checksum("/a") != before[1]
    system.touch("/a")
    assert system.size("/a") == 0


def test_reading_ranges(system: ObjmapperFileSystem, root: Path) -> None:
    content = os.urandom(3 << 20)
    (root / "big").write_bytes(content)
    assert system.cat_file("/big", 10, 20) == content[10:20]
    assert system.cat_file("/big", -5) == content[-5:]
    assert system.cat_file("/big", 20, 10) == b""
    assert system.head("/big", 7) == content[:7]
    assert system.tail("/big", 7) == content[-7:]
    got = system.cat_ranges(["/big", "/none", "/big"], [0, 0, 1 << 20], [1, 1, None])
    assert got[0] == content[:1]
    assert isinstance(got[1], FileNotFoundError)
    assert got[2] == content[1 << 20 :]
    with pytest.raises(FileNotFoundError):
        system.cat_ranges(["/none"], 0, 1, on_error="raise")
    with system.open("/big", "rb", block_size=1 << 18) as file:
        file.seek(1 << 20)
        assert file.read(100) == content[1 << 20 :][:100]
        file.seek(-100, os.SEEK_END)
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.read() == content[-100:]
        ObjmapperFileSystem.clear_instance_cache()
        assert file.read() == content[-100:]
        file.seek(0)
        assert file.read() == content


def test_over_a_unix_socket_a_file_is_a_file(unix: ObjmapperFileSystem, root: Path) -> None:
    numbers = np.arange(1000)
    (root / "n").write_bytes(numbers.tobytes())
    with unix.open("/n") as file:
        assert os.fstat(file.fileno()).st_ino == (root / "n").stat().st_ino
        mapped = np.memmap(file, dtype=numbers.dtype, mode="r")
        assert (mapped == numbers).all()
    with unix.open("/n", "r", encoding="latin-1") as text:
        assert text.fileno() > 2


def test_a_write_is_stored_when_the_file_is_closed(system: ObjmapperFileSystem, root: Path) -> None:
    with system.open("/new/dir/w", "wb") as file:
        file.write(b"hello")
        file.seek(1)
        file.write(memoryview(b"E"))
        assert not system.exists("/new/dir/w")
    assert (root / "new/dir/w").read_bytes() == b"hEllo"
    with system.open("/new/dir/w", "a") as text:
        text.write("!")
    assert system.cat("/new/dir/w") == b"hEllo!"
    with system.open("/log", "ab") as file:
        file.write(b"first")
    assert system.cat("/log") == b"first"
    big = os.urandom(9 << 20)
    with system.open("/big", "wb") as file:
        file.write(big)
        file.write(big)
    assert (root / "big").read_bytes() == big + big


def test_an_exception_stores_nothing(system: ObjmapperFileSystem) -> None:
    def fail() -> None:
        with system.open("/w", "wb") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not system.exists("/w")


def test_an_append_is_lost_rather_than_anothers_write(system: ObjmapperFileSystem) -> None:
    system.pipe("/log", b"one ")
    file = system.open("/log", "ab")
    file.write(b"two")
    system.pipe("/log", b"other")
    with pytest.raises(Conflict):
        file.close()
    assert system.cat("/log") == b"other"


def test_exclusive_is_so_until_the_end(system: ObjmapperFileSystem) -> None:
    file = system.open("/x", "xb")
    system.pipe("/x", b"quicker")
    with pytest.raises(FileExistsError):
        file.close()
    with pytest.raises(FileExistsError):
        system.open("/x", "xb")
    assert system.cat("/x") == b"quicker"


def test_a_transaction_is_stored_at_its_end(system: ObjmapperFileSystem, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"3")
    with system.transaction:
        with system.open("/t/1", "wb") as file:
            file.write(b"1")
        system.pipe("/t/2", b"2")
        system.put_file(tmp_path / "local", "/t/3")
        assert system.find("/t") == []
    assert system.cat("/t", recursive=True) == {"/t/1": b"1", "/t/2": b"2", "/t/3": b"3"}

    def fail() -> None:
        with system.transaction:
            system.pipe("/t/4", b"4")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not system.exists("/t/4")


def test_an_object_that_changes_is_not_read_as_a_mixture(server: Server, root: Path) -> None:
    (root / "o").write_bytes(b"1" * 1000)
    system = ObjmapperFileSystem(server.addresses["tcp"], skip_instance_cache=True)
    with system.client, system.open("/o", block_size=100, cache_type="none") as file:
        assert file.read(100) == b"1" * 100
        system.pipe("/o", b"2" * 1000)
        with pytest.raises(OSError, match="changed while it was read"):
            file.read(100)


def test_wrong_use_has_a_clear_error(system: ObjmapperFileSystem, tree: Path) -> None:
    for directory in ("/b", "/"):
        with pytest.raises(IsADirectoryError):
            system.open(directory)
        with pytest.raises(IsADirectoryError):
            system.rm(directory)
    with pytest.raises(PermissionDenied):
        system.open("/link")
    with pytest.raises(ValueError, match="rb"):
        system.open("/a", "r+b")
    with pytest.raises(PermissionDenied):
        system.pipe("/a/below", b"")
    with pytest.raises(ObjmapperError):
        system.pipe("/b", b"")


def test_a_server_that_takes_no_writes_says_so(root: Path, tmp_path: Path) -> None:
    (root / "a").touch()
    with Server(Config(root=root, unix=tmp_path / "read-only", admin=None)) as server:
        system = ObjmapperFileSystem(server.addresses["unix"], skip_instance_cache=True)
        with system.client:
            with pytest.raises(PermissionDenied, match="writable"):
                system.pipe("/b", b"")
            with pytest.raises(PermissionDenied):
                system.rm("/a")


@pytest.fixture
def by_default(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OBJMAPPER_SERVER", server.addresses["unix"])
    ObjmapperFileSystem.clear_instance_cache()
    yield server
    ObjmapperFileSystem.clear_instance_cache()


def url_of(server: Server, path: str) -> str:
    return server.addresses["tcp"].replace("tcp://", "objmapper://") + path


def test_urls_lead_to_servers(by_default: Server, root: Path) -> None:
    (root / "a").write_bytes(b"a")
    for url, options in [
        ("objmapper:///a", {}),
        (url_of(by_default, "/a"), {}),
        ("objmapper:///a", {"server": by_default.addresses["tcp"]}),
    ]:
        with fsspec.open(url, **options) as file:
            assert file.read() == b"a"
        system, path = fsspec.core.url_to_fs(url, **options)
        assert path == "/a"
        again, same = fsspec.core.url_to_fs(system.unstrip_protocol(path))
        assert again.cat(same) == b"a"
        assert pickle.loads(pickle.dumps(system)) == system
    assert fsspec.filesystem("objmapper").fsid == f"objmapper {by_default.addresses['unix']}"


def table() -> pd.DataFrame:
    return pd.DataFrame({"number": range(10_000), "text": [f"row {at}" for at in range(10_000)]})


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pandas_reads_and_writes_parquet(by_default: Server, root: Path, transport: str) -> None:
    url = "objmapper:///tables/t.parquet" if transport == "unix" else url_of(by_default, "/tables/t.parquet")
    table().to_parquet(url)
    assert pd.read_parquet(root / "tables/t.parquet").equals(table())
    assert pd.read_parquet(url).equals(table())
    assert list(pd.read_parquet(url, columns=["number"])) == ["number"]


def test_pyarrow_reads_files_and_data_sets(system: ObjmapperFileSystem, root: Path) -> None:
    whole = pa.Table.from_pandas(table())
    pq.write_to_dataset(whole.slice(0, 100), "/set/one", filesystem=system)
    pq.write_to_dataset(whole.slice(100, 100), "/set/two", filesystem=system)
    assert len(list((root / "set").rglob("*.parquet"))) == 2
    got = pq.read_table("/set", filesystem=system)
    assert sorted(got["number"].to_pylist()) == list(range(200))


def resident() -> int:
    """Bytes of this process's own memory that are in use: pages of files do not count."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))


def test_numpy_sees_an_object_without_a_copy(server: Server, root: Path) -> None:
    size = 64 << 20
    numbers = np.arange(size // 8)
    (root / "n").write_bytes(numbers.data)
    last = int(numbers[-1])
    del numbers
    with Client(server.addresses["unix"]) as client:
        before, faults = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        with client.open("/n") as found:
            view: Any = found.view()
            seen = np.frombuffer(view, dtype=np.int64)
        assert int(seen[-1]) == last
        assert int(seen.sum()) == (size // 8) * (size // 8 - 1) // 2
        assert resident() - before < size // 4, faults
    address = seen.__array_interface__["data"][0]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [(*(int(end, 16) for end in line[0].split("-")), line[-1]) for line in maps]
    assert [name for start, end, name in ranges if start <= address < end] == [str(root / "n")]
