"""Objects of an S3 store through every model and transport: once from the store, then from the disk."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from objmapper_client import Client, ObjmapperError, ServerBusy
from objmapper_server import Concurrency, Server
from tests.origins.conftest import SIZES, Serve
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.models import MODELS


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_each_object_comes_whole_over_each_transport(serve: Serve, bucket: Path, model: Concurrency) -> None:
    server = serve({"tcp": "127.0.0.1:0", "concurrency_model": model})
    for transport in ("unix", "tcp"):
        with Client(server.addresses[transport]) as client:
            for name in SIZES:
                expected = (bucket / "prod" / name).read_bytes()
                assert client.read(f"/models/{name}") == expected
                assert b"".join(client.stream(f"/models/{name}")) == expected
                found = client.stat(f"/models/{name}")
                assert found.size == len(expected)
                assert found.mtime == int((bucket / "prod" / name).stat().st_mtime)


def test_a_descriptor_is_that_of_a_file_on_this_machine(client: Client, bucket: Path) -> None:
    with client.open("/models/parts") as first, client.open("/models/parts") as second:
        expected = (bucket / "prod" / "parts").read_bytes()
        assert os.pread(first.fileno(), len(expected) + 1, 0) == expected
        assert os.fstat(first.fileno()).st_ino == os.fstat(second.fileno()).st_ino
        # Each has an offset of its own.
        assert (os.read(first.fileno(), 10), os.read(second.fileno(), 10)) == (expected[:10], expected[:10])
        assert first.etag == second.etag


def test_ranges_of_an_object(client: Client, bucket: Path) -> None:
    expected = (bucket / "prod" / "parts").read_bytes()
    for offset, length in [(0, 10), (8 << 20, 1), ((24 << 20), 100), ((24 << 20) + 17, 5), (5, None)]:
        end = None if length is None else offset + length
        assert client.read("/models/parts", offset=offset, length=length) == expected[offset:end]


def test_the_store_is_asked_once(client: Client, proxy: FaultProxy) -> None:
    for _ in range(3):
        client.read("/models/small")
        client.stat("/models/small")
    assert len(proxy.requests) == 1


def test_many_that_want_one_cold_object_cause_one_download(server: Server, proxy: FaultProxy, bucket: Path) -> None:
    answers: list[bytes] = []

    def fetch() -> None:
        with Client(server.addresses["unix"]) as client:
            answers.append(client.read("/models/parts"))

    threads = [threading.Thread(target=fetch) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(bucket / "prod" / "parts").read_bytes()] * 32
    # 24 MiB and a little more: four parts.
    assert len(proxy.requests) == 4


def test_what_is_there_outlives_the_server(serve: Serve, proxy: FaultProxy) -> None:
    server = serve()
    with Client(server.addresses["unix"]) as client:
        content, etag = client.read("/models/small"), client.stat("/models/small").etag
    server.stop()
    asked = len(proxy.requests)
    with Client(serve().addresses["unix"]) as client:
        assert (client.read("/models/small"), client.stat("/models/small").etag) == (content, etag)
    assert len(proxy.requests) == asked


def test_what_is_not_there_is_not_found_and_asked_for_once(client: Client, proxy: FaultProxy) -> None:
    for name in ("nothing", "folder/nothing"):
        for _ in range(2):
            with pytest.raises(ObjmapperError, match="no such object"):
                client.read(f"/models/{name}")
    assert len(proxy.requests) == 2


def test_the_local_root_is_served_beside_it(client: Client) -> None:
    assert client.read("/local") == b"local"
    with pytest.raises(ObjmapperError, match="no such object"):
        client.read("/modelsx/small")


def test_an_etag_is_that_of_the_version_at_the_store(serve: Serve, bucket: Path, tmp_path: Path) -> None:
    """Two servers with caches of their own give one version one etag, and another version another one."""
    etags: set[str | None] = set()
    for number in range(2):
        unix = tmp_path / f"{number}.sock"
        server = serve({"unix": unix, "disk_cache": tmp_path / f"cache-{number}"}, revalidate="always")
        with Client(server.addresses["unix"]) as client:
            etags.add(client.stat("/models/small").etag)
            with client.open("/models/small") as opened:
                etags.add(opened.etag)
    assert len(etags) == 1


def test_writes_are_refused(serve: Serve) -> None:
    server = serve({"writable": True})
    with Client(server.addresses["unix"]) as client:
        with pytest.raises(ObjmapperError, match="an object of an origin, which this server only reads"):
            client.put("/models/small", b"new")
        with pytest.raises(ObjmapperError, match="an object of an origin, which this server only reads"):
            client.delete("/models/small")
        client.put("/beside", b"new")
        assert client.read("/beside") == b"new"


def test_an_object_larger_than_the_cache_is_refused_with_the_reason(serve: Serve, bucket: Path) -> None:
    (bucket / "prod" / "huge").write_bytes(bytes(65 << 20))
    server = serve({"disk_cache_size": "64MiB"})
    with Client(server.addresses["unix"]) as client:
        with pytest.raises(ObjmapperError, match="larger than the server's disk cache; its disk_cache_size"):
            client.read("/models/huge")
        assert len(client.read("/models/parts")) == SIZES["parts"]


def test_a_list_below_the_prefix_is_refused_with_the_reason(client: Client) -> None:
    for prefix in ("/models", "/models/", "/models/folder/"):
        with pytest.raises(ObjmapperError, match="which this server does not list"):
            list(client.list(prefix))
    assert [each.uri for each in client.list("/")] == ["/local"]


@pytest.mark.parametrize("uri", ["/models", "/models/"])
def test_the_prefix_itself_is_no_object(client: Client, proxy: FaultProxy, uri: str) -> None:
    with pytest.raises(ObjmapperError):
        client.read(uri)
    assert proxy.requests == []


def test_over_udp_the_first_request_starts_the_download(serve: Serve, bucket: Path) -> None:
    server = serve({"udp": "127.0.0.1:0"})
    expected = (bucket / "prod" / "small").read_bytes()

    def fetched() -> bool:
        with Client(server.addresses["udp"]) as client, suppress(ServerBusy):
            return client.read("/models/small") == expected
        return False

    assert eventually(fetched)


def test_access_rules_hold_before_the_store_is_asked(serve: Serve, proxy: FaultProxy) -> None:
    server = serve({"allow_prefix": {"/models": [f"uid:{os.getuid() + 1}"]}})
    with Client(server.addresses["unix"]) as client, pytest.raises(ObjmapperError, match="may not use this URI"):
        client.read("/models/small")
    assert proxy.requests == []
