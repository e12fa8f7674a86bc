"""``objmapper bench models``: every model on every transport at several loads, compared with expectations."""

from collections.abc import Sequence
from dataclasses import dataclass

from objmapper_cli.commands.bench.measure import THREADS, progress, run
from objmapper_cli.commands.bench.own_server import OBJECT, own_server
from objmapper_cli.commands.bench.report import Row, median
from objmapper_server.load import LoadPlan, LoadProtocol, LoadResult

MODELS = ("thread-per-connection", "thread-pool", "work-stealing", "epoll", "auto")
TRANSPORTS: dict[str, LoadProtocol] = {"unix": "fdpass", "tcp": "copy"}
SIZE = 4096


def measure_models(
    loads: Sequence[int], seconds: float, rounds: int, flags: Sequence[str], *, quiet: bool
) -> list[Row]:
    """A row for each model, transport and number of clients. Models take turns, so that other load affects all."""
    rows = []
    total = len(MODELS) * len(TRANSPORTS) * len(loads) * rounds * seconds
    with progress(total, quiet=quiet) as bar:
        for clients in loads:
            for transport, mode in TRANSPORTS.items():
                measured: dict[str, list[LoadResult]] = {model: [] for model in MODELS}
                memory: dict[str, int] = {}
                for _ in range(rounds):
                    for model in MODELS:
                        model_flags = ["--concurrency-model", model, "--max-queue-depth", str(max(100, clients))]
                        with own_server({OBJECT: SIZE}, *model_flags, *flags) as server:
                            plan = LoadPlan(
                                address=server.addresses[transport],
                                dialect=mode,
                                uris=(f"/{OBJECT}",),
                                clients=clients,
                                threads=THREADS,
                                duration=seconds,
                            )
                            measured[model].append(run(plan, bar, f"{model} {transport} × {clients}"))
                            memory[model] = max(memory.get(model, 0), server.memory())
                for model in MODELS:
                    labels: dict[str, str | int | float] = {
                        "model": model,
                        "transport": transport,
                        "mode": mode,
                        "clients": clients,
                    }
                    rows.append(Row(labels, median(measured[model]), memory[model]))
    return rows


@dataclass(frozen=True, slots=True)
class Criterion:
    """An expectation, the measured value, and whether the expectation holds."""

    metric: str
    expected: str
    measured: str
    holds: bool


def criteria(rows: Sequence[Row]) -> list[Criterion]:
    """The success criteria for a thread pool beside thread-per-connection, as far as the rows cover them."""

    def find(model: str, transport: str, clients: int) -> Row | None:
        expected = {"model": model, "transport": transport, "clients": clients}
        return next((row for row in rows if expected.items() <= row.labels.items()), None)

    found = []
    thread_per_connection, pool = find("thread-per-connection", "unix", 1), find("thread-pool", "unix", 1)
    if thread_per_connection and pool:
        for name, value, base, limit, max_increase in (
            ("p50", pool.result.p50_us, thread_per_connection.result.p50_us, 20, 33),
            ("p99", pool.result.p99_us, thread_per_connection.result.p99_us, 50, 100),
        ):
            increase = 100 * (value / base - 1) if base else 0.0
            found.append(
                Criterion(
                    f"descriptor latency ({name}), 1 client, pool",
                    f"< {limit} µs, < {max_increase} % over thread-per-connection",
                    f"{value:.1f} µs, {increase:+.0f} %",
                    value < limit and increase < max_increase,
                )
            )
    max_clients = max((int(row.labels["clients"]) for row in rows if int(row.labels["clients"]) <= 100), default=0)
    thread_per_connection = find("thread-per-connection", "tcp", max_clients)
    pool = find("thread-pool", "tcp", max_clients)
    if thread_per_connection and pool:
        increase = 100 * (pool.result.requests_per_sec / thread_per_connection.result.requests_per_sec - 1)
        found.append(
            Criterion(
                f"TCP throughput, {max_clients} clients, pool",
                "> 70 K requests/s, > 40 % over thread-per-connection",
                f"{pool.result.requests_per_sec / 1000:.0f} K requests/s, {increase:+.0f} %",
                pool.result.requests_per_sec > 70_000 and increase > 40,
            )
        )
    for model in MODELS[1:4]:
        row = find(model, "tcp", 1000)
        if row and row.memory:
            mib = row.memory / (1 << 20)
            found.append(Criterion(f"memory, 1,000 clients, {model}", "< 500 MB", f"{mib:.0f} MiB", mib < 477))
    return found


def show_criteria(found: Sequence[Criterion]) -> None:
    """Prints the criteria as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="expectations")
    for name in ("metric", "expected", "measured", "holds"):
        table.add_column(name)
    for each in found:
        table.add_row(
            each.metric,
            each.expected,
            each.measured,
            "yes" if each.holds else "no",
        )
    Console(width=140).print(table)
