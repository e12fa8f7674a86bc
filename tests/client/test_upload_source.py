"""What may be handed over to be stored, and that just its bytes are: files of all kinds, buffers, pieces."""

import array
import asyncio
import bz2
import gzip
import io
import lzma
import mmap
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from objmapper_client import AsyncClient, Client, LocalProtocolError
from objmapper_client._operations.upload_source import Source, open_source
from objmapper_client._runtime.effects import Effects, RunBlocking
from tests.support.both_clients import Caller

LARGE = os.urandom(3_000_000)


@pytest.mark.parametrize("length", [2, 4, 6])
def test_a_length_that_is_wrong_stores_nothing(
    call: Caller, address: str, root: Path, tmp_path: Path, length: int
) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"-fives")
    with path.open("rb") as file, path.open("rb", buffering=0) as raw, gzip.open(tmp_path / "z", "wb") as packed:
        packed.write(b"fives")
        packed.close()
        file.read(1)
        raw.read(1)
        with gzip.open(tmp_path / "z") as unpacked:
            for source in (b"fives", io.BytesIO(b"fives"), iter([b"fi", b"ves"]), file, raw, unpacked):
                with pytest.raises(LocalProtocolError, match="length"):
                    call(address, ("put", "/x", source, {"length": length}))
    for nothing in (b"", iter([b""]), io.BytesIO()):
        call(address, ("put", "/empty", nothing, {"length": 0}))
    for more in (iter([b"", b"x"]), io.BytesIO(b"x")):
        with pytest.raises(LocalProtocolError, match="length"):
            call(address, ("put", "/x", more, {"length": 0}))
    assert [path.name for path in root.iterdir() if path.is_file()] == ["empty"]


def test_a_part_of_a_file_is_put_as_pieces(call: Caller, address: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.read(2)
        call(address, ("put", "/x", iter([file.read(5)]), {"length": 5}))
        file.seek(8)
        call(address, ("put", "/rest", file, {"length": 2}))
    assert (root / "x").read_bytes() == b"23456"
    assert (root / "rest").read_bytes() == b"89"


class UpperCaseFile(io.FileIO):
    """A file that reads other bytes than those that it has."""

    def readall(self) -> bytes:
        return super().readall().upper()

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None else size).upper()


class CountingFile(io.BufferedReader):
    """The same over a buffer."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).upper()


@pytest.mark.parametrize("content", [b"small text", b"large text " * 50_000])
def test_a_file_is_put_as_it_reads(call: Caller, address: str, root: Path, tmp_path: Path, content: bytes) -> None:
    packers: dict[str, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    for name, opened in packers.items():
        path = tmp_path / f"source.{name}"
        with opened(path, "wb") as file:
            file.write(content)
        with opened(path, "rb") as file:
            call(address, ("put", "/x", file))
        assert (root / "x").read_bytes() == content, name
        with fsspec.open(f"file://{path}", compression="infer") as file:
            file.read(3)
            call(address, ("put", "/x", file))
        assert (root / "x").read_bytes() == content[3:], name
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        (tmp_path / "member").write_bytes(content)
        tar.add(tmp_path / "member", "member")
    with tarfile.open(tmp_path / "t.tar") as tar:
        member = tar.extractfile("member")
        assert member is not None
        call(address, ("put", "/x", member))
    assert (root / "x").read_bytes() == content
    for kind in (UpperCaseFile, lambda path: CountingFile(io.FileIO(path))):
        with kind(tmp_path / "member") as file:
            call(address, ("put", "/x", file))
        assert (root / "x").read_bytes() == content.upper()


def open_and_close(steps: Effects[Source]) -> Source:
    """Runs them in this thread."""
    try:
        effect = next(steps)
        while True:
            assert isinstance(effect, RunBlocking)
            effect = steps.send(effect.function())
    except StopIteration as done:
        source: Source = done.value
        return source


def test_a_file_without_a_change_goes_by_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    with (
        path.open("rb") as buffered,
        path.open("rb", buffering=0) as raw,
        path.open("r+b") as both,
        tempfile.SpooledTemporaryFile(1) as spooled,
    ):
        spooled.write(LARGE)
        spooled.seek(0)
        with tempfile.NamedTemporaryFile() as named:
            named.write(LARGE)
            named.seek(0)
            for file in (buffered, raw, both, named, spooled):
                assert open_and_close(open_source(file, None)).is_whole_file, file


def test_whatever_has_a_buffer_is_put(call: Caller, address: str, root: Path, tmp_path: Path) -> None:
    numbers = array.array("i", [1, 2, 300])
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    with (tmp_path / "mapped").open("w+b") as file:
        file.write(b"mapped")
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            for data, expected in [
                (numbers, numbers.tobytes()),
                (matrix, matrix.tobytes()),
                (np.zeros((0, 3)), b""),
                (iter([numbers, matrix[:1]]), numbers.tobytes() + matrix[:1].tobytes()),
                (mapped, b"mapped"),
            ]:
                call(address, ("put", "/x", data))
                assert (root / "x").read_bytes() == expected
    call(address, ("put", "/x", iter([numbers]), {"length": 12}))
    for wrong in (matrix[:, :1], [1, 2], ["text"], iter([b"a", None]), np.array([object()])):
        with pytest.raises(TypeError, match="data"):
            call(address, ("put", "/y", wrong))
    assert not (root / "y").exists()


def test_a_uri_is_text(call: Caller, address: str, root: Path) -> None:
    (root / "a").write_bytes(b"a")
    for uri in (b"/a", Path("/a"), 5, None):
        for operation in ("open", "read", "stat", "delete", "list"):
            with pytest.raises(LocalProtocolError, match=f"must be a str, got {type(uri).__name__}"):
                call(address, (operation, uri))
        with pytest.raises(LocalProtocolError, match="must be a str"):
            call(address, ("put", uri, b""))
        # Nothing of it is left in the way of others.
        assert call(address, ("read", "/a")) == [b"a"]


def test_a_pipe_that_waits_lets_the_loop_go_on(address: str, root: Path) -> None:
    """The pipe is filled by a task of the same loop: a put that waited for it would wait for ever."""

    async def use(buffering: int, length: int | None) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", buffering=buffering) as pipe:
            async with AsyncClient(address) as client:
                put = asyncio.create_task(client.put("/x", pipe, length=length))
                with os.fdopen(writing, "wb", buffering=0) as end:
                    for _ in range(20):
                        await asyncio.sleep(0.001)
                        await asyncio.get_running_loop().run_in_executor(None, end.write, b"." * 10_000)
                await put
        assert (root / "x").read_bytes() == b"." * 200_000

    for buffering in (0, -1):
        for length in (None, 200_000):
            asyncio.run(use(buffering, length))


def test_a_cancelled_put_leaves_the_pipe_alone(address: str, root: Path) -> None:
    reading, writing = os.pipe()

    async def use() -> None:
        with pytest.raises(TimeoutError):
            async with AsyncClient(address) as client, asyncio.timeout(0.1):
                await client.put("/x", pipe)

    with open(reading, "rb") as pipe, open(writing, "wb") as end:
        asyncio.run(use())
        end.write(b"still here")
        end.close()
        assert pipe.read() == b"still here"
    assert not (root / "x").exists()


def test_what_a_program_prints_is_put(call: Caller, address: str, root: Path) -> None:
    with subprocess.Popen(["sh", "-c", "echo a; sleep 0.1; echo b"], stdout=subprocess.PIPE) as program:
        call(address, ("put", "/x", program.stdout))
    assert (root / "x").read_bytes() == b"a\nb\n"
    # An event loop cannot wait for it.
    with open("/dev/zero", "rb", buffering=0) as zeros, pytest.raises(LocalProtocolError, match="length"):
        call(address, ("put", "/y", zeros, {"length": 100}))


def test_another_client_reads_a_put_from_a_file(address: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(LARGE)
    with Client(address) as client:
        client.put("/x", tmp_path / "source")
        assert client.read("/x") == LARGE
