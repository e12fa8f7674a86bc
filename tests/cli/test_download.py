"""Ranges of files, and files that appear when they are whole, without a process around them."""

import os
from pathlib import Path

import pytest

from objmapper_cli.output_file import open_output_file
from objmapper_client._files.copy import copy_to


def test_a_range_of_a_file_and_its_progress(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(20 << 20))
    steps: list[int] = []
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        assert copy_to(source.fileno(), target.fileno(), 17 << 20, 5, steps.append) == 17 << 20
        assert source.tell() == 0
    assert sum(steps) == 17 << 20
    assert len(steps) > 1
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()[5 : 5 + (17 << 20)]


def test_a_file_that_ends_early_ends_the_copy(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"short")
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        assert copy_to(source.fileno(), target.fileno(), 100, 2, lambda _: None) == 3


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_output_file(str(out)) as target:
        os.write(target, b"whole")
        assert not out.exists()
    assert out.read_bytes() == b"whole"
    with pytest.raises(KeyError), open_output_file(str(out)):
        raise KeyError
    assert out.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [out]


def test_a_new_file_has_the_users_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with open_output_file(str(tmp_path / "out")):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
