"""The fsspec file system beside fsspec's own for local files and for memory: each call gives what one of the two gives.

What differs with a reason is not here: the root is called ``/`` where theirs is empty, `cat(recursive=True)` leaves out
directories where theirs fail, `modified` of a directory is an error, and the mode ``r+b`` is refused.
"""

import io
import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import fsspec.asyn
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from objmapper_client.filesystem import ObjmapperFileSystem
from objmapper_server import Config, Server

LONG = bytes(range(256)) * 40
TREE = {
    "/a.txt": b"line1\nline2\nline3",
    "/d/b.csv": b"1,2\n3,4\n",
    "/d/e/f.bin": LONG,
    "/d/e/g": b"",
    "/x[1].txt": b"odd",
    "/a b": b"space",
    "/z/1/2/3": b"deep",
}
PATHS = ["a.txt", "/a.txt", "d", "d/", "/d/", "d/e", "none", "d/none", "a.txt/x"]
PATTERNS = ["*", "/*", "d/*", "d/**", "*/", "**/*.csv", "d/?", "*.txt", "x[[]1[]].txt", "x[1].txt", "none*", "z/*/2"]
PATTERNS += ["d/[a-c]*", "d/e/[!f]*", "{a,b}*", "z/**/3", "z/**/", "a*b"]
RANGES = [(0, None), (2, 5), (-3, None), (None, -2), (5, 100), (100, 200), (3, 3), (0, 0), (-100, None)]
CACHES = [None, "readahead", "bytes", "mmap", "all", "none", "first", "background", "blockcache"]
MISUSE = {ValueError, OSError, io.UnsupportedOperation}
Call = Callable[[Any], Any]


def calls_on_paths() -> Iterator[tuple[str, Call]]:
    for path in PATHS:
        for name in ("exists", "isdir", "isfile", "size", "cat", "du", "find", "expand_path"):
            yield f"{name}({path!r})", methodcaller(name, path)
        yield f"info({path!r})", partial(kind_of, path)
        yield f"ls({path!r})", partial(listed, path)
    for path in PATTERNS:
        for depth in (None, 1, 2):
            yield f"glob({path!r}, {depth})", partial(globbed, path, depth)
    for path in ("d", "none", "a.txt"):
        for options in ({}, {"maxdepth": 1}, {"topdown": False}):
            yield f"walk({path!r}, {options})", partial(walked, path, options)
        for options in ({"maxdepth": 1}, {"withdirs": True}, {"withdirs": True, "maxdepth": 1}):
            yield f"find({path!r}, {options})", methodcaller("find", path, **options)
    for path in ("d", "d/*", "*", "none*", "d/**"):
        yield f"expand_path({path!r}, recursive)", methodcaller("expand_path", path, recursive=True)
    for start, end in RANGES:
        yield f"cat_file[{start}:{end}]", methodcaller("cat_file", "a.txt", start, end)


def kind_of(path: str, fs: Any) -> Any:
    return fs.info(path)["type"]


def listed(path: str, fs: Any) -> Any:
    return sorted((at["name"], at["type"]) for at in fs.ls(path))


def globbed(path: str, depth: int | None, fs: Any) -> Any:
    return {name: at["type"] for name, at in fs.glob(path, maxdepth=depth, detail=True).items()}


def walked(path: str, options: dict[str, Any], fs: Any) -> Any:
    return [(at, sorted(folders), sorted(files)) for at, folders, files in fs.walk(path, **options)]


CALLS: dict[str, Call] = dict(calls_on_paths())
CALLS |= {
    "head": lambda fs: fs.head("a.txt", 5),
    "tail": lambda fs: (fs.tail("a.txt", 5), fs.tail("a.txt", 500)),
    "read_block": lambda fs: (fs.read_block("a.txt", 2, 7, b"\n"), fs.read_block("a.txt", 100, 10)),
    "cat, several": lambda fs: fs.cat(["a.txt", "d/b.csv"]),
    "cat, one missing": lambda fs: fs.cat(["a.txt", "none"]),
    "cat, omit": lambda fs: fs.cat(["a.txt", "none"], on_error="omit"),
    "cat_ranges": lambda fs: fs.cat_ranges(["a.txt", "a.txt", "d/b.csv"], [0, 2, 1], [3, None, -1]),
    "cat_ranges, scalar": lambda fs: fs.cat_ranges(["a.txt", "d/b.csv"], 0, 2),
    "cat_ranges, of two lengths": lambda fs: fs.cat_ranges(["a.txt"], [0, 1], [2]),
    "pipe, several": lambda fs: (fs.pipe({"p1": b"1", "p2": b"2"}), fs.cat(["p1", "p2"])),
    "pipe_file, create": lambda fs: fs.pipe_file("a.txt", b"x", mode="create"),
    "touch": lambda fs: (fs.touch("t1"), fs.cat("t1"), fs.touch("a.txt"), fs.cat("a.txt")),
    "touch, keep": lambda fs: (fs.touch("a.txt", truncate=False), fs.cat("a.txt")),
    "rm, missing": lambda fs: fs.rm("none"),
    "rm, several": lambda fs: (fs.rm(["a.txt", "d/b.csv"]), fs.exists("a.txt"), fs.exists("d/b.csv")),
    "rm, pattern": lambda fs: (fs.rm("*.txt"), fs.exists("a.txt")),
    "rmdir, missing": lambda fs: fs.rmdir("none"),
    "mkdir, there": lambda fs: fs.mkdir("d"),
    "makedirs, there": lambda fs: (fs.makedirs("d", exist_ok=True), fs.makedirs("d")),
    "copy": lambda fs: (fs.copy("a.txt", "c1"), fs.cat("c1")),
    "copy, missing": lambda fs: fs.copy("none", "c1"),
    "copy, several": lambda fs: (fs.copy(["a.txt", "d/b.csv"], ["c3", "c4"]), fs.cat("c4")),
    "mv": lambda fs: (fs.mv("a.txt", "m"), fs.exists("a.txt"), fs.cat("m")),
    "mv, tree": lambda fs: (fs.mv("d", "n", recursive=True), sorted(fs.find("n")), fs.exists("d")),
    "open, missing": lambda fs: fs.open("none", "rb"),
    "open, a directory": lambda fs: read_of(fs, "d", "rb"),
    "open, text": lambda fs: read_of(fs, "a.txt", "r"),
    "open, exclusive": lambda fs: fs.open("a.txt", "xb").close(),
    "open, exclusive and new": lambda fs: written(fs, "new", "xb", b"x"),
    "open, append": lambda fs: written(fs, "a.txt", "ab", b"x"),
    "open, append and new": lambda fs: written(fs, "new", "ab", b"x"),
    "mapper": lambda fs: (sorted(fs.get_mapper("d")), fs.get_mapper("d")["b.csv"]),
    "mapper, missing": lambda fs: fs.get_mapper("d")["none"],
    "mapper, clear": lambda fs: (fs.get_mapper("d").clear(), sorted(fs.get_mapper("d"))),
    "write, tell": lambda fs: with_file(fs, lambda file: (file.write(b"abc"), file.tell())),
    "write, flush": lambda fs: with_file(
        fs, lambda file: (file.write(bytearray(b"ab")), file.flush(), file.write(b"c"))
    ),
    "write, lines": lambda fs: with_file(fs, lambda file: file.writelines([b"a", b"b"])),
    "write, text": lambda fs: with_file(fs, lambda file: file.write("x")),
}
READS: dict[str, Call] = {
    "seek to the end": lambda file: (file.seek(0, 2), file.read(), file.tell()),
    "seek beyond": lambda file: (file.seek(99_999), file.read(5), file.tell()),
    "seek before": lambda file: file.seek(-1),
    "seek from the end": lambda file: (file.seek(-10, 2), file.read()),
    "seek, whence": lambda file: file.seek(0, 7),
    "read the rest": lambda file: (file.seek(10_237), file.read(-1), file.seek(10_237), file.read(None)),
    "readline": lambda file: (file.readline(), file.readline()),
    "readlines": lambda file: len(file.readlines()),
    "iterate": lambda file: len(list(file)),
    "flags": lambda file: (file.readable(), file.writable(), file.seekable(), file.closed),
    "write": lambda file: file.write(b"x"),
    "closed": lambda file: (file.close(), file.close(), file.closed, file.read()),
}


def clear(folder: Path) -> None:
    """Remove all but what begins with a dot: the server's own."""
    for each in folder.glob("[!.]*"):
        LocalFileSystem().rm(str(each), recursive=True)


def written(fs: Any, path: str, mode: str, data: bytes) -> bytes:
    with fs.open(path, mode) as file:
        file.write(data)
    return bytes(fs.cat(path))


def read_of(fs: Any, path: str, mode: str) -> Any:
    with fs.open(path, mode) as file:
        return file.read()


def with_file(fs: Any, use: Call) -> Any:
    with fs.open("w", "wb") as file:
        use(file)
    return fs.cat("w")


def outcome(call: Call, given: Any) -> Any:
    """What a call gives, for comparison: names begin with a slash, errors are their kinds."""
    try:
        return plain(call(given))
    except OSError as error:
        # Theirs are the built-in ones, ours are kinds of those.
        return next(kind for kind in type(error).__mro__ if kind.__module__ in ("builtins", "io"))
    except Exception as error:
        return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


def plain(found: Any) -> Any:
    if isinstance(found, dict):
        return {plain(name): plain(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [plain(each) for each in found]
    return "/" + found.lstrip("/") if isinstance(found, str) else found


@pytest.fixture(scope="module", autouse=True)
def _fsspec_has_its_loop() -> None:
    """It stays for the whole process, with its descriptors."""
    fsspec.asyn.get_loop()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    unix = tmp_path_factory.mktemp("run") / "socket"
    with Server(Config(root=root, unix=unix, tcp="127.0.0.1:0", admin=None, writable=True)) as server:
        yield server


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    kept = MemoryFileSystem.store, MemoryFileSystem.pseudo_dirs
    MemoryFileSystem.store, MemoryFileSystem.pseudo_dirs = {}, [""]
    yield MemoryFileSystem(skip_instance_cache=True)
    MemoryFileSystem.store, MemoryFileSystem.pseudo_dirs = kept


@pytest.fixture
def system(server: Server, root: Path, transport: str) -> Iterator[ObjmapperFileSystem]:
    clear(root)
    system = ObjmapperFileSystem(server.addresses[transport], skip_instance_cache=True)
    with system.client:
        yield system


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_calls_give_what_those_of_others_give(
    system: ObjmapperFileSystem, memory: MemoryFileSystem, root: Path, tmp_path: Path
) -> None:
    different = []
    for name, call in CALLS.items():
        local = DirFileSystem(str(tmp_path / "local"), LocalFileSystem(auto_mkdir=True))
        memory.rm("/", recursive=True)
        for folder in (root, tmp_path / "local"):
            clear(folder)
        for path, content in TREE.items():
            memory.pipe_file(path, content)
            local.pipe_file(path[1:], content)
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (root / path[1:]).write_bytes(content)
        ours, theirs = outcome(call, system), [outcome(call, local), outcome(call, memory)]
        if ours not in theirs:
            different.append((name, ours, theirs))
    assert not different


# fsspec's own `MMapCache` leaves its temporary file to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("cache", CACHES)
def test_files_read_as_those_of_others_do(
    system: ObjmapperFileSystem, root: Path, tmp_path: Path, cache: str | None
) -> None:
    for folder in (root, tmp_path):
        (folder / "file").write_bytes(LONG)
    different = []
    for name, use in READS.items():
        options: dict[str, Any] = {} if cache is None else {"cache_type": cache, "block_size": 5}
        with system.open("/file", "rb", **options) as file, (tmp_path / "file").open("rb") as local:
            ours, theirs = outcome(use, file), outcome(use, local)
        # `io.UnsupportedOperation` is both of the others, and a seek to before the start is one of them.
        if ours != theirs and not (isinstance(ours, type) and {ours, theirs} <= MISUSE):
            different.append((name, ours, theirs))
    assert not different


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_file_systems_and_files_are_pickled(system: ObjmapperFileSystem, root: Path) -> None:
    (root / "file").write_bytes(LONG)
    again = pickle.loads(pickle.dumps(system))
    from_json = ObjmapperFileSystem.from_json(system.to_json())
    with again.client, from_json.client:
        assert again.cat("/file") == from_json.cat("/file") == LONG
        with system.open("/file") as file:
            file.seek(7)
            with pickle.loads(pickle.dumps(file)) as copied:
                assert copied.read() in (LONG, LONG[7:])


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_modified_has_parts_of_seconds(system: ObjmapperFileSystem, root: Path) -> None:
    (root / "file").touch()
    os.utime(root / "file", ns=(0, -1_500_000_000))
    assert system.modified("/file").isoformat() == "1969-12-31T23:59:58.500000+00:00"
