"""Trees of the fsspec file system: copies and moves that lose nothing, made directories, names like patterns."""

from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
import pytest

from objmapper_client import Conflict
from objmapper_client.filesystem import ObjmapperFileSystem

PATTERN_LIKE_NAMES = ["/a[1].txt", "/a*", "/a?", "/[", "/{x}", "/a b", "/#", "/a%20", "/é", "/new\nline", "/.hidden"]


def stored(system: ObjmapperFileSystem) -> dict[str, bytes]:
    return {name: system.cat_file(name) for name in system.find("/")}


@pytest.fixture
def tree(system: ObjmapperFileSystem) -> dict[str, bytes]:
    names = ("/d/x", "/d/sub/x", "/d/sub/deep/y", "/e", "/f")
    for name in names:
        system.pipe(name, name.encode())
    return stored(system)


def test_onto_itself_nothing_changes(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    for operation in (system.mv, system.copy):
        operation("/e", "/e")
        operation("/e", "objmapper:///e")
        operation("/d", "/d", recursive=True)
        operation("/d/", "/d/", recursive=True)
        operation("/d/x", "/d/")
        operation("/d/sub", "/d/", recursive=True)
        operation(["/e", "/f"], ["/e", "/f"])
        assert stored(system) == tree
        with pytest.raises(FileNotFoundError):
            operation("/none", "/none")


def test_a_directory_does_not_go_into_itself(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    for operation in (system.mv, system.copy):
        for target in ("/d/sub", "/d/sub/", "/d/new", "/d/sub/deep/z"):
            with pytest.raises(OSError, match="into itself"):
                operation("/d", target, recursive=True)
            assert stored(system) == tree


def test_no_move_overwrites_another_source(system: ObjmapperFileSystem, tree: dict[str, bytes]) -> None:
    for operation in (system.mv, system.copy):
        with pytest.raises(OSError, match="another source of this copy"):
            operation(["/e", "/f"], ["/f", "/g"])
        with pytest.raises(OSError, match="another source of this copy"):
            operation(["/d/x", "/d/sub/x"], "/flat/")
        with pytest.raises(ValueError, match="got 2 sources, 1 targets"):
            operation(["/e", "/f"], ["/g"])
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

    def copy_then_change(source: str, target: str) -> str | None:
        etag = copied(source, target)
        system.pipe(source, b"newer")
        return etag

    system._copy_object = copy_then_change  # type: ignore[method-assign,assignment] # another writer comes at this moment
    with pytest.raises(Conflict):
        system.mv("/e", "/g")
    assert (system.cat("/e"), system.cat("/g")) == (b"newer", b"/e")


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
    with pytest.raises(OSError, match="directory has objects"):
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


def test_names_are_no_patterns_where_they_are_there(system: ObjmapperFileSystem, tmp_path: Path) -> None:
    for name in PATTERN_LIKE_NAMES:
        system.pipe(name, name.encode())
    for name in ("/a1.txt", "/aa", "/ab"):
        system.pipe(name, b"another")
    for name in PATTERN_LIKE_NAMES:
        assert system.cat(name) == name.encode()
        assert system.expand_path(name) == [name]
        assert system.find(name) == [name]
        target = tmp_path / "got" / str(PATTERN_LIKE_NAMES.index(name))
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
