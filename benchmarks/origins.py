"""Origins: a cached object beside a local file, and many clients that want one object that is not here.

    python -m benchmarks.origins [--rounds 7] [--seconds 1.0] [--clients 1000] [--size 67108864]

Needs the S3 server of the tests (`make .venv/bin/s3s-fs`). The first table has the descriptors a second of a local file
and of an object in the disk cache, in turns on one server; the ratio is the median over the rounds. The second one:
`--clients` connections ask for one cold object at once, beside one client that asks for another of the same size alone.
It has the requests at the store, and the time until a client has its descriptor.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from objmapper_server import Concurrency, Config, Server
from objmapper_server.load import LoadPlan, run_load
from tests.support.fault_proxy import FaultProxy
from tests.support.models import MODELS
from tests.support.raw_client import FDPASS, OK, RawClient, request
from tests.support.s3_server import S3Server


@contextmanager
def served(home: Path, model: Concurrency, *, through_proxy: bool) -> Iterator[tuple[Server, FaultProxy]]:
    """A server with a local object `o4k` and a bucket at /models, through a proxy that counts or directly."""
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server(home / "stores"))
        proxy = stack.enter_context(FaultProxy(s3.endpoint))
        options = s3.options(proxy.url if through_proxy else "")
        config = Config(
            root=home / "root",
            unix=home / f"{model}.sock",
            admin=None,
            concurrency_model=model,
            origins={"/models": {"url": "s3://bucket", "revalidate": "never", **options}},
            disk_cache=home / f"cache-{model}",
            # All clients ask at once: more than pools queue by default.
            max_queue_depth=100_000,
        )
        yield stack.enter_context(Server(config)), proxy


def rate(address: str, uri: str, clients: int, seconds: float) -> float:
    """Descriptors a second."""
    plan = LoadPlan(address=address, dialect="fdpass", uris=(uri,), clients=clients, duration=seconds)
    result = run_load(plan)
    assert result.errors + result.lost == 0, result
    return result.requests_per_sec


def compare_hits(home: Path, rounds: int, seconds: float) -> None:
    """Print the rates of a local file and of a cached object."""
    print(f"{'descriptors a second':<40}{'local':>12}{'cached':>12}{'ratio':>8}")
    for model in MODELS:
        with served(home, model, through_proxy=False) as (server, _):
            address = server.addresses["unix"]
            for clients in (8, 64):
                pairs = []
                for _ in range(rounds):
                    local = rate(address, "/o4k", clients, seconds)
                    pairs.append((local, rate(address, "/models/o4k", clients, seconds)))
                ratio = statistics.median(cached / local for local, cached in pairs)
                local, cached = (statistics.median(column) for column in zip(*pairs, strict=True))
                print(f"{model:<28}{clients:>3} clients {local:>12,.0f}{cached:>12,.0f}{ratio:>8.3f}", flush=True)


def rush(address: str, uri: str, clients: int) -> list[float]:
    """Seconds until each of the clients has its descriptor."""
    with ExitStack() as stack:
        connections = [stack.enter_context(RawClient(address)) for _ in range(clients)]
        began = time.perf_counter()
        for each in connections:
            each.send(request(FDPASS, uri))
        times = []
        for each in connections:
            answer = each.reply(FDPASS)
            assert answer.status == OK, answer
            assert answer.descriptor is not None
            os.close(answer.descriptor)
            times.append(time.perf_counter() - began)
        return times


def compare_misses(home: Path, clients: int) -> None:
    """Print how many requests many clients cause, and how long they wait."""
    print(f"\n{'one cold object':<30}{'requests':>9}{'alone s':>9}{'p50 s':>8}{'p99 s':>8}{'p99 / alone':>13}")
    for model in MODELS:
        with served(home, model, through_proxy=True) as (server, proxy):
            (alone,) = rush(server.addresses["unix"], "/models/large-0", 1)
            before = len(proxy.requests)
            times = sorted(rush(server.addresses["unix"], "/models/large-1", clients))
            p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
            print(
                f"{model:<30}{len(proxy.requests) - before:>9}{alone:>9.2f}{p50:>8.2f}{p99:>8.2f}{p99 / alone:>13.2f}",
                flush=True,
            )


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round (1)")
    parser.add_argument("--clients", type=int, default=1000, help="that want one cold object (1000)")
    parser.add_argument("--size", type=int, default=64 << 20, help="of the cold object in bytes (64 MiB)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="objmapper-origins-") as folder:
        home = Path(folder)
        bucket = home / "stores" / "bucket"
        bucket.mkdir(parents=True)
        (home / "root").mkdir()
        for place in (bucket, home / "root"):
            (place / "o4k").write_bytes(bytes(4096))
        for number in range(2):
            (bucket / f"large-{number}").write_bytes(bytes([number]) * given.size)
        compare_hits(home, given.rounds, given.seconds)
        compare_misses(home, given.clients)


if __name__ == "__main__":
    main()
