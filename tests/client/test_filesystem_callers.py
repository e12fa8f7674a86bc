"""What programs do with an fsspec file system: move and copy trees, cache files, leave blocks, write partitions."""

import contextlib
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import duckdb
import fsspec
import fsspec.asyn
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from objmapper_client import AddressError, Conflict
from objmapper_client._files.fsspec_reader import ObjectReader
from objmapper_client.filesystem import ObjmapperFileSystem
from objmapper_server import Config, Server


@pytest.fixture(scope="module", autouse=True)
def _fsspec_has_its_loop() -> None:
    """It stays for the whole process, with its descriptors."""
    fsspec.asyn.get_loop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(Config(root=root, unix=tmp_path / "socket", tcp="127.0.0.1:0", admin=None, writable=True)) as server:
        yield server


@pytest.fixture(params=["unix", "tcp"])
def system(request: pytest.FixtureRequest, server: Server) -> Iterator[ObjmapperFileSystem]:
    system = ObjmapperFileSystem(server.addresses[request.param], skip_instance_cache=True)
    with system.client:
        yield system


def fsspec_kinds(kind: Any) -> Iterator[Any]:
    """All file systems that are loaded: caches and archives keep ours in instances of their own."""
    for each in kind.__subclasses__():
        yield each
        yield from fsspec_kinds(each)


@pytest.fixture(params=["unix", "tcp"])
def by_default(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OBJMAPPER_SERVER", server.addresses[request.param])
    ObjmapperFileSystem.clear_instance_cache()
    yield
    for kind in (ObjmapperFileSystem, *fsspec_kinds(fsspec.AbstractFileSystem)):
        kind.clear_instance_cache()


def stored(system: ObjmapperFileSystem) -> dict[str, bytes]:
    return {name: system.cat_file(name) for name in system.find("/")}


@pytest.fixture
def tree(system: ObjmapperFileSystem) -> dict[str, bytes]:
    names = ("/d/x", "/d/sub/x", "/d/sub/deep/y", "/e", "/f")
    for name in names:
        system.pipe(name, name.encode())
    return stored(system)


def test_onto_itself_nothing_changes(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    for verb in (system.mv, system.copy):
        verb("/e", "/e")
        verb("/e", "objmapper:///e")
        verb("/d", "/d", recursive=True)
        verb("/d/", "/d/", recursive=True)
        verb("/d/x", "/d/")
        verb("/d/sub", "/d/", recursive=True)
        verb(["/e", "/f"], ["/e", "/f"])
        assert stored(system) == tree
        with pytest.raises(FileNotFoundError):
            verb("/none", "/none")


def test_a_directory_does_not_go_into_itself(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    for verb in (system.mv, system.copy):
        for target in ("/d/sub", "/d/sub/", "/d/new", "/d/sub/deep/z"):
            with pytest.raises(OSError, match="into itself"):
                verb("/d", target, recursive=True)
            assert stored(system) == tree


def test_no_move_overwrites_another_source(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    for verb in (system.mv, system.copy):
        with pytest.raises(OSError, match="goes there"):
            verb(["/e", "/f"], ["/f", "/g"])
        with pytest.raises(OSError, match="goes there"):
            verb(["/d/x", "/d/sub/x"], "/flat/")
        with pytest.raises(ValueError, match="2 paths to copy"):
            verb(["/e", "/f"], ["/g"])
    assert stored(system) == tree


def test_a_move_deletes_what_it_has_copied_and_no_more(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    system.mv("/d", "/m/", recursive=True, maxdepth=1)
    assert sorted(stored(system)) == ["/d/sub/deep/y", "/d/sub/x", "/e", "/f", "/m/x"]
    system.mv("/d", "/m", recursive=True)
    assert system.find("/m") == ["/m/d/sub/deep/y", "/m/d/sub/x", "/m/x"]
    with pytest.raises(IsADirectoryError):
        system.mv("/m", "/n")
    assert system.find("/d") == []


def test_a_move_keeps_what_was_written_meanwhile(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    copied = system._copy_object

    def and_then(source: str, target: str) -> str | None:
        etag = copied(source, target)
        system.pipe(source, b"newer")
        return etag

    system._copy_object = and_then  # type: ignore[method-assign,assignment] # another writer comes at this moment
    with pytest.raises(Conflict):
        system.mv("/e", "/g")
    assert (system.cat("/e"), system.cat("/g")) == (b"newer", b"/e")


@pytest.mark.parametrize("compression", [None, "gzip", "bz2", "xz", "infer"])
@pytest.mark.parametrize("mode", ["w", "wt", "wb", "x", "a"])
def test_a_block_that_an_exception_leaves_stores_nothing(
    by_default: None, root: Path, mode: str, compression: str | None
) -> None:
    system = fsspec.filesystem("objmapper")
    data: Any = b"half" if "b" in mode else "half"
    url = "objmapper:///o.gz"

    def left_in(file: Any) -> None:
        with pytest.raises(KeyError), file as opened:
            opened.write(data)
            raise KeyError

    ways: list[Any] = [
        lambda: system.open("/o.gz", mode, compression=compression),
        lambda: fsspec.open(url, mode, compression=compression),
        lambda: contextlib.closing(fsspec.open(url, mode, compression=compression).open()),
    ]
    for way in ways:
        left_in(way())
        assert not system.exists("/o.gz")
    for way in ways:
        with way() as opened:
            opened.write(data)
        content = (root / "o.gz").read_bytes()
        if compression in ("gzip", "infer"):
            content = gzip.decompress(content)
        elif compression is not None:
            with system.open("/o.gz", "rb", compression=compression) as file:
                content = file.read()
        assert content.endswith(b"half")
        system.rm("/o.gz")


def test_a_close_while_an_older_exception_is_handled_stores(by_default: None, root: Path) -> None:
    def fails() -> None:
        raise KeyError("first")

    try:
        fails()
    except KeyError as error:
        with fsspec.open("objmapper:///log", "w") as file:
            file.write(str(error))
    assert (root / "log").read_text() == "'first'"


def test_a_compressed_file_in_a_transaction_is_whole(system: ObjmapperFileSystem) -> None:
    with system.transaction:
        with system.open("/t.gz", "wt", compression="gzip") as file:
            file.write("text")
        assert not system.exists("/t.gz")
    assert gzip.decompress(system.cat("/t.gz")) == b"text"


def test_pandas_that_fails_midway_stores_nothing(by_default: None, root: Path) -> None:
    class Unwritable:
        def __str__(self) -> str:
            raise KeyError

    with pytest.raises(KeyError):
        pd.DataFrame({"a": [1] * 100_000 + [Unwritable()]}).to_csv("objmapper:///t.csv")
    assert not (root / "t.csv").exists()
    with pytest.raises(pa.ArrowException):
        pd.DataFrame({"a": [1, Unwritable()]}).to_parquet("objmapper:///t.parquet")
    assert not (root / "t.parquet").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # fsspec leaves its cache's file open
@pytest.mark.parametrize("protocol", ["blockcache", "filecache", "simplecache"])
def test_caches_work_over_our_files(by_default: None, root: Path, tmp_path: Path, protocol: str) -> None:
    content = os.urandom(200_000)
    (root / "o").write_bytes(content)
    cache = {protocol: {"cache_storage": str(tmp_path / "cache")}}
    for _ in range(2):
        with fsspec.open(f"{protocol}::objmapper:///o", **cache) as file:
            assert file.read(10) == content[:10]
            file.seek(-10, 2)
            assert file.read() == content[-10:]
            file.seek(0)
            assert file.read() == content
    if protocol != "blockcache":
        with fsspec.open(f"{protocol}::objmapper:///written", "wb", **cache) as file:
            file.write(b"through the cache")
        assert (root / "written").read_bytes() == b"through the cache"


def test_archives_and_directories_are_read_through_chains(by_default: None, root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.writestr("in/side", b"zipped")
    with tarfile.open(root / "a.tar", "w") as tar:
        member = tarfile.TarInfo("side")
        member.size = 6
        tar.addfile(member, io.BytesIO(b"tarred"))
    storage = str(tmp_path / "cache")
    for url, expected in [
        ("zip://in/side::objmapper:///a.zip", b"zipped"),
        ("zip://in/side::simplecache::objmapper:///a.zip", b"zipped"),
        ("tar://side::objmapper:///a.tar", b"tarred"),
        ("dir://a.zip::objmapper:///", (root / "a.zip").read_bytes()),
    ]:
        options = {"simplecache": {"cache_storage": storage}} if "simplecache" in url else {}
        with fsspec.open(url, **options) as file:
            assert file.read() == expected, url
    with zipfile.ZipFile(fsspec.open("objmapper:///made.zip", "wb").open(), "w") as archive:
        archive.writestr("x", b"y")
        stream = archive.fp
        assert stream is not None
    stream.close()
    assert zipfile.ZipFile(io.BytesIO((root / "made.zip").read_bytes())).read("x") == b"y"


def test_our_files_have_what_those_of_fsspec_have(system: ObjmapperFileSystem) -> None:
    system.pipe("/o", b"one\ntwo\nthree")
    with system.open("/o", block_size=5) as file:
        assert (file.fs is system, file.path, file.size, file.mode, file.blocksize) == (True, "/o", 13, "rb", 5)
        assert file.readuntil(b"\n") == b"one\n"
        assert file.readuntil(b"o") == b"two"
        assert file.loc == 7
        file.seek(10)
        assert file.details["size"] == file.info()["size"] == 13
        assert file._fetch_range(4, 7) == b"two"
        assert file.autocommit in (True, False)
        assert file.readline() == b"ree"
        assert file.readuntil(b"\n") == b""
        buffer = bytearray(3)
        file.seek(0)
        assert (file.readinto(buffer), bytes(buffer)) == (3, b"one")
        assert file.full_name.endswith("/o")
        if isinstance(file, ObjectReader):
            for blocks in range(1, 16):
                file.seek(2)
                assert file.readuntil(b"\ntw", blocks=blocks) == b"e\ntw"
                assert file.tell() == 6
                assert file.readuntil(b"\nth", blocks=blocks) == b"o\nth"
                assert file.readuntil(b"\n", blocks=blocks) == b"ree"
    with system.open("/none", "wb") as file:
        assert [file.write(np.empty(shape)) for shape in (0, (0, 3))] == [0, 0]
        assert file.write(np.ones((2, 2), dtype=np.uint8)) == 4
    assert system.cat("/none") == b"\1" * 4
    assert system.read_block("/o", 0, 6, delimiter=b"\n") == b"one\ntwo\n"
    with system.open("/w", "wb") as file:
        file.write(b"a")
        file.flush()
        file.flush(force=True)
        assert (file.fs is system, file.path, file.mode, file.loc, file.autocommit) == (True, "/w", "wb", 1, True)


def test_directories_that_are_made_are_there(system: ObjmapperFileSystem) -> None:
    system.mkdir("/p/q")
    assert system.isdir("/p/q")
    assert system.ls("/p", detail=False) == ["/p/q"]
    assert system.ls("/p/q") == []
    assert [path for path, _, _ in system.walk("/p")] == ["/p", "/p/q"]
    attempts: list[Any] = [lambda: system.mkdir("/p/q"), lambda: system.makedirs("/p"), lambda: system.mkdir("/")]
    for again in attempts:
        with pytest.raises(FileExistsError):
            again()
    system.makedirs("/p/q", exist_ok=True)
    system.pipe("/p/q/o", b"o")
    with pytest.raises(FileExistsError):
        system.makedirs("/p/q", exist_ok=False)
    for exist_ok in (False, True):
        with pytest.raises(FileExistsError):
            system.makedirs("/p/q/o", exist_ok=exist_ok)
    with pytest.raises(NotADirectoryError):
        system.mkdir("/p/q/o/below")
    with pytest.raises(FileNotFoundError):
        system.mkdir("/none/below", create_parents=False)
    with pytest.raises(OSError, match="objects in the directory"):
        system.rmdir("/p/q")
    system.rm("/p", recursive=True)
    assert not system.exists("/p")
    with pytest.raises(FileNotFoundError):
        system.rmdir("/p")
    system.makedirs("/r/s")
    system.rm("/r", recursive=True)
    assert not system.exists("/r/s")


def test_empty_directories_are_copied_moved_and_put(system: ObjmapperFileSystem, tmp_path: Path) -> None:
    system.mkdir("/p/empty")
    system.pipe("/p/o", b"o")
    system.copy("/p", "/copied", recursive=True)
    assert system.ls("/copied", detail=False) == ["/copied/empty", "/copied/o"]
    system.mv("/p", "/moved", recursive=True)
    assert system.ls("/moved", detail=False) == ["/moved/empty", "/moved/o"]
    assert not system.exists("/p")
    (tmp_path / "local/empty").mkdir(parents=True)
    system.put(str(tmp_path / "local"), "/stored", recursive=True)
    assert system.ls("/stored", detail=False) == ["/stored/empty"]
    for name in ("/copied", "/moved", "/stored"):
        system.rm(name, recursive=True)
    assert system.ls("/", detail=False) == []
    system.pipe("/file", b"o")
    with pytest.raises(FileExistsError):
        system.put(str(tmp_path / "local"), "/file", recursive=True)
    assert system.cat("/file") == b"o"


ODD = ["/a[1].txt", "/a*", "/a?", "/[", "/{x}", "/a b", "/#", "/a%20", "/é", "/new\nline", "/.hidden"]


def test_names_are_no_patterns_where_they_are_there(system: ObjmapperFileSystem, tmp_path: Path) -> None:
    for name in ODD:
        system.pipe(name, name.encode())
    for name in ("/a1.txt", "/aa", "/ab"):
        system.pipe(name, b"another")
    for name in ODD:
        assert system.cat(name) == name.encode()
        assert system.expand_path(name) == [name]
        assert system.find(name) == [name]
        target = tmp_path / "got" / str(ODD.index(name))
        system.get(name, str(target))
        assert target.read_bytes() == name.encode()
        (tmp_path / "into").mkdir(exist_ok=True)
        system.get(name, f"{tmp_path}/into/")
        assert (tmp_path / "into" / name[1:]).read_bytes() == name.encode()
        with fsspec.core.OpenFile(system, name) as file:
            assert file.read() == name.encode()
        system.copy(name, "/copy")
        assert system.cat("/copy") == name.encode()
        system.rm(name)
        assert not system.exists(name)
    assert system.find("/") == ["/a1.txt", "/aa", "/ab", "/copy"]
    system.pipe("/d[1]/o", b"o")
    system.pipe("/d1/o", b"other")
    system.rm("/d[1]", recursive=True)
    assert system.cat("/d*/o") == {"/d1/o": b"other"}
    system.rm("/a?")
    assert system.find("/") == ["/a1.txt", "/copy", "/d1/o"]


def test_odd_paths_are_nothing(system: ObjmapperFileSystem) -> None:
    system.pipe("/a/b", b"b")
    for path in ("/a//b", "/../a", "/./a", "/a/b/c", "/a/../a/b", "/" + "n" * 5000, "/nul\0"):
        assert system.find(path) == [], path
        assert list(system.walk(path)) == [], path
        assert not system.exists(path)
        assert not system.isdir(path)
        with pytest.raises(FileNotFoundError):
            system.ls(path)
        with pytest.raises(FileNotFoundError):
            system.info(path)
    for path in ("", "/", "objmapper://", "objmapper:///", "a", "a/", "/a/", "//a", "objmapper:///a/"):
        assert system.find(path) == ["/a/b"], path
        assert system.isdir(path)
    assert [(path, list(dirs), list(files)) for path, dirs, files in system.walk("")] == [
        ("/", ["a"], []),
        ("/a", [], ["b"]),
    ]


def test_files_over_a_wire_appear_whole(system: ObjmapperFileSystem, root: Path, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (root / "o").write_bytes(content)
    target = tmp_path / "target"
    target.write_bytes(b"before")

    class Stops(fsspec.callbacks.Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            assert target.read_bytes() == b"before"
            raise KeyError

    with pytest.raises(KeyError):
        system.get_file("/o", str(target), callback=Stops())
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "socket", "socket.lock", "target"]
    seen = fsspec.callbacks.Callback()
    system.get_file("/o", str(target), callback=seen)
    assert target.read_bytes() == content
    assert (seen.size, seen.value) == (3_000_000, 3_000_000)
    with pytest.raises(FileNotFoundError):
        system.get_file("/none", str(tmp_path / "none"))


def test_options_reach_the_client(server: Server) -> None:
    system = ObjmapperFileSystem(server.addresses["unix"], attempts=7, timeout=3.0, skip_instance_cache=True)
    assert (system.client.attempts, system.client.timeout) == (7, 3.0)
    options: list[dict[str, Any]] = [{"timout": 1}, {"retries": 1}]
    for wrong in options:
        with pytest.raises(TypeError, match=next(iter(wrong))):
            ObjmapperFileSystem(server.addresses["unix"], **wrong)


def test_urls_name_hosts_or_are_refused_with_a_reason() -> None:
    for url, server, path in [
        ("objmapper://[fe80:0:0:0:0:0:0:1]:7000", "tcp://[fe80:0:0:0:0:0:0:1]:7000", "/"),
        ("objmapper://[0:0:0:0:0:0:0:1]:7000/a/b", "tcp://[0:0:0:0:0:0:0:1]:7000", "/a/b"),
        ("objmapper://host/", "tcp://host:9999", "/"),
        ("objmapper://host:1/a", "tcp://host:1", "/a"),
    ]:
        system, found = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        assert (str(system.client.address), found) == (server, path)
    for url, words in [
        ("objmapper://dir.txt", "objmapper:///dir.txt"),
        ("objmapper://[::1]:7000", "written out"),
        ("objmapper://[::1]:7000/a", "server='tcp://"),
        ("objmapper://[1", "invalid"),
        ("objmapper://host:port/a", "port"),
    ]:
        with pytest.raises(AddressError, match=words) as caught:
            fsspec.open(url).open()
        assert "\n" not in str(caught.value)


arrow: Any = pa.Table


def table() -> pd.DataFrame:
    return pd.DataFrame({"part": [1, 1, 2, 3], "number": [10, 20, 30, 40]})


def test_duckdb_writes_partitions(system: ObjmapperFileSystem) -> None:
    with duckdb.connect() as connection:
        connection.register_filesystem(system)
        frame = table()  # noqa: F841 - the query names it
        for overwrite in ("", ", OVERWRITE_OR_IGNORE"):
            connection.sql(f"COPY (FROM frame) TO 'objmapper:///set' (FORMAT parquet, PARTITION_BY (part){overwrite})")
        query = "SELECT sum(number), count(DISTINCT part) FROM read_parquet('objmapper:///set/*/*.parquet')"
        assert connection.sql(query).fetchall() == [(100, 3)]
        connection.unregister_filesystem("objmapper")
    assert {name.split("/")[2] for name in system.find("/set")} == {"part=1", "part=2", "part=3"}


def test_pandas_and_arrow_write_partitions(by_default: None, root: Path) -> None:
    table().to_parquet("objmapper:///pandas", partition_cols=["part"])
    assert pd.read_parquet("objmapper:///pandas")["number"].sum() == 100
    system = fsspec.filesystem("objmapper")
    whole = arrow.from_pandas(table())
    ds.write_dataset(whole, "/arrow", format="parquet", partitioning=["part"], filesystem=system)
    read = ds.dataset("/arrow", filesystem=system, partitioning=["part"]).to_table()
    assert sorted(read["number"].to_pylist()) == [10, 20, 30, 40]
    assert len(list((root / "arrow").rglob("*.parquet"))) == 3


@pytest.mark.filterwarnings("ignore:The inplace keyword:Warning")  # Dask's
def test_dask_writes_partitions(by_default: None, root: Path) -> None:
    make: Any = dd.from_pandas
    frame = make(table(), npartitions=2)
    frame.to_parquet("objmapper:///dask", partition_on=["part"])
    read = dd.read_parquet("objmapper:///dask")
    assert int(read["number"].sum().compute(scheduler="sync")) == 100
    frame.to_csv("objmapper:///csv/*.csv", index=False)
    assert int(dd.read_csv("objmapper:///csv/*.csv")["number"].sum().compute(scheduler="sync")) == 100
    assert {path.parent.name for path in (root / "dask").rglob("*.parquet")} >= {"part=1", "part=2", "part=3"}
