"""`objmapper bench`: what cannot be measured is said before anything is, in one line."""

import json
from pathlib import Path

import pytest

from objmapper_server import Server

from .conftest import Run, one_line

BRIEFLY = ("--requests", 20, "--rounds", 1)


def test_a_server_of_its_own(objmapper: Run) -> None:
    got = objmapper("bench", "latency", *BRIEFLY, "--file-size", "3MiB", "--mode", "copy", "--json")
    assert (got.returncode, got.stderr) == (0, b"")
    (row,) = json.loads(got.stdout)["rows"]
    assert row["errors"] == 0
    assert row["bytes"] >= 20 * (3 << 20)


def test_a_server_that_runs(server: Server, objmapper: Run) -> None:
    got = objmapper("bench", "latency", *BRIEFLY, "--server", server.addresses["tcp"], "--uri", "/a", "--json")
    assert (got.returncode, got.stderr) == (0, b"")
    (row,) = json.loads(got.stdout)["rows"]
    assert (row["errors"], row["transport"]) == (0, "tcp")
    assert row["bytes"] >= 20 * 5


@pytest.mark.parametrize(
    ("uri", "code"), [("/missing", 3), ("/link", 6), ("/../a", 2), ("", 2)], ids=["missing", "link", "outside", "empty"]
)
def test_an_object_that_is_not_to_be_had_is_not_measured(server: Server, objmapper: Run, uri: str, code: int) -> None:
    got = objmapper("bench", "throughput", "--server", server.addresses["unix"], "--uri", uri)
    assert (got.returncode, got.stdout) == (code, b"")
    assert uri in one_line(got.stderr)


def test_a_server_that_is_not_there(objmapper: Run) -> None:
    got = objmapper("bench", "latency", "--server", "unix:/nowhere", "--uri", "/a")
    assert got.returncode == 4
    assert "unix:/nowhere" in one_line(got.stderr)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["latency", "--concurrency-model", "none"], "concurrency_model"),
        (["latency", "--optimize-for", "none"], "optimize_for"),
        (["storage", "--cache-size", "none"], "cache_size"),
        (["storage", "--hit-rate", "some"], "--hit-rate: expected numbers from 0 to 1, separated by commas (got some)"),
        (
            ["storage", "--hit-rate", "0,1.5"],
            "--hit-rate: expected numbers from 0 to 1, separated by commas (got 0,1.5)",
        ),
        (["scale", "--clients", "0"], "--clients: expected numbers from 1 to 100000, separated by commas (got 0)"),
        (["scale", "--duration", "0s"], "--duration: expected a number above 0 with a unit"),
        (["latency", "--file-size", "-1"], "--file-size: expected bytes, such as 4096, 64KiB or 1MB (got -1)"),
        (["latency", "--transport", "none"], "--transport: expected one of unix, tcp, udp (got none)"),
        (["latency", "--server", "unix:/nowhere"], "--uri"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(objmapper: Run, arguments: list[str], says: str) -> None:
    got = objmapper("bench", *arguments)
    assert (got.returncode, got.stdout) == (2, b"")
    assert says in one_line(got.stderr)


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_rate_is_above_nothing(objmapper: Run, rate: str) -> None:
    got = objmapper("bench", "latency", "--rate", rate)
    assert (got.returncode, got.stdout) == (2, b"")
    assert b"--rate" in got.stderr


def test_objects_that_do_not_fit_are_not_begun(objmapper: Run, tmp_path: Path) -> None:
    got = objmapper("bench", "latency", "--file-size", "1PB")
    assert (got.returncode, got.stdout) == (1, b"")
    assert "--file-size" in one_line(got.stderr)


@pytest.mark.parametrize("picture", ["none/picture.png", "picture", "picture.doc"])
def test_a_picture_that_cannot_be_drawn_is_refused_before_the_measuring(objmapper: Run, picture: str) -> None:
    got = objmapper("bench", "latency", "--plot", picture)
    assert (got.returncode, got.stdout) == (2, b"")
    assert b"--plot" in got.stderr
