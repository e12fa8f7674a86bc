"""Runs loads one after the other, against the bench's own server or another one, with a progress bar on stderr."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from objmapper_cli.commands.bench.options import protocol_for
from objmapper_cli.commands.bench.own_server import OBJECT, OwnServer, own_server
from objmapper_cli.commands.bench.report import Row, median
from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.options import open_client
from objmapper_cli.output_file import exiting_on_signals
from objmapper_client.errors import UnsupportedOperation
from objmapper_server.concurrency import TRANSPORTS
from objmapper_server.load import LoadPlan, LoadResult, run_load

# These threads use the generator's half of the machine; more would take processor time from the server.
THREADS = max(1, (os.cpu_count() or 2) // 2)


@contextmanager
def progress(total: float, *, quiet: bool) -> Iterator[Any]:
    """A progress bar over seconds on stderr; none if stderr is not a terminal."""
    from tqdm import tqdm

    silent = quiet or not sys.stderr.isatty()
    with (
        exiting_on_signals(),
        tqdm(
            total=round(total, 1),
            unit="s",
            disable=silent,
            leave=False,
            bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s {postfix}",
        ) as bar,
    ):
        yield bar


def run(plan: LoadPlan, bar: Any, label: str) -> LoadResult:
    """Runs one load and advances the bar by its time."""
    bar.set_postfix_str(label)
    result = run_load(plan, lambda answered: bar.set_postfix_str(f"{label}: {answered:,}"))
    bar.update(result.elapsed)
    return result


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The flags of a bench that `measure` needs."""

    server: str | None
    uri: str | None
    transport: str
    mode: str | None
    flags: Sequence[str]
    size: int
    rounds: int

    def check(self) -> None:
        """Raises CommandError for flags that exclude or need one another."""
        if self.transport not in TRANSPORTS:
            raise CommandError(
                f"--transport: expected one of {', '.join(TRANSPORTS)} (got {self.transport})", ExitCode.USAGE
            )
        if self.server is None and self.uri is not None:
            raise CommandError("--uri: only with --server; the bench's own server has one object", ExitCode.USAGE)
        if self.server is not None and self.uri is None:
            raise CommandError("--server: no object named; add --uri", ExitCode.USAGE)


def measure(
    options: BenchOptions, title: str, plan: LoadPlan, points: Sequence[dict[str, Any]], *, quiet: bool
) -> list[Row]:
    """Measures the plan with each point's changes, the points in turn, so that a noisy moment hits all."""
    options.check()
    with ExitStack() as stack:
        bench_server: OwnServer | None = None
        if options.server is None:
            datagrams = ("--udp", "127.0.0.1:0") if options.transport == "udp" else ()
            bench_server = stack.enter_context(own_server({OBJECT: options.size}, *options.flags, *datagrams))
            plan = replace(plan, address=bench_server.addresses[options.transport], uris=(f"/{OBJECT}",))
            transport = options.transport
        else:
            _check_object(options.server, options.uri or "")
            plan = replace(plan, address=options.server, uris=(options.uri or "",))
            scheme = options.server.partition(":")[0]
            transport = scheme if scheme in TRANSPORTS else "unix"
        if plan.dialect not in ("http", "redis"):
            plan = replace(plan, dialect=protocol_for(options.mode, transport))
        if transport == "udp" and (plan.pipeline > 1 or plan.rate is not None or plan.reconnect):
            raise CommandError(
                "--pipeline, --rate, --reconnect: not over udp, where a client has one pending request", ExitCode.USAGE
            )
        bar = stack.enter_context(progress(plan.duration * len(points) * options.rounds, quiet=quiet))
        rounds: list[list[Any]] = [[] for _ in points]
        memory: list[int | None] = [None for _ in points]
        for _ in range(options.rounds):
            for number, point in enumerate(points):
                rounds[number].append(run(replace(plan, **point), bar, f"{title} {' '.join(map(str, point.values()))}"))
                if bench_server is not None:
                    memory[number] = max(memory[number] or 0, bench_server.memory())
        rows = []
        for point, results, max_memory in zip(points, rounds, memory, strict=True):
            labels = {"transport": transport, "mode": plan.dialect, "clients": plan.clients, **point}
            rows.append(Row(labels, median(results), max_memory))
    raise_failures(rows)
    return rows


def _check_object(server: str, uri: str) -> None:
    """Raises the server's error for this object, before the bench measures quick error responses."""
    with open_client(server, 30.0) as client, suppress(UnsupportedOperation):  # a server of version 1 has no stat
        client.stat(uri)


def raise_failures(rows: Sequence[Row]) -> None:
    """Raises CommandError if no request of any row was answered."""
    if all(row.result.requests + row.result.refused == 0 for row in rows):
        raise CommandError(
            "no request was answered; check that the server runs, and that it has the object", ExitCode.NOT_REACHED
        )
