"""Kills a server with writes in progress, at every system call and at random times, and checks the objects.

    python -m benchmarks.soak.crashes [--kills 1000] [--model MODEL …] [--seed 1]

First at every system call of a put by content (over an object, and where there is none), of a put by descriptor and of
a delete: strace(1) sends SIGKILL when a thread enters the call, so that the earlier calls have happened and this one
has not. Then at random, with eight clients that put and delete without pauses. After each kill every object must be
complete (else: torn), confirmed writes must be there (else: lost), and after the next start there may be only objects
(else: stray). Ends with 1 if one of these fails.

A kill ends the process, not the machine. `tests/test_crash.py` checks by the order of the calls that the server
confirms a write only when it is on the disk.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from objmapper_server import Concurrency
from tests.support.crash_harness import WRITES, CrashRun, CrashSetup
from tests.support.fork_server import ForkServer
from tests.support.models import MODELS
from tests.support.strace import why_not


def at_every_call(setup: CrashSetup, model: Concurrency) -> list[str]:
    """Kills at every call of every write, prints a line for each kind of write. Returns the errors found."""
    wrong = []
    for write in WRITES:
        calls = setup.calls(write)
        counts: Counter[str] = Counter()
        for call in tqdm(calls, desc=f"{model}: {write.name}", unit="kill", leave=False, disable=None):
            report = setup.kill_at(write, call)
            counts["in the call"] += report.has_fired
            counts["after the answer"] += report.is_answered
            wrong += [f"{model}: {report}"] if report.wrong else []
        print(
            f"{model:<23}{write.name:<23}{len(calls):>6} calls{counts['in the call']:>6} killed in them"
            f"{counts['after the answer']:>6} after the answer"
        )
    return wrong


def at_random(setup: CrashSetup, model: Concurrency, kills: int, seed: int) -> list[str]:
    """Kills the server this number of times during writes, prints a line. Returns the errors found."""
    crash_run = CrashRun.begin(setup, seed=seed)
    for _ in tqdm(range(kills), desc=f"{model}: at random", unit="kill", leave=False, disable=None):
        crash_run.kill()
    crash_run.end()
    print(f"{model:<23}{'at random':<23}{crash_run.kills:>6} kills{crash_run.writes:>9,} writes answered")
    return [f"{model}: {line}" for line in crash_run.torn_or_lost] + [
        f"{model}: stray {name}" for name in crash_run.leftover_files
    ]


def main() -> int:
    """Kills, checks, reports."""
    parser = argparse.ArgumentParser(description="Kill a server in the midst of writes, and look at what is left.")
    parser.add_argument("--kills", type=int, default=1000, help="how often at random, over all models (1000)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    models = given.model or MODELS
    if why_not():
        parser.error(why_not())
    began = time.monotonic()
    wrong: list[str] = []
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="objmapper-crashes-") as folder, ForkServer() as fork_server:
        for at, model in enumerate(models):
            one_each = CrashSetup(fork_server, Path(folder), {"storage_pool_size": 1, "concurrency_model": model})
            wrong += at_every_call(one_each, model)
            kills = given.kills // len(models) + (at < given.kills % len(models))
            wrong += at_random(
                CrashSetup(fork_server, Path(folder), {"concurrency_model": model}), model, kills, given.seed
            )
    for line in wrong[:20]:
        print(f"  {line}")
    counts = [sum(word in line for line in wrong) for word in ("torn", "lost", "stray")]
    print("{} torn, {} lost, {} stray".format(*counts) + f" in {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
