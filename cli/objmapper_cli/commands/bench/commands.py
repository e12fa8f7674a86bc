"""The benches as commands: `options` parses their flags, `measure` runs the loads, `report` shows the rows."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from objmapper_cli.commands.bench.measure import THREADS, BenchOptions, measure, progress, raise_failures, run
from objmapper_cli.commands.bench.models import criteria, measure_models, show_criteria
from objmapper_cli.commands.bench.options import (
    Duration,
    FileSize,
    Json,
    Mode,
    Model,
    OptimizeFor,
    Pipeline,
    Plot,
    Rate,
    Rounds,
    Server,
    Transport,
    Uri,
    parse_counts,
    parse_duration,
    parse_peer,
    parse_rates,
    parse_size,
)
from objmapper_cli.commands.bench.own_server import OBJECT, own_server
from objmapper_cli.commands.bench.report import Row, median, plot_curves, plot_rows, show
from objmapper_cli.errors import with_exit_code
from objmapper_server.load import LoadPlan

bench = typer.Typer(
    help="Measure a server on this machine.\n\nThe bench starts a server of its own, or measures --server ADDRESS.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def _print_results(
    rows: Sequence[Row], title: str, as_json: bool, draw_picture: Callable[[Path], None], picture_path: Path | None
) -> None:
    show(rows, as_json=as_json, title=title)
    if picture_path is not None:
        draw_picture(picture_path)


@bench.command()
@with_exit_code
def latency(
    clients: Annotated[int, typer.Option(min=1, max=10_000)] = 1,
    requests: Annotated[int, typer.Option(min=1, help="End after this many requests.")] = 10_000,
    server: Server = None,
    uri: Uri = None,
    transport: Transport = "unix",
    mode: Mode = None,
    concurrency_model: Model = "auto",
    optimize_for: OptimizeFor = "throughput",
    file_size: FileSize = "4096",
    rounds: Rounds = 3,
    rate: Rate = None,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Round-trip times: how long one request takes."""
    flags = ["--concurrency-model", concurrency_model, "--optimize-for", optimize_for]
    options = BenchOptions(server, uri, transport, mode, flags, parse_size(file_size), rounds)
    threads = min(THREADS, clients)
    plan = LoadPlan(
        address="", dialect="copy", uris=(), clients=clients, threads=threads, duration=60, requests=requests, rate=rate
    )
    rows = measure(options, "latency", plan, [{"requests": requests}], quiet=json)
    _print_results(rows, "latency", json, lambda path: plot_curves(rows, path, title="round-trip time"), plot)


@bench.command()
@with_exit_code
def throughput(
    clients: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    duration: Duration = "10s",
    server: Server = None,
    uri: Uri = None,
    transport: Transport = "tcp",
    mode: Mode = None,
    concurrency_model: Model = "auto",
    optimize_for: OptimizeFor = "throughput",
    pool_size: Annotated[int, typer.Option(min=0)] = 0,
    max_queue_depth: Annotated[int, typer.Option(min=1)] = 10_000,
    file_size: FileSize = "4096",
    rounds: Rounds = 3,
    pipeline: Pipeline = 1,
    rate: Rate = None,
    reconnect: Annotated[bool, typer.Option("--reconnect", help="A new connection for every request.")] = False,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Requests and bytes a second with many clients; with --rate, under a given load."""
    flags = ["--concurrency-model", concurrency_model, "--optimize-for", optimize_for, "--pool-size", str(pool_size)]
    flags += ["--max-queue-depth", str(max_queue_depth)]
    options = BenchOptions(server, uri, transport, mode, flags, parse_size(file_size), rounds)
    plan = LoadPlan(
        address="",
        dialect="copy",
        uris=(),
        clients=clients,
        threads=THREADS,
        pipeline=pipeline,
        duration=parse_duration(duration),
        rate=rate,
        reconnect=reconnect,
    )
    rows = measure(options, "throughput", plan, [{"pipeline": pipeline}], quiet=json)
    _print_results(rows, "throughput", json, lambda path: plot_curves(rows, path, title="under load"), plot)


@bench.command()
@with_exit_code
def scale(
    clients: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of clients.")] = "1,10,100,1000,10000",
    duration: Duration = "2s",
    server: Server = None,
    uri: Uri = None,
    transport: Transport = "unix",
    mode: Mode = None,
    concurrency_model: Model = "auto",
    file_size: FileSize = "4096",
    rounds: Rounds = 3,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """How throughput and latency change with the number of clients."""
    counts = parse_counts(clients)
    flags = ["--concurrency-model", concurrency_model, "--max-queue-depth", str(max(100, *counts))]
    flags += ["--max-connections", str(max(10_000, *counts) + 100)]
    options = BenchOptions(server, uri, transport, mode, flags, parse_size(file_size), rounds)
    plan = LoadPlan(address="", dialect="copy", uris=(), threads=THREADS, duration=parse_duration(duration))
    rows = measure(options, "scale", plan, [{"clients": count} for count in counts], quiet=json)
    title = f"growth, {concurrency_model}"
    _print_results(
        rows, "scale", json, lambda path: plot_rows(rows, path, title=title, line="mode", along="clients"), plot
    )


@bench.command()
@with_exit_code
def storage(
    hit_rate: Annotated[
        str, typer.Option(metavar="R,R,…", help="Parts of the requests for one hot object, from 0 to 1.")
    ] = "0,0.8,1",
    file_size: FileSize = "16KiB",
    files: Annotated[int, typer.Option(min=1, max=100_000, help="Number of cold objects, requested in turn.")] = 2000,
    clients: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    duration: Duration = "2s",
    concurrency_model: Model = "auto",
    async_storage: Annotated[bool, typer.Option("--async-storage/--no-async-storage")] = True,
    storage_pool_size: Annotated[int, typer.Option(min=1)] = 4,
    cache_size: Annotated[str, typer.Option(metavar="BYTES")] = "1MiB",
    rounds: Rounds = 3,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Copies over TCP from memory and from files: a cache too small for the cold objects, at several hit rates."""
    size = parse_size(file_size)
    names = [f"cold{number}" for number in range(files)]
    flags = ["--concurrency-model", concurrency_model, "--cache-size", cache_size]
    flags += ["--max-queue-depth", str(max(100, clients)), "--storage-pool-size", str(storage_pool_size)]
    flags += ["--async-storage" if async_storage else "--no-async-storage"]
    rates = parse_rates(hit_rate)
    seconds = parse_duration(duration)
    results: dict[float, list[Any]] = {rate: [] for rate in rates}
    with ExitStack() as stack:
        server = stack.enter_context(own_server({OBJECT: size, **dict.fromkeys(names, size)}, *flags))
        bar = stack.enter_context(progress(seconds * rounds * len(rates), quiet=json))
        for _ in range(rounds):
            for rate in rates:
                plan = LoadPlan(
                    address=server.addresses["tcp"],
                    dialect="copy",
                    uris=hot_and_cold_uris(names, rate),
                    clients=clients,
                    threads=THREADS,
                    duration=seconds,
                )
                results[rate].append(run(plan, bar, f"hit rate {rate}"))
        memory = server.memory()
    labels: dict[str, str | int | float] = {"transport": "tcp", "mode": "copy", "clients": clients, "size": size}
    rows = [Row({**labels, "hit rate": rate}, median(results[rate]), memory) for rate in rates]
    raise_failures(rows)
    title = "memory and files"
    _print_results(
        rows, "storage", json, lambda path: plot_rows(rows, path, title=title, line="mode", along="hit rate"), plot
    )


def hot_and_cold_uris(cold: Sequence[str], hit_rate: float) -> tuple[str, ...]:
    """URIs, of which the part `hit_rate` (0 to 1) is the hot object's, spread evenly."""
    uris, hot_share = [], 0.0
    for name in cold:
        hot_share += hit_rate / (1 - hit_rate) if hit_rate < 1 else 1
        uris += [f"/{OBJECT}"] * int(hot_share)
        hot_share -= int(hot_share)
        if hit_rate < 1:
            uris.append(f"/{name}")
    return tuple(uris)


@bench.command()
@with_exit_code
def models(
    clients: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of clients.")] = "1,8,64,1000",
    duration: Duration = "2s",
    rounds: Rounds = 3,
    optimize_for: OptimizeFor = "throughput",
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Every concurrency model on every transport at several loads, to find the best for this machine."""
    rows = measure_models(
        parse_counts(clients), parse_duration(duration), rounds, ["--optimize-for", optimize_for], quiet=json
    )
    raise_failures(rows)
    title = "concurrency models"
    _print_results(
        rows, title, json, lambda path: plot_rows(rows, path, title=title, line="model", along="clients"), plot
    )
    if not json:
        show_criteria(criteria(rows))


@bench.command()
@with_exit_code
def compare(
    peer: Annotated[
        list[str],
        typer.Option(metavar="NAME=PROTOCOL@ADDRESS", help="fdpass, copy, splice, http or redis @ unix:… or tcp://…"),
    ],
    uri: Annotated[str, typer.Option(metavar="URI", help="Object, or key, that every peer has.")] = f"/{OBJECT}",
    clients: Annotated[int, typer.Option(min=1, max=10_000)] = 64,
    duration: Duration = "2s",
    rounds: Rounds = 5,
    pipeline: Pipeline = 1,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Servers under the same load, in turn; the ratios are to the first one."""
    peers = [parse_peer(text) for text in peer]
    seconds = parse_duration(duration)
    results: list[list[Any]] = [[] for _ in peers]
    with progress(seconds * rounds * len(peers), quiet=json) as bar:
        for _ in range(rounds):
            for number, (name, dialect, address) in enumerate(peers):
                plan = LoadPlan(
                    address=address,
                    dialect=dialect,
                    uris=(uri,),
                    clients=clients,
                    threads=THREADS,
                    duration=seconds,
                    pipeline=pipeline,
                )
                results[number].append(run(plan, bar, name))
    first = median(results[0]).requests_per_sec
    rows = []
    for (name, dialect, _), measured in zip(peers, results, strict=True):
        result = median(measured)
        ratio = round(result.requests_per_sec / first, 3) if first else "none"
        rows.append(Row({"server": name, "mode": dialect, "clients": clients, "ratio": ratio}, result))
    raise_failures(rows)
    _print_results(rows, "compare", json, lambda path: plot_curves(rows, path, title="side by side"), plot)
