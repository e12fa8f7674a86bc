"""Where ``objmapper get`` and `Object.save` write: open files, FIFOs and devices, and what is no place for a file."""

import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from objmapper_client import Client
from objmapper_client.filesystem import ObjmapperFileSystem
from objmapper_server import Server
from tests.cli.conftest import COMMAND, Run, one_line

PLACES = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]


@pytest.mark.parametrize("place", PLACES)
def test_an_open_file_is_written_to_and_not_replaced(
    server: Server, environment: dict[str, str], tmp_path: Path, place: str
) -> None:
    (tmp_path / "f").write_bytes(b"old and longer than the object")
    inode = (tmp_path / "f").stat().st_ino
    command = f"{' '.join(COMMAND)} get /a -o {place}"
    subprocess.run(["sh", "-c", f"{command} > f && {command} >> f"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "f").read_bytes() == b"hellohello"
    assert (tmp_path / "f").stat().st_ino == inode


def test_saving_to_a_descriptor_writes_at_its_position(server: Server, tmp_path: Path) -> None:
    with Client(server.addresses["unix"]) as client, client.open("/a") as found, (tmp_path / "f").open("wb") as file:
        file.write(b"before ")
        file.flush()
        for place in (
            f"/dev/fd/{file.fileno()}",
            f"/proc/self/fd/{file.fileno()}",
            f"/proc/{os.getpid()}/fd/{file.fileno()}",
        ):
            assert found.save(place) == 5
        with (tmp_path / "f").open("rb") as reading, pytest.raises(OSError, match="not open for writing"):
            found.save(f"/dev/fd/{reading.fileno()}")
        with pytest.raises(OSError, match="Bad file descriptor"):
            found.save("/dev/fd/999")
    assert (tmp_path / "f").read_bytes() == b"before hellohellohello"


def test_a_fifo_and_a_device_are_written_to(server: Server, objmapper: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    came: list[bytes] = []
    reader = threading.Thread(target=lambda: came.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    assert objmapper("get", "/a", "-o", "link").returncode == 0
    reader.join()
    assert came == [b"hello"]
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert objmapper("get", "/a", "-o", "/dev/null").returncode == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["get", "/a", "-o", "missing/"], 1, "missing/: No such directory"),
        (["get", "/a", "-o", ""], 2, "--output: expected a file"),
        (["get", "-r", "/", "-o", ""], 2, "--output: expected a file"),
        (["get", "/a", "-o", "root/"], 1, "root/: Is a directory"),
        (["put", "", "/new"], 2, "FILE: expected a file"),
    ],
)
def test_an_unusable_path_is_one_clear_error(
    server: Server, objmapper: Run, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    got = objmapper(*arguments)
    assert got.returncode == code
    assert says in one_line(got.stderr)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_holes_stay_holes(server: Server, objmapper: Run, root: Path, tmp_path: Path, transport: str) -> None:
    with (root / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(32 << 20)
    at = ["--server", server.addresses[transport]]
    assert objmapper("get", "/sparse", "-o", "out", *at).returncode == 0
    assert (tmp_path / "out").read_bytes() == (root / "sparse").read_bytes()
    assert (tmp_path / "out").stat().st_blocks * 512 < 2 << 20
    got = objmapper("get", "/sparse", "-o", "part", "--offset", 100, "--length", (8 << 20) + 5, *at)
    assert got.returncode == 0
    assert (tmp_path / "part").read_bytes() == (root / "sparse").read_bytes()[100 : 100 + (8 << 20) + 5]


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_holes_stay_holes_where_a_program_saves(server: Server, root: Path, tmp_path: Path, transport: str) -> None:
    random = os.urandom(1 << 20)
    with (root / "sparse").open("wb") as file:
        for at in (0, (8 << 20) + 5, 20 << 20):
            file.seek(at)
            file.write(random)
        file.truncate((32 << 20) + 77)
    whole, steps = (root / "sparse").read_bytes(), list[int]()
    with Client(server.addresses[transport]) as client:
        with client.open("/sparse") as found:
            assert found.save(tmp_path / "saved", progress=steps.append) == len(whole)
        with client.open("/big") as found:
            assert found.save(tmp_path / "dense") == 20 << 20
        with client.open("/a") as found:
            assert found.save(tmp_path / "small") == 5
    assert sum(steps) == len(whole)
    files = ObjmapperFileSystem(server.addresses[transport], skip_instance_cache=True)
    with files.client:
        files.get_file("/sparse", str(tmp_path / "got"))
    for name in ("saved", "got"):
        assert (tmp_path / name).read_bytes() == whole
        assert (tmp_path / name).stat().st_blocks * 512 < 4 << 20
    assert (tmp_path / "dense").read_bytes() == (root / "big").read_bytes()
    assert (tmp_path / "small").read_bytes() == b"hello"
