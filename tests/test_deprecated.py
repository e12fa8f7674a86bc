"""Names of the interface that became better ones: the old ones warn, and do what the new ones do."""

import re
import warnings
from pathlib import Path

import pytest

from objmapper_client import Mode
from objmapper_server import Config, Server, Statistics

HOME = Path(__file__).parent.parent


def test_old_names_of_config(tmp_path: Path) -> None:
    config, other = Config.load(root=tmp_path, environment=False), Config(root=tmp_path, pool_size=3)
    with pytest.warns(DeprecationWarning, match=r"Config\.read_again is deprecated: use Config\.reloaded") as caught:
        assert config.read_again() == config.reloaded()
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=r"use Config\.with_settings_from"):
        changed = config.with_those_of(other, ["pool_size"])
    assert (changed.pool_size, changed.sources["pool_size"]) == (3, "the program")
    with pytest.warns(DeprecationWarning, match=r"use Config\.replace"):
        changed = config.replaced("a test", pool_size=4)
    assert (changed.pool_size, changed.sources["pool_size"]) == (4, "a test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config.replace("a test", pool_size=4).with_settings_from(other, ["pool_size"]).pool_size == 3


def test_old_names_of_server_and_statistics(tmp_path: Path) -> None:
    with Server(Config(root=tmp_path, unix=tmp_path / "s")) as server:
        with pytest.warns(DeprecationWarning, match=r"Server\.times is deprecated: use Server\.latency_counts"):
            assert server.times([1.0]) == server.latency_counts([1.0])
        with pytest.warns(DeprecationWarning, match=r"use Server\.take_denial"):
            assert server.take_refusal() is None
        with pytest.warns(DeprecationWarning, match=r"use Server\.take_storage_failure"):
            assert server.take_failure() is None
        snapshot = server._running_engine().statistics()
        with pytest.warns(DeprecationWarning, match=r"use Statistics\.from_snapshot"):
            assert Statistics.read(snapshot) == Statistics.from_snapshot(snapshot)


def test_old_names_of_the_client() -> None:
    with pytest.warns(DeprecationWarning, match=r"Mode\.of is deprecated: use Mode\.from_name") as caught:
        assert Mode.of("copy") is Mode.from_name("copy") is Mode.COPY
    assert caught[0].filename == __file__


def test_the_changelog_lists_each() -> None:
    said = (HOME / "CHANGELOG.md").read_text(encoding="utf-8")
    deprecated = said.partition("### Deprecated")[2].partition("\n### ")[0]
    found = set()
    for package in ("objmapper_client", "objmapper_server"):
        for path in (HOME / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            found |= set(re.findall(r'warn_renamed\("([\w.]+)", "([\w.]+)"\)', source))
            found |= set(re.findall(r'"([\w.]+) is deprecated: use ([\w.]+)"', source))
    assert len(found) >= 8
    assert {old for old, new in found if f"`{old}`" not in deprecated or f"`{new}`" not in deprecated} == set()
