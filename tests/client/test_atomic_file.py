"""Files that appear under their name only when they are whole, by `Object.save` and by what the command writes with."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from objmapper_client._files.atomic_file import atomic_file, open_output
from objmapper_client.object import Object
from objmapper_client.protocol import Mode

#: Saves an object in steps of 8 MiB, and stops for ever after the first.
HALFWAY = """
import os, sys
from objmapper_client.object import Object
from objmapper_client.protocol import Mode

def stop(moved):
    print(moved, flush=True)
    sys.stdin.read()

Object(os.open(sys.argv[1], os.O_RDONLY), "/x", Mode.FDPASS).save(sys.argv[2], stop)
"""
SIZE = 20 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    return tmp_path / "source"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def refusing(number: int) -> Callable[..., int]:
    """open(2) of a file system that has no files without a name."""
    there = os.open

    def opened(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number), path)
        return there(path, flags, mode)

    return opened


@pytest.fixture(params=["O_TMPFILE", "EOPNOTSUPP", "EISDIR", "EINVAL", "no /proc"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kernels and file systems that have files without a name, and those that do not."""
    kind = str(request.param)
    if kind == "no /proc":
        monkeypatch.setattr("objmapper_client._files.atomic_file._PROCESS_DESCRIPTORS", "/nonexistent")
    elif kind != "O_TMPFILE":
        monkeypatch.setattr(os, "open", refusing(getattr(errno, kind)))
    return kind


def saved(source: Path, target: Path) -> int:
    with Object(os.open(source, os.O_RDONLY), "/source", Mode.FDPASS) as found:
        return found.save(target)


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_appears_when_it_is_complete(kernel: str, source: Path, folder: Path, before: bytes | None) -> None:
    target = folder / "target"
    if before is not None:
        target.write_bytes(before)
    with open_output(target) as output:
        assert os.write(output, b"half") == 4
        assert (target.read_bytes() if target.exists() else None) == before
        # It has another name only where it must have one.
        assert len(list(folder.glob(".target.*.part"))) == (kernel != "O_TMPFILE")
    assert target.read_bytes() == b"half"
    assert saved(source, target) == SIZE
    assert target.read_bytes() == source.read_bytes()
    assert list(folder.iterdir()) == [target]


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failure_leaves_what_was_there(kernel: str, folder: Path, before: bytes | None) -> None:
    target = folder / "target"
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(KeyError), open_output(target) as output:
        os.write(output, b"half")
        raise KeyError
    assert (target.read_bytes() if target.exists() else None) == before
    assert list(folder.iterdir()) == [target] * (before is not None)


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_kill_leaves_what_was_there(source: Path, folder: Path, before: bytes | None) -> None:
    target = folder / "target"
    if before is not None:
        target.write_bytes(before)
    command = [sys.executable, "-c", HALFWAY, str(source), str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert 0 < int(process.stdout.readline()) < SIZE
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    assert (target.read_bytes() if target.exists() else None) == before
    assert list(folder.iterdir()) == [target] * (before is not None)


def test_a_file_keeps_its_permissions_and_a_link_its_place(kernel: str, folder: Path) -> None:
    (folder / "file").write_bytes(b"old")
    (folder / "file").chmod(0o604)
    (folder / "link").symlink_to("file")
    with open_output(folder / "link") as output:
        os.write(output, b"new")
    assert (folder / "link").is_symlink()
    assert (folder / "file").read_bytes() == b"new"
    assert (folder / "file").stat().st_mode & 0o7777 == 0o604


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "𝄞" * 63])
def test_the_longest_name_that_a_file_can_have(kernel: str, folder: Path, name: str) -> None:
    for content in (b"first", b"second"):
        with open_output(folder / name) as output:
            os.write(output, content)
        assert (folder / name).read_bytes() == content
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_bare_name_is_in_the_working_directory(kernel: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with atomic_file("target", sync=True) as output:
        os.write(output, b"whole")
    assert (folder / "target").read_bytes() == b"whole"


def test_closed_connections_know_the_names(kernel: str, folder: Path) -> None:
    partial_files: set[str] = set()
    with atomic_file(folder / "target", partial_files=partial_files):
        assert [Path(name).parent for name in partial_files] == [folder]
        assert {path for path in folder.iterdir() if path.suffix == ".part"} <= {Path(name) for name in partial_files}
    assert partial_files == set()


def test_an_error_names_the_file_that_was_wanted(kernel: str, folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, open_output(folder / "none" / "target"):
        pass
    assert caught.value.filename == str(folder / "none" / "target")
