"""An object in hand."""

import gc
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objmapper_client._files.memory_file import MemoryFile
from objmapper_client.errors import RemoteProtocolError
from objmapper_client.object import Object
from objmapper_client.protocol import Mode


def make(tmp_path: Path, content: bytes) -> Object:
    path = tmp_path / "source"
    path.write_bytes(content)
    return Object(os.open(path, os.O_RDONLY), "/source", Mode.FDPASS, len(content))


def test_reading_moves_on_and_pread_does_not(tmp_path: Path) -> None:
    with make(tmp_path, b"abcdef") as found:
        assert found.read(2) == b"ab"
        assert found.pread(2, 4) == b"ef"
        assert found.read() == b"cdef"
        assert found.read() == b""
        assert found.pread(10, 5) == b"f"
        assert found.pread(10, 99) == b""


def test_a_view_outlives_the_object_and_is_read_only(tmp_path: Path) -> None:
    with make(tmp_path, b"abc") as found:
        view = found.view()
    assert bytes(view) == b"abc"
    assert view.readonly
    with make(tmp_path, b"") as found:
        assert bytes(found.view()) == b""


def test_a_detached_descriptor_is_the_callers(tmp_path: Path) -> None:
    found = make(tmp_path, b"abc")
    descriptor = found.detach()
    assert found.closed
    with pytest.raises(ValueError, match="closed"):
        found.fileno()
    found.close()
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == b"abc"


def test_saving_shows_the_file_only_when_it_is_whole(tmp_path: Path) -> None:
    content = os.urandom(20_000_000)
    steps: list[int] = []
    with make(tmp_path, content) as found:
        assert found.save(tmp_path / "target", progress=steps.append) == len(content)
    assert (tmp_path / "target").read_bytes() == content
    assert sum(steps) == len(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with make(tmp_path, b"abc") as found:
        with pytest.raises(OSError, match="No such file"):
            found.save(tmp_path / "none" / "target")
        with pytest.raises(OSError, match="directory"):
            found.save(tmp_path / "directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "source"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        with make(tmp_path, b"abc") as found:
            found.save(tmp_path / "pipe")
        assert reader.communicate()[0] == b"abc"
    assert (tmp_path / "pipe").is_fifo()


def test_another_program_reads_the_descriptor(tmp_path: Path) -> None:
    with make(tmp_path, b"b\na\n") as found:
        sorted_lines = subprocess.run(["sort"], stdin=found.fileno(), capture_output=True, check=True).stdout
    assert sorted_lines == b"a\nb\n"


def test_an_object_that_is_not_closed_is_reported_and_closed(tmp_path: Path) -> None:
    found = make(tmp_path, b"abc")
    with pytest.warns(ResourceWarning, match="unclosed"):
        del found
        gc.collect()


def test_an_object_does_not_travel(tmp_path: Path) -> None:
    with make(tmp_path, b"") as found, pytest.raises(TypeError, match="pickle"):
        pickle.dumps(found)


def test_a_passed_directory_is_the_servers_fault(tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError, match="regular"):
        Object(os.open(tmp_path, os.O_RDONLY), "/x", Mode.FDPASS, 0)


@pytest.mark.parametrize("size", [1 << 62, 1 << 70])
def test_a_content_that_no_memory_holds_is_refused(size: int) -> None:
    memory = MemoryFile()
    with pytest.raises(RemoteProtocolError, match="bytes"):
        memory.allocate(size)
    memory.close()


def test_numpy_sees_the_content_without_a_copy(tmp_path: Path) -> None:

    numbers = np.arange(1000, dtype=np.int64)
    with make(tmp_path, numbers.tobytes()) as found:
        seen = np.frombuffer(found.view(), dtype=np.int64)
    assert (seen == numbers).all()
    assert not seen.flags.writeable
    assert not seen.flags.owndata


def test_arrow_reads_the_view(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"a": [1, 2, 3]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with make(tmp_path, sink.getvalue().to_pybytes()) as found:
        assert pa.ipc.open_file(pa.py_buffer(found.view())).read_all() == table


def test_safetensors_maps_the_descriptor(tmp_path: Path) -> None:
    import safetensors.numpy

    content = safetensors.numpy.save({"weights": np.ones((3, 4), dtype=np.float32)})
    with make(tmp_path, content) as found:
        loaded = safetensors.numpy.load_file(f"/proc/self/fd/{found.fileno()}")
    assert (loaded["weights"] == 1).all()


def test_the_kernel_sends_it_to_a_socket(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with make(tmp_path, b"abcdef") as found, ours, theirs:
        assert os.sendfile(ours.fileno(), found.fileno(), 2, 3) == 3
        assert theirs.recv(10) == b"cde"


def test_a_child_gets_it_by_number_and_only_then(tmp_path: Path) -> None:
    with make(tmp_path, b"abc") as found:
        number = found.fileno()
        read = [sys.executable, "-c", f"import os; print(os.read({number}, 9))"]
        given = subprocess.run(read, pass_fds=[number], capture_output=True, text=True, check=True)
        assert given.stdout == "b'abc'\n"
        withheld = subprocess.run(read, close_fds=False, capture_output=True, text=True, check=False)
        assert "Bad file descriptor" in withheld.stderr
        assert not os.get_inheritable(number)


def test_a_buffer_is_filled_from_an_offset(tmp_path: Path) -> None:
    with make(tmp_path, b"abcdef") as found:
        buffer = bytearray(4)
        assert found.readinto(buffer, 1) == 4
        assert bytes(buffer) == b"bcde"
        assert found.readinto(buffer, 4) == 2
        assert bytes(buffer) == b"efde"


def test_more_is_asked_for_than_any_memory_holds(tmp_path: Path) -> None:
    with make(tmp_path, b"abcdef") as found:
        assert found.read(2) == b"ab"
        assert found.read(1 << 62) == b"cdef"
        assert found.read(1 << 70) == b""
        assert found.pread(1 << 70, 1) == b"bcdef"


@pytest.mark.parametrize("shape", [0, (0, 3), (3, 0)])
def test_a_buffer_without_room_is_filled_with_nothing(tmp_path: Path, shape: int | tuple[int, ...]) -> None:
    empty: Any = np.empty(shape)
    with make(tmp_path, b"abcdef") as found:
        assert found.readinto(empty) == 0


def test_a_buffer_that_cannot_be_filled_is_refused(tmp_path: Path) -> None:
    with make(tmp_path, b"abcdef") as found:
        with pytest.raises(TypeError, match="buffer: bytes is read-only"):
            found.readinto(b"abc")
        strided: Any
        for strided in (np.zeros((4, 4))[::2], np.zeros((2, 2), order="F")):
            with pytest.raises(TypeError, match="buffer: ndarray is not contiguous"):
                found.readinto(strided)
