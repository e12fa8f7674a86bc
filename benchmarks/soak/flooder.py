"""One client always pipelines: another client's latency stays near its latency without the first.

    python -m benchmarks.soak.flooder [--rounds 5] [--seconds 2] [--pipeline 1000] [--most 3] [--model MODEL …]

An honest client requests a small object 500 times a second, one request at a time, and its latency starts when a
request is due. Rounds without and with the flooder take turns; the flooder always has `--pipeline` pending requests on
one connection. Prints the medians over the rounds. Ends with 1 if the 99th percentile with the flooder is more than
`--most` times that without it, or if a request of the honest client fails.
"""

import argparse
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

from objmapper_server import Concurrency
from objmapper_server.load import LoadPlan, LoadResult, run_load
from tests.support.models import MODELS
from tests.support.server_process import ServerProcess

#: Requests a second of the honest client.
RATE: Final = 500.0
#: Seconds that the flooder runs on after the honest client, so that it is there until the end.
MARGIN: Final = 0.5


def run_honest_load(address: str, seconds: float) -> LoadResult:
    """Return the result of the honest client."""
    return run_load(LoadPlan(address=address, dialect="copy", uris=("/a",), rate=RATE, duration=seconds))


def run_beside_flooder(address: str, seconds: float, pipeline: int) -> tuple[LoadResult, LoadResult]:
    """Return the results of the honest client and of the flooder, at the same time."""
    plan = LoadPlan(address=address, dialect="copy", uris=("/a",), pipeline=pipeline, duration=seconds + MARGIN)
    flooded: list[LoadResult] = []
    flooder = threading.Thread(target=lambda: flooded.append(run_load(plan)))
    flooder.start()
    honest = run_honest_load(address, seconds)
    flooder.join()
    return honest, flooded[0]


def is_fair(root: Path, socket: Path, model: Concurrency, given: argparse.Namespace) -> bool:
    """Run one model and print a line."""
    with ServerProcess(root, socket, "--concurrency-model", model) as server:
        address = server.addresses["unix"]
        run_honest_load(address, min(1.0, given.seconds))
        rounds = [
            (run_honest_load(address, given.seconds), *run_beside_flooder(address, given.seconds, given.pipeline))
            for _ in range(given.rounds)
        ]
    alone = statistics.median(each.p99_us for each, _, _ in rounds)
    beside = statistics.median(each.p99_us for _, each, _ in rounds)
    failed = sum(each.errors + each.lost + each.refused for quiet, loud, _ in rounds for each in (quiet, loud))
    rate = statistics.median(flood.requests_per_sec for _, _, flood in rounds)
    print(
        f"{model:<23}p50 {statistics.median(each.p50_us for each, _, _ in rounds):,.0f} → "
        f"{statistics.median(each.p50_us for _, each, _ in rounds):,.0f} µs, p99 {alone:,.0f} → {beside:,.0f} µs "
        f"({beside / alone:.1f} ×); {failed} failed; {rate:,.0f} requests a second of the flooder",
        flush=True,
    )
    return beside <= given.most * alone and failed == 0


def main() -> int:
    """Run the models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of a round (2)")
    parser.add_argument("--pipeline", type=int, default=1000, help="requests that the flooder has under way (1000)")
    parser.add_argument("--most", type=float, default=3, help="times the 99th percentile alone (3)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="objmapper-flooder-") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        (root / "a").write_bytes(b"a" * 100)
        fair = [is_fair(root, Path(folder) / f"{model}.sock", model, given) for model in given.model or MODELS]
    return 0 if all(fair) else 1


if __name__ == "__main__":
    sys.exit(main())
