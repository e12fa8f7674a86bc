"""The throughput that flags cost: a server without and a server with them, in turns.

    python benchmarks/feature_cost.py [--rounds 15] [--seconds 1] [--transport unix] [--clients 16] -- FLAG …
    python benchmarks/feature_cost.py -- --access-log /tmp/access.log
    python benchmarks/feature_cost.py -- --allow-uid 0 --allow-prefix /shut=uid:0 --max-descriptors-per-uid 1000

Both servers run all the time, and one of them is under load; the order changes from round to round. Prints medians, and
the median of the rounds' ratios, so that other load on the machine affects both.
"""

import argparse
import statistics
import sys

from objmapper_cli.commands.bench.own_server import own_server
from objmapper_server.load import LoadPlan, run_load

OBJECTS = {"small": 4096}


def main() -> int:
    """Start both, then load one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--transport", choices=("unix", "tcp"), default="unix")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("flags", nargs="+")
    given = parser.parse_args()
    with own_server(OBJECTS) as without, own_server(OBJECTS, *given.flags) as with_flags:
        plans = {
            name: LoadPlan(
                address=server.addresses[given.transport],
                dialect="fdpass" if given.transport == "unix" else "copy",
                uris=("/small",),
                clients=given.clients,
                duration=given.seconds,
            )
            for name, server in (("without", without), ("with", with_flags))
        }
        measured: dict[str, list[float]] = {name: [] for name in plans}
        for number in range(given.rounds):
            for name in sorted(plans, reverse=number % 2 == 0):
                measured[name].append(run_load(plans[name]).requests_per_sec)
    for name, rates in measured.items():
        print(f"{name:8} {statistics.median(rates):10,.0f} requests/s  ({min(rates):,.0f} to {max(rates):,.0f})")
    ratios = [after / before for before, after in zip(measured["without"], measured["with"], strict=True)]
    print(f"ratio    {statistics.median(ratios):10.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
