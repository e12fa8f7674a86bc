"""What is shipped beside the code: it must fit the server that it is about."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from objmapper_server import Concurrency, Config, Server
from objmapper_server.admin.metrics import DATAGRAMS, Exposition
from tests.support.raw_client import COPY, RawClient

PACKAGING = Path(__file__).parent.parent / "packaging"
GRAFANA = PACKAGING / "grafana" / "objmapper.json"
RULES = PACKAGING / "prometheus" / "objmapper.rules.yml"
NAME = re.compile(r"\b(?:objmapper|process)_\w+")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def expressions() -> list[str]:
    """Every query of the Grafana dashboard."""
    document = json.loads(GRAFANA.read_text())
    queries = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    return queries + [each["expr"] for each in document["annotations"]["list"]]


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all samples of a server that has been used."""
    root = tmp_path_factory.mktemp("root")
    (root / "a").write_bytes(b"a")
    config = Config(root=root, unix=root / "s", udp="127.0.0.1:0", concurrency_model=Concurrency.THREAD_POOL)
    with Server(config) as server, RawClient(server.addresses["unix"]) as v1:
        assert v1.ask(COPY, "/a").content == b"a"
        exposition = Exposition(server)
        deadline = time.monotonic() + 10
        while b"objmapper_queue_wait_seconds_count" not in (text := exposition.render("")[0]):
            assert time.monotonic() < deadline
    return {line.partition("{")[0].partition(" ")[0] for line in text.decode().splitlines() if line[0] != "#"}


@pytest.mark.parametrize("path", [GRAFANA, RULES], ids=lambda path: path.name)
def test_every_metric_that_is_asked_for_is_there(path: Path, metrics: set[str]) -> None:
    queries = expressions() if path == GRAFANA else re.findall(r"expr: (.*?)\n {4,8}\S", path.read_text(), re.DOTALL)
    asked = {name for query in queries for name in NAME.findall(query)}
    assert len(asked) > 8
    assert asked - metrics == set()


def test_datagrams_are_pictured_and_those_that_are_lost_alarm() -> None:
    pictured = {name for query in expressions() for name in NAME.findall(query)}
    assert pictured >= {f"objmapper_datagrams_{what}_total" for what in (*DATAGRAMS, "bytes")}
    reasons = set(DATAGRAMS["dropped"][1])
    alarming = set(re.findall(r'reason="(\w+)"', RULES.read_text()))
    # Datagrams of untrusted networks are dropped, as intended.
    assert alarming == reasons - {"untrusted"}


def test_each_alert_has_a_test_of_its_own() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = set(re.findall(r"alertname: (\w+)", (RULES.parent / "objmapper.rules.test.yml").read_text()))
    assert tested <= alerts
    assert {alert for alert in alerts if "Datagrams" in alert} <= tested


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(GRAFANA.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@needs_promtool
def test_the_dashboards_queries_are_queries(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "5m", "$__interval": "1m", "$job": ".*", "$instance": ".*", "$transport": ".*"}
    rules = []
    for at, query in enumerate(expressions()):
        for name, value in variables.items():
            query = query.replace(name, value)
        assert "$" not in query
        rules.append({"record": f"query:{at}", "expr": query})
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout


@needs_promtool
def test_alerts_come_when_they_should() -> None:
    for arguments in (["check", "rules", RULES.name], ["test", "rules", "objmapper.rules.test.yml"]):
        checked = subprocess.run(
            ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
        )
        assert checked.returncode == 0, checked.stderr + checked.stdout


def test_the_settings_file_is_right_and_says_what_the_defaults_are() -> None:
    config = Config.load(PACKAGING / "objmapper.toml", environment=False)
    for name, origin in config.sources.items():
        if origin.endswith("objmapper.toml") and name != "root":
            assert getattr(config, name) == Config.model_fields[name].default or name == "admin"
