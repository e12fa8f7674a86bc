"""A small RLIMIT_NOFILE: the server reports what fits, or does not start; a ready server accepts connections."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from objmapper_client import Client
from tests.support.server_process import ServerProcess

LIMITS = [24, 32, 40, 48, 56, 64, 72, 80, 96, 128]
PRLIMIT = "prlimit"


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("admin", ["none", "127.0.0.1:0"])
def test_it_serves_a_client_or_does_not_start(tmp_path: Path, limit: int, admin: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "object").write_bytes(b"content")
    by = [PRLIMIT, f"--nofile={limit}:{limit}"]
    flags = ("--admin", admin, "--tcp", "127.0.0.1:0", "--writable")
    try:
        server = ServerProcess(root, tmp_path / "o.sock", *flags, by=by)
    except AssertionError as error:
        said = str(error)
        assert "Traceback" not in said
        assert limit < 96, said
        assert f"to serve one client (got {limit})" in said or limit < 40, said
        return
    with server:
        if "max_connections lowered" not in "".join(server.output_lines):
            pytest.fail("it does not say what fits")
        for address in server.addresses.values():
            with Client(address) as client:
                assert client.read("/object") == b"content"
                client.put("/new", b"content")
        with Client(server.addresses["unix"]) as client, client.open("/object") as found:
            assert found.read() == b"content"


def test_the_tests_can_lower_limits() -> None:
    command = [PRLIMIT, "--nofile=64:64", sys.executable, "-c", "import resource; print(resource.getrlimit(7)[0])"]
    assert resource.RLIMIT_NOFILE == 7
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "64\n"
