"""Compares the p99 that a real Prometheus computes with the server's own, under load.

    python benchmarks/prometheus_percentiles.py [--seconds 30]

Needs the commands prometheus and promtool (Debian: prometheus). The exit code is 1 if a percentile of the buckets and
that of /stats differ by more than a bucket.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from objmapper_cli.commands.bench.own_server import own_server
from objmapper_server.admin.metrics import BOUNDS_US
from objmapper_server.load import LoadPlan, run_load

BUCKETS = "objmapper_request_duration_seconds_bucket"
#: Since start, over all answers: the same requests on both sides, once the load has ended.
QUERY = "histogram_quantile(%s, sum by (le) (%s))"


def main() -> int:
    """Serve, load, scrape, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    if shutil.which("prometheus") is None:
        print("prometheus is not installed (Debian: prometheus)", file=sys.stderr)
        return 1
    with own_server({"small": 4096}, "--admin", "127.0.0.1:0") as server:
        admin = server.addresses["http"]
        with scraping(admin.removeprefix("http://")) as prometheus:
            unix, tcp = server.addresses["unix"], server.addresses["tcp"]
            for plan in (
                LoadPlan(address=unix, dialect="fdpass", uris=("/small",), clients=8, duration=given.seconds / 2),
                LoadPlan(address=tcp, dialect="copy", uris=("/small",), clients=32, duration=given.seconds / 2),
            ):
                result = run_load(plan)
                print(f"{plan.address}: {result.requests_per_sec:,.0f} requests/s, {result.errors} errors")
            stats = httpx.get(f"{admin}/stats").json()
            wait_for_scrape(prometheus, stats["requests_total"])
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=httpx.get(f"{admin}/metrics").content, check=False
            )
            scrapes = query(prometheus, "count_over_time(up[1h])")
            failed = query(prometheus, "count_over_time((up == 0)[1h:1s]) or vector(0)")
            print(f"promtool check metrics: exit code {checked.returncode}; {scrapes:.0f} scrapes, {failed:.0f} failed")
            apart = [
                compare(quantile, query(prometheus, QUERY % (quantile, BUCKETS)) * 1e6, stats["since_start"][field])
                for quantile, field in ((0.5, "p50_latency_us"), (0.99, "p99_latency_us"), (0.999, "p999_latency_us"))
            ]
    return int(max(apart) > 1 or checked.returncode != 0 or failed > 0)


def compare(quantile: float, scraped: float, own: float) -> int:
    """Print both, and return how many buckets lie between them."""
    apart = abs(bisect_left(BOUNDS_US, scraped) - bisect_left(BOUNDS_US, own))
    print(f"quantile {quantile}: Prometheus {scraped:.1f} µs, /stats {own:.1f} µs, buckets apart: {apart}")
    return apart


@contextmanager
def scraping(target: str) -> Iterator[str]:
    """Runs a Prometheus that scrapes `target` each second; yields its address."""
    with tempfile.TemporaryDirectory(prefix="objmapper-prometheus-") as scratch:
        rules = Path(__file__).parent.parent / "packaging" / "prometheus" / "objmapper.rules.yml"
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "objmapper", "static_configs": [{"targets": [target]}]}],
        }
        file = Path(scratch, "prometheus.yml")
        # JSON is YAML.
        file.write_text(json.dumps(configuration))
        address = free_address()
        command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={scratch}/data"]
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}", "--log.level=error"], stderr=subprocess.STDOUT
        )
        try:
            until(lambda: httpx.get(f"http://{address}/-/ready").status_code == 200)
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(30)


def free_address() -> str:
    """Return a free loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition whose check may raise."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("it did not come about")


def wait_for_scrape(prometheus: str, requests: int) -> None:
    """Wait until a scrape has seen as many requests as the server has counted."""
    until(lambda: query(prometheus, "sum(objmapper_requests_total)") == requests)


def query(prometheus: str, expression: str) -> float:
    """Return the one value of an expression; 0 where there is none."""
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression})
    answer.raise_for_status()
    results = answer.json()["data"]["result"]
    return float(results[0]["value"][1]) if results else 0.0


if __name__ == "__main__":
    sys.exit(main())
