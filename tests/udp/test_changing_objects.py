"""Objects that change while they arrive over UDP: one version whole, or an error, never a mixture."""

import os
import threading
import time
from pathlib import Path

import pytest

from objmapper_client import Client, Conflict, ObjectNotFound, ServerBusy
from objmapper_server import Config, Server
from tests.support.lossy_relay import lossy_relay
from tests.support.network_faults import NO_FAULTS
from tests.udp.conftest import Read


def replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    beside.rename(path)


def test_an_object_that_changes_midway_arrives_as_it_is_then(tmp_path: Path, read: Read) -> None:
    path, old, new = tmp_path / "object", b"old!" * 200_000, b"new, and longer" * 60_000
    with Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server:
        for number in (2, 10):
            replace(path, old)
            with lossy_relay(server.addresses["udp"], NO_FAULTS, 0) as relay:
                relay.on_answer = lambda at, wanted=number: replace(path, new) if at == wanted else None  # type: ignore[misc]
                assert read(relay.address, "/object") == new


def test_an_object_that_never_stops_changing_is_given_up(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "object"
    replace(path, bytes(1 << 20))
    with (
        Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server,
        lossy_relay(server.addresses["udp"], NO_FAULTS, 0) as relay,
    ):
        relay.on_answer = lambda at: replace(path, bytes([at % 256]) * (1 << 20))
        with pytest.raises(Conflict, match="changed 3 times"):
            read(relay.address, "/object")
        # It begins again twice, not for ever.
        assert relay.datagrams_from_server < 200


def test_an_object_that_is_deleted_midway_is_not_there(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "object"
    replace(path, bytes(1 << 20))
    with (
        Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server,
        lossy_relay(server.addresses["udp"], NO_FAULTS, 0) as relay,
    ):
        relay.on_answer = lambda at: path.unlink(missing_ok=True) if at == 3 else None
        with pytest.raises(ObjectNotFound):
            read(relay.address, "/object")


def test_a_stream_cannot_take_back_what_it_handed_out(tmp_path: Path) -> None:
    path, old = tmp_path / "object", os.urandom(3 << 20)
    replace(path, old)
    with Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        chunks = client.stream("/object", chunk_size=100_000)
        assert next(chunks) == old[:100_000]
        replace(path, os.urandom(3 << 20))
        with pytest.raises(Conflict, match="while it was streamed"):
            list(chunks)
        assert client.read("/object") == path.read_bytes()


def test_an_object_that_is_written_in_place_is_never_torn(tmp_path: Path) -> None:
    """Every state of it is one byte, many times: no transfer brings two of them together."""
    path, size, stop = tmp_path / "object", 400_000, threading.Event()
    path.write_bytes(bytes(size))

    def write() -> None:
        for turn in range(100_000):
            if stop.is_set():
                return
            path.write_bytes(bytes([turn % 256]) * size)
            time.sleep(0.002)

    with Server(Config(root=tmp_path, udp="127.0.0.1:0")) as server, Client(server.addresses["udp"]) as client:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(60):
                try:
                    assert len(set(client.read("/object"))) <= 1
                except (Conflict, ServerBusy):
                    continue
        finally:
            stop.set()
            writer.join()
        assert client.read("/object") == path.read_bytes()
