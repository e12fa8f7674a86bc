"""What programs do with an fsspec file system: move and copy trees, cache files, leave blocks, write partitions."""

import contextlib
import gzip
import io
import os
import tarfile
import zipfile
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

from objmapper_client import AddressError
from objmapper_client._files.fsspec_reader import ObjectReader
from objmapper_client.filesystem import ObjmapperFileSystem
from objmapper_server import Server


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
