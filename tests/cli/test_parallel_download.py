"""``objmapper get`` of several objects: one after the other to standard output, or each into a file of a directory."""

import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from objmapper_cli.parallel_download import tasks_below
from objmapper_client import Client, RemoteProtocolError
from objmapper_client.protocol.v2_requests import Operation
from objmapper_client.protocol.v2_responses import Entry, Metadata, encode_entry
from objmapper_server import Server
from tests.cli.conftest import HOME, Run, one_line
from tests.support.fake_server_v2 import Peer, fake_server_v2

TRANSPORTS = ("unix", "tcp")


@pytest.fixture
def tree(root: Path) -> Path:
    for at in range(60):
        path = root / "tree" / str(at % 3) / f"{at}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(at * 1000))
        os.utime(path, (1_600_000_000 + at, 1_600_000_000 + at))
    (root / "tree-of-another").write_bytes(b"")
    return root / "tree"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_json_reports_each_file(server: Server, objmapper: Run, tree: Path, tmp_path: Path) -> None:
    for fetched in (True, False):
        got = objmapper("get", "-r", "/tree/", "-o", "out", "--json")
        assert (got.returncode, got.stderr) == (0, b"")
        documents = [json.loads(line) for line in got.stdout.splitlines()]
        assert {each["uri"] for each in documents} == {f"/tree/{at % 3}/{at}.bin" for at in range(60)}
        assert {each["fetched"] for each in documents} == {fetched}
        assert all((tmp_path / each["file"]).stat().st_size == each["size"] for each in documents)
    got = objmapper("get", "/a", "-o", "a", "--json")
    assert json.loads(got.stdout) == {"uri": "/a", "file": "a", "size": 5, "fetched": True}
    got = objmapper("get", "/a", "--json")
    assert (got.returncode, got.stdout) == (2, b"")
    assert "-o FILE or DIR" in one_line(got.stderr)


def test_several_go_to_standard_output_in_order(server: Server, objmapper: Run) -> None:
    got = objmapper("get", "/a", "/missing", "/a")
    assert (got.returncode, got.stdout) == (3, b"hellohello")
    assert "/missing" in one_line(got.stderr)


def test_several_go_into_a_directory_under_their_names(server: Server, objmapper: Run, tmp_path: Path) -> None:
    got = objmapper("get", "/a", "/missing", "/big", "/link", "-o", "out")
    assert got.returncode in (3, 6)
    assert sorted(got.stderr.splitlines())[1].startswith(b"objmapper: /missing")
    assert sorted(content(tmp_path / "out")) == ["a", "big"]
    assert content(tmp_path / "out")["a"] == b"hello"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_tree_arrives_as_it_is(server: Server, objmapper: Run, tree: Path, tmp_path: Path, transport: str) -> None:
    got = objmapper("get", "-r", "/tree/", "-o", "out", "--server", server.addresses[transport])
    assert (got.returncode, got.stdout, got.stderr) == (0, b"", b"")
    assert content(tmp_path / "out") == content(tree)
    for path in tree.rglob("*.bin"):
        assert int((tmp_path / "out" / path.relative_to(tree)).stat().st_mtime) == int(path.stat().st_mtime)


def test_a_prefix_is_text(server: Server, objmapper: Run, tree: Path, tmp_path: Path) -> None:
    assert objmapper("get", "-r", "/tree", "-o", "out").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tree", "tree-of-another"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_files_that_are_up_to_date_are_skipped(
    server: Server, objmapper: Run, tree: Path, tmp_path: Path, transport: str
) -> None:
    command = ["get", "-r", "/tree/", "-o", "out", "--server", server.addresses[transport]]
    assert objmapper(*command).returncode == 0
    out = tmp_path / "out"
    before = {path: path.stat().st_ino for path in out.rglob("*.bin")}
    (out / "0/3.bin").write_bytes(b"of another size, as another program may leave it")
    (out / "1/1.bin").unlink()
    os.utime(out / "2/2.bin", (1, 1))
    os.utime(tree / "0/0.bin", (2, 2))
    assert objmapper(*command).returncode == 0
    assert content(out) == content(tree)
    again = {str(path.relative_to(out)) for path, inode in before.items() if path.stat().st_ino != inode}
    # A new file may get the number of a removed one.
    assert again <= {"0/3.bin", "1/1.bin", "2/2.bin", "0/0.bin"}
    assert {"0/3.bin", "2/2.bin", "0/0.bin"} <= again


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-r", "/tree/"], 2, "-o DIR"),
        (["-r", "/none", "-o", "out"], 3, "/none"),
        (["-r", "//", "-o", "out"], 2, "//"),
        (["/a", "/big", "-o", "out", "--offset", "1"], 2, "--offset"),
        (["/a", "/tree/../a", "-o", "out"], 2, "out/a"),
        (["/a", "/b", "-o", "root/a"], 2, "root/a"),
        (["/a", "/b", "-o", "out", "--server", "unix:/nowhere"], 4, "unix:/nowhere"),
    ],
)
def test_an_error_of_the_whole_run_is_one_line(
    server: Server, objmapper: Run, tree: Path, arguments: list[str], code: int, says: str
) -> None:
    got = objmapper("get", *arguments)
    assert got.returncode == code
    assert says in one_line(got.stderr)


def test_as_many_are_fetched_at_once_as_the_command_says(objmapper: Run, tmp_path: Path) -> None:
    names = [f"/{number}" for number in range(10, 22)]
    all_at_once = threading.Barrier(len(names))

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.operation is Operation.LIST:
                peer.answer(request, b"".join(encode_entry(Entry(name, 1, 7)) for name in names))
            else:
                all_at_once.wait(30)
                peer.answer(request, b"x")

    with fake_server_v2(tmp_path, script) as server:
        got = objmapper("get", "-r", "/", "-o", "out", "-j", len(names), "--mode", "copy", "--server", server.address)
    assert (got.returncode, got.stderr) == (0, b"")
    assert len(content(tmp_path / "out")) == len(names)


def test_fewer_threads_than_wanted_do_the_work(server: Server, tree: Path, tmp_path: Path) -> None:
    """The kernel refuses threads for want of address space for their stacks, of 128 MiB each."""
    script = (
        f"ulimit -s 131072; ulimit -v $((1 << 20)); exec {sys.executable} -m objmapper_cli get -r /tree/ -o out -j 1000"
    )
    environment = {**os.environ, "PYTHONPATH": f"{HOME}/cli:{HOME}", "OBJMAPPER_SERVER": server.addresses["tcp"]}
    ended = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert content(tmp_path / "out") == content(tree)


def test_a_directory_is_not_replaced(server: Server, objmapper: Run, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out/0/0.bin").mkdir(parents=True)
    got = objmapper("get", "-r", "/tree/", "-o", "out")
    assert got.returncode == 1
    # The others are there; the end says how many are not.
    assert b"out/0/0.bin: a directory is in the place of" in got.stderr.splitlines()[0]
    assert got.stderr.splitlines()[1:] == [b"objmapper: 1 of 60 objects were not fetched"]
    assert len(content(tmp_path / "out")) == 59
    assert list((tmp_path / "out").rglob("*.part")) == []


class EscapingListClient(Client):
    """A client of a server that lists what no server should."""

    def list(self, prefix: str = "/", *, page_size: int = 1000, left_out=None):  # type: ignore[no-untyped-def]
        yield Entry(f"{prefix}../../etc/passwd", 1, 1)


def test_a_server_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    with EscapingListClient("unix:/nowhere") as client, pytest.raises(RemoteProtocolError, match="no path below"):
        list(tasks_below(client, "/tree/", tmp_path))


@pytest.mark.parametrize("mode", ["copy", "fdpass"])
@pytest.mark.parametrize("detailed", [False, True])
@pytest.mark.parametrize("mtime", [-(1 << 63), (1 << 63) - 1, 1 << 62, 1 << 40])
def test_a_time_that_no_file_has_spoils_no_other_object(
    objmapper: Run, tmp_path: Path, mtime: int, detailed: bool, mode: str
) -> None:
    """A server lists an object with a time of 2^63 seconds and the like: it gets another time or an error, it alone."""
    names = [b"/t/before", b"/t/far", b"/t/later"]
    (tmp_path / "content").write_bytes(b"12345")

    def entry(name: bytes) -> bytes:
        time = mtime if name == b"/t/far" else 1_600_000_000
        if detailed:
            return struct.pack(">BH", 1, len(name)) + name + struct.pack(">QqI", 5, time, 0)
        return struct.pack(">H", len(name)) + name + struct.pack(">Qq", 5, time)

    def script(peer: Peer) -> None:
        while True:
            request = peer.request()
            if request.operation is Operation.LIST:
                peer.answer(request, b"".join(map(entry, names)), metadata=Metadata(form=1 if detailed else None))
            else:
                time = mtime if request.uri == "/t/far" else 1_600_000_000
                metadata = Metadata(size=5, mtime=time, etag="00000000000000ee")
                data = b"" if request.operation is Operation.STAT else b"12345"
                peer.answer(request, data, metadata=metadata, path=str(tmp_path / "content"))

    with fake_server_v2(tmp_path, script) as server:
        got = objmapper("get", "-r", "/t/", "-o", "out", "--mode", mode, "--server", server.address)
        listed = objmapper("ls", "-l", "/t/", "--server", server.address)
        stat = objmapper("stat", "/t/far", "--server", server.address)
    fetched = content(tmp_path / "out")
    assert {name: fetched.pop(name) for name in ("before", "later")} == {"before": b"12345", "later": b"12345"}
    assert b"Traceback" not in got.stderr
    assert b"internal error" not in got.stderr
    if got.returncode == 0:
        assert fetched == {"far": b"12345"}
    else:
        assert got.returncode == 1
        assert got.stderr.splitlines()[0].startswith(b"objmapper: out/far: ")
        assert got.stderr.splitlines()[1:] == [b"objmapper: 1 of 3 objects were not fetched"]
        assert fetched == {}
    assert list((tmp_path / "out").rglob("*.part")) == []
    assert (listed.returncode, listed.stderr, len(listed.stdout.splitlines())) == (0, b"", 3)
    assert (stat.returncode, stat.stderr) == (0, b"")
