"""Stores that fail, lie, change or go away: right bytes or an error with its reason, and what is cached is served."""

import json
import re
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from objmapper_client import Client, ObjectNotFound, ObjmapperError, PermissionDenied, ServerBusy
from objmapper_server import Server
from tests.origins.conftest import SIZES, Serve
from tests.support.eventually import eventually
from tests.support.fault_proxy import Fault, FaultProxy, Request
from tests.support.s3_server import SECRET_KEY


def once(fault: Fault, wanted: Callable[[Request], bool]) -> Callable[[Request], Fault | None]:
    """A fault that happens to the first request of a kind alone."""
    left = [1]

    def decide(request: Request) -> Fault | None:
        if not wanted(request) or not left[0]:
            return None
        left[0] -= 1
        return fault

    return decide


def always(fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda _: fault


def begins_at(offset: int) -> Callable[[Request], bool]:
    return lambda request: request.headers.get("range", "").startswith(f"bytes={offset}-")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=503, headers={"retry-after": "0"}), id="busy"),
        pytest.param(Fault(status=500), id="error"),
        pytest.param(Fault(cut_after=0), id="nothing"),
        pytest.param(Fault(cut_after=100_000), id="cut off"),
        pytest.param(Fault(stall_after=100_000), id="stalled"),
        pytest.param(Fault(delay=0.3), id="slow"),
    ],
)
@pytest.mark.parametrize("offset", [0, 24 << 20])
def test_a_part_that_fails_once_is_asked_for_again(
    serve: Serve, proxy: FaultProxy, bucket: Path, fault: Fault, offset: int
) -> None:
    proxy.fault = once(fault, begins_at(offset))
    with Client(serve(stall_timeout=0.5).addresses["unix"]) as client:
        assert client.read("/models/parts") == (bucket / "prod" / "parts").read_bytes()


def test_parts_of_two_versions_never_mix(serve: Serve, proxy: FaultProxy, bucket: Path) -> None:
    other = Fault(headers={"etag": '"another"'})
    server = serve()
    with Client(server.addresses["unix"]) as client:
        proxy.fault = once(other, begins_at(16 << 20))
        assert client.read("/models/parts") == (bucket / "prod" / "parts").read_bytes()
    server.stop()


def test_an_object_that_changes_again_and_again_is_an_error_that_says_so(serve: Serve, proxy: FaultProxy) -> None:
    proxy.fault = lambda request: Fault(status=412) if begins_at(16 << 20)(request) else None
    with Client(serve().addresses["unix"]) as client:
        with pytest.raises(ServerBusy, match="changed at its origin while the server fetched it, twice"):
            client.read("/models/parts")
        proxy.fault = lambda _: None
        assert len(client.read("/models/parts")) == SIZES["parts"]


def test_a_changed_object_is_fetched_anew_and_a_held_descriptor_keeps_its_version(serve: Serve, bucket: Path) -> None:
    path = bucket / "prod" / "changing"
    path.write_bytes(b"first")
    with Client(serve(revalidate="always").addresses["unix"]) as client, client.open("/models/changing") as held:
        path.write_bytes(b"second!")
        assert client.read("/models/changing") == b"second!"
        assert held.read() == b"first"
        assert client.stat("/models/changing").size == 7


def test_an_unchanged_object_costs_no_body(serve: Serve, proxy: FaultProxy) -> None:
    server = serve(revalidate="always")
    with Client(server.addresses["unix"]) as client:
        expected = client.read("/models/small")
        proxy.fault = lambda request: Fault(status=304) if "if-none-match" in request.headers else None
        assert client.read("/models/small") == expected
    statistics = server.origin_statistics()
    assert statistics is not None
    (mount,) = statistics.mounts
    assert (mount.fills, mount.revalidations, mount.origin_bytes) == (1, 1, SIZES["small"])


def test_what_is_cached_is_served_while_the_store_is_away(serve: Serve, proxy: FaultProxy) -> None:
    server = serve(revalidate="always")
    with Client(server.addresses["unix"]) as client:
        expected = client.read("/models/small")
        proxy.fault = lambda _: Fault(status=503)
        assert client.read("/models/small") == expected
        with pytest.raises(ServerBusy, match="origin of this object is unreachable or fails"):
            client.read("/models/empty")
        statistics = server.origin_statistics()
        assert statistics is not None
        (mount,) = statistics.mounts
        assert mount.stale_hits == 1
        assert mount.problem is not None
        assert "503" in mount.problem
        proxy.fault = lambda _: None
        assert client.read("/models/empty") == b""
        after = server.origin_statistics()
        assert after is not None
        assert after.mounts[0].problem is None


def test_after_stale_if_error_it_is_an_error(serve: Serve, proxy: FaultProxy) -> None:
    with Client(serve(revalidate="always", stale_if_error=0).addresses["unix"]) as client:
        client.read("/models/small")
        proxy.fault = lambda _: Fault(status=500)
        with pytest.raises(ServerBusy):
            client.read("/models/small")


def test_only_not_found_drops_an_object(serve: Serve, proxy: FaultProxy, bucket: Path) -> None:
    path = bucket / "prod" / "vanishing"
    path.write_bytes(b"there")
    with Client(serve(revalidate="always", negative_ttl=0).addresses["unix"]) as client:
        assert client.read("/models/vanishing") == b"there"
        for status in (403, 500):
            proxy.fault = always(Fault(status=status))
            assert client.read("/models/vanishing") == b"there"
        proxy.fault = lambda _: None
        path.unlink()
        for _ in range(2):
            with pytest.raises(ObjectNotFound):
                client.read("/models/vanishing")


def test_wrong_credentials_are_forbidden_and_say_why(serve: Serve) -> None:
    options = {"access_key_id": "unknown", "secret_access_key": "canary-of-a-wrong-key"}
    server = serve(options=options)
    with (
        Client(server.addresses["unix"]) as client,
        pytest.raises(PermissionDenied, match="refuses the server's credentials"),
    ):
        client.read("/models/small")


def test_the_bound_holds_while_more_is_read_than_fits(serve: Serve, bucket: Path) -> None:
    for number in range(40):
        (bucket / "prod" / f"many-{number}").write_bytes(bytes([number]) * (4 << 20))
    server = serve({"disk_cache_size": "64MiB"})
    failures: list[object] = []

    def read(first: int) -> None:
        with Client(server.addresses["unix"]) as client:
            for number in range(first, 40, 4):
                if client.read(f"/models/many-{number}") != bytes([number]) * (4 << 20):
                    failures.append(number)
                statistics = server.origin_statistics()
                assert statistics is not None
                taken = statistics.cached_bytes + statistics.reserved_bytes + statistics.held_bytes
                if taken > 64 << 20:
                    failures.append(taken)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    statistics = server.origin_statistics()
    assert statistics is not None
    assert statistics.evictions >= 24
    on_disk = sum(path.stat().st_blocks * 512 for path in Path(statistics.directory).rglob("*") if path.is_file())
    assert on_disk <= (64 << 20) + (1 << 20)


def test_no_secret_leaves(serve: Serve, proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key nor its value shows in logs, errors, documents and metrics, also where the store fails."""
    server = serve({"admin": "127.0.0.1:0"}, revalidate="always")
    texts = [repr(server.config), repr(server)]
    with Client(server.addresses["unix"]) as client:
        client.read("/models/small")
        for status in (403, 500):
            proxy.fault = always(Fault(status=status))
            with pytest.raises(ObjmapperError) as caught:
                client.read("/models/empty")
            texts.append(str(caught.value))
    assert eventually(lambda: "origin /models" in caplog.text)
    for path in ("config", "stats", "metrics", "readyz", "overview"):
        with urllib.request.urlopen(f"{server.admin_address}/{path}") as answer:
            texts.append(answer.read().decode())
    assert "secret_access_key" in "".join(texts)
    assert SECRET_KEY not in "".join(texts) + caplog.text


def test_metrics_and_readiness_name_the_mount(serve: Serve, proxy: FaultProxy) -> None:
    server = serve({"admin": "127.0.0.1:0"})

    def get(path: str) -> str:
        with urllib.request.urlopen(f"{server.admin_address}/{path}") as answer:
            return str(answer.read().decode())

    with Client(server.addresses["unix"]) as client:
        client.read("/models/small")
        client.read("/models/small")
        metrics = get("metrics")
        assert 'objmapper_origin_hits_total{mount="/models"} 1.0' in metrics
        assert 'objmapper_origin_misses_total{mount="/models"} 1.0' in metrics
        assert f'objmapper_origin_bytes_total{{mount="/models"}} {SIZES["small"]}.0' in metrics
        assert re.search(r"^objmapper_disk_cache_cached_files 1\.0$", metrics, re.MULTILINE)
        assert "failing_origins" not in json.loads(get("readyz"))
        proxy.fault = lambda _: Fault(status=503)
        with pytest.raises(ServerBusy):
            client.read("/models/empty")
        assert "503" in json.loads(get("readyz"))["failing_origins"]["/models"]
        assert 'objmapper_origin_up{mount="/models"} 0.0' in get("metrics")


def test_a_directory_of_another_server_or_of_other_files_is_one_clear_line(
    serve: Serve, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="another server uses this directory for its disk cache"):
        serve({"unix": tmp_path / "second.sock"})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "file").touch()
    with pytest.raises(OSError, match="files in it that are not a cache's"):
        serve({"unix": tmp_path / "second.sock", "disk_cache": foreign})
    assert [path.name for path in foreign.iterdir()] == ["file"]


def test_a_cache_that_is_deleted_under_the_server_is_a_miss(server: Server, client: Client, bucket: Path) -> None:
    expected = client.read("/models/small")
    statistics = server.origin_statistics()
    assert statistics is not None
    for path in (Path(statistics.directory) / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    assert client.read("/models/small") == expected


def test_an_option_that_the_store_does_not_know_is_one_line(serve: Serve) -> None:
    with pytest.raises(OSError, match=r"origin /models: .*no_such_option") as caught:
        serve(options={"no_such_option": "canary-value"})
    assert "canary-value" not in str(caught.value)
