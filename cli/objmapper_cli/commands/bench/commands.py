"""The benches as commands: flags in, rows out. What they have in common stands once, in `Point` and `_measured`."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from objmapper_cli.commands.bench.measure import THREADS, progress, run
from objmapper_cli.commands.bench.models import criteria, measure_models, show_criteria
from objmapper_cli.commands.bench.own_server import OwnServer, own_server
from objmapper_cli.commands.bench.report import Row, check_picture, median, plot_curves, show
from objmapper_cli.commands.bench.report import plot as draw
from objmapper_cli.errors import CommandError, ExitCode, with_exit_code
from objmapper_cli.options import complete_with, model_names, open_client
from objmapper_client.errors import UnsupportedOperation
from objmapper_server.concurrency import TRANSPORTS
from objmapper_server.load import Dialect, LoadPlan

bench = typer.Typer(
    help="Measure a server on this machine.\n\nIt is one of the bench's own, or --server ADDRESS.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

OBJECT = "object"
#: Seconds of one round.
MAX_SECONDS = 86_400

Server = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Measure this server. [default: one of its own]")]
Uri = Annotated[str | None, typer.Option(metavar="URI", help="The object to ask --server for.")]
Transport = Annotated[
    str,
    typer.Option(
        metavar="unix|tcp|udp",
        help="How the bench's own server is reached.",
        autocompletion=complete_with("unix", "tcp", "udp"),
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        metavar="fdpass|copy|splice|pull",
        help="[default: fdpass on unix, copy on tcp, pull (or copy) on udp]",
        autocompletion=complete_with("fdpass", "copy", "splice", "pull"),
    ),
]
Model = Annotated[
    str,
    typer.Option(metavar="MODEL", help="The concurrency model of the bench's own server.", autocompletion=model_names),
]
OptimizeFor = Annotated[
    str,
    typer.Option(
        metavar="latency|throughput",
        help="Of the bench's own server.",
        autocompletion=complete_with("latency", "throughput"),
    ),
]
FileSize = Annotated[str, typer.Option(metavar="BYTES", help="The object's size, such as 4096 or 1MB.")]
Duration = Annotated[str, typer.Option(metavar="TIME", help="Of each round: 10s, 2m, 500ms.")]
Rounds = Annotated[int, typer.Option(min=1, max=99, help="The median round counts.")]
Pipeline = Annotated[int, typer.Option(min=1, max=1000, help="Requests that each client keeps under way.")]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="N", min=1e-3, max=1e9, help="Open loop: N requests a second are due, whatever the server does."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", callback=check_picture, help="Draw a picture too.")]


def parse_duration(text: str) -> float:
    """Seconds from ``60s``, ``2m``, ``500ms`` or a bare number. Raises CommandError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    seconds = float(match[1]) * {"ms": 1e-3, "": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise CommandError(
            f"--duration {text}: a time is a number above 0 with a unit, such as 10s, 2m or 500ms, and 24h at most",
            ExitCode.USAGE,
        )
    return seconds


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``64KiB`` or ``1MB``. Raises CommandError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise CommandError(
            f"--file-size {text}: a size is a number of bytes, or 64KiB, 1MB, …", ExitCode.USAGE
        ) from None


#: Modes over version 1 and over version 2.
OWN_DIALECTS: tuple[Dialect, ...] = ("fdpass", "copy", "splice", "fdpass2", "copy2", "splice2")
#: One datagram for what fits, and ranges.
UDP_DIALECTS: tuple[Dialect, ...] = ("copy", "pull")


def protocol_for(mode: str | None, transport: str) -> Dialect:
    """The mode, or the transport's best. Raises CommandError for one that it cannot do."""
    chosen = mode or {"unix": "fdpass", "tcp": "copy", "udp": "pull"}[transport]
    if transport == "udp":
        for datagrams in UDP_DIALECTS:
            if chosen == datagrams:
                return datagrams
        raise CommandError(
            f"--mode {chosen}: over udp there are pull, and copy for what fits a datagram", ExitCode.USAGE
        )
    for known in OWN_DIALECTS:
        if chosen == known and (transport == "unix" or not known.startswith("fdpass")):
            return known
    raise CommandError(
        f"--mode {chosen}: over {transport} there are {'fdpass, ' * (transport == 'unix')}copy and splice, each "
        "with a 2 for version 2 of the protocol",
        ExitCode.USAGE,
    )


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What the flags of a bench say, as the measuring wants it."""

    server: str | None
    uri: str | None
    transport: str
    mode: str | None
    flags: Sequence[str]
    size: int
    rounds: int

    def check(self) -> None:
        """Raises CommandError for what does not go together."""
        if self.transport not in TRANSPORTS:
            raise CommandError(f"--transport {self.transport}: there are {', '.join(TRANSPORTS)}", ExitCode.USAGE)
        if self.server is None and self.uri is not None:
            raise CommandError("--uri needs --server: the bench's own server has one object", ExitCode.USAGE)
        if self.server is not None and self.uri is None:
            raise CommandError("--server needs --uri: which object is to be asked for", ExitCode.USAGE)


def _measure(
    setting: BenchOptions, title: str, plan: LoadPlan, points: Sequence[dict[str, Any]], *, quiet: bool
) -> list[Row]:
    """Measures the plan with each point's changes, the points in turn, so that a noisy moment hits all."""
    setting.check()
    with ExitStack() as stack:
        own: OwnServer | None = None
        if setting.server is None:
            datagrams = ("--udp", "127.0.0.1:0") if setting.transport == "udp" else ()
            own = stack.enter_context(own_server({OBJECT: setting.size}, *setting.flags, *datagrams))
            plan = replace(plan, address=own.addresses[setting.transport], uris=(f"/{OBJECT}",))
            transport = setting.transport
        else:
            _check_object(setting.server, setting.uri or "")
            plan = replace(plan, address=setting.server, uris=(setting.uri or "",))
            scheme = setting.server.partition(":")[0]
            transport = scheme if scheme in TRANSPORTS else "unix"
        if plan.dialect not in ("http", "redis"):
            plan = replace(plan, dialect=protocol_for(setting.mode, transport))
        if transport == "udp" and (plan.pipeline > 1 or plan.rate is not None or plan.reconnect):
            raise CommandError(
                "over udp each client asks once at a time: no --pipeline, --rate or --reconnect", ExitCode.USAGE
            )
        bar = stack.enter_context(progress(plan.duration * len(points) * setting.rounds, quiet=quiet))
        rounds: list[list[Any]] = [[] for _ in points]
        memory: list[int | None] = [None for _ in points]
        for _ in range(setting.rounds):
            for number, point in enumerate(points):
                rounds[number].append(run(replace(plan, **point), bar, f"{title} {' '.join(map(str, point.values()))}"))
                if own is not None:
                    memory[number] = max(memory[number] or 0, own.memory())
        rows = []
        for point, results, used in zip(points, rounds, memory, strict=True):
            what = {"transport": transport, "mode": plan.dialect, "clients": plan.clients, **point}
            rows.append(Row(what, median(results), used))
    _raise_failures(rows)
    return rows


def _check_object(server: str, uri: str) -> None:
    """Raises what the server has against this object, before anything is measured; refusals are quick, too."""
    with open_client(server, 30.0) as client, suppress(UnsupportedOperation):  # a server of version 1 has no stat
        client.stat(uri)


def _raise_failures(rows: Sequence[Row]) -> None:
    if all(row.result.requests + row.result.refused == 0 for row in rows):
        raise CommandError(
            "not one request was answered: is the server there, and does it have the object?", ExitCode.NOT_REACHED
        )


def _print_results(
    rows: Sequence[Row], title: str, as_json: bool, paint: Callable[[Path], None], picture: Path | None
) -> None:
    show(rows, as_json=as_json, title=title)
    if picture is not None:
        paint(picture)


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
    setting = BenchOptions(server, uri, transport, mode, flags, parse_size(file_size), rounds)
    threads = min(THREADS, clients)
    plan = LoadPlan(
        address="", dialect="copy", uris=(), clients=clients, threads=threads, duration=60, requests=requests, rate=rate
    )
    rows = _measure(setting, "latency", plan, [{"requests": requests}], quiet=json)
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
    """Requests and bytes a second with many clients; with --rate, what is left of them under overload."""
    flags = ["--concurrency-model", concurrency_model, "--optimize-for", optimize_for, "--pool-size", str(pool_size)]
    flags += ["--max-queue-depth", str(max_queue_depth)]
    setting = BenchOptions(server, uri, transport, mode, flags, parse_size(file_size), rounds)
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
    rows = _measure(setting, "throughput", plan, [{"pipeline": pipeline}], quiet=json)
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
    setting = BenchOptions(server, uri, transport, mode, flags, parse_size(file_size), rounds)
    plan = LoadPlan(address="", dialect="copy", uris=(), threads=THREADS, duration=parse_duration(duration))
    rows = _measure(setting, "scale", plan, [{"clients": count} for count in counts], quiet=json)
    title = f"growth, {concurrency_model}"
    _print_results(rows, "scale", json, lambda path: draw(rows, path, title=title, line="mode", along="clients"), plot)


@bench.command()
@with_exit_code
def storage(
    hit_rate: Annotated[
        str, typer.Option(metavar="R,R,…", help="Part of the requests for one hot object, 0 to 1.")
    ] = "0,0.8,1",
    file_size: FileSize = "16KiB",
    files: Annotated[int, typer.Option(min=1, max=100_000, help="Cold objects, asked for in turn.")] = 2000,
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
                    uris=mixture(names, rate),
                    clients=clients,
                    threads=THREADS,
                    duration=seconds,
                )
                results[rate].append(run(plan, bar, f"hit rate {rate}"))
        memory = server.memory()
    what: dict[str, str | int | float] = {"transport": "tcp", "mode": "copy", "clients": clients, "size": size}
    rows = [Row({**what, "hit rate": rate}, median(results[rate]), memory) for rate in rates]
    _raise_failures(rows)
    title = "memory and files"
    _print_results(
        rows, "storage", json, lambda path: draw(rows, path, title=title, line="mode", along="hit rate"), plot
    )


def mixture(cold: Sequence[str], hit_rate: float) -> tuple[str, ...]:
    """URIs of which the part `hit_rate`, from 0 to 1, is the hot object's, spread evenly."""
    uris, owed = [], 0.0
    for name in cold:
        owed += hit_rate / (1 - hit_rate) if hit_rate < 1 else 1
        uris += [f"/{OBJECT}"] * int(owed)
        owed -= int(owed)
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
    """Every concurrency model on every transport at several loads: which is best on this machine."""
    rows = measure_models(
        parse_counts(clients), parse_duration(duration), rounds, ["--optimize-for", optimize_for], quiet=json
    )
    _raise_failures(rows)
    title = "concurrency models"
    _print_results(rows, title, json, lambda path: draw(rows, path, title=title, line="model", along="clients"), plot)
    if not json:
        show_criteria(criteria(rows))


@bench.command()
@with_exit_code
def compare(
    peer: Annotated[
        list[str],
        typer.Option(metavar="NAME=PROTOCOL@ADDRESS", help="fdpass, copy, splice, http or redis @ unix:… or tcp://…"),
    ],
    uri: Annotated[
        str, typer.Option(metavar="URI", help="The object, or the key, that every peer has.")
    ] = f"/{OBJECT}",
    clients: Annotated[int, typer.Option(min=1, max=10_000)] = 64,
    duration: Duration = "2s",
    rounds: Rounds = 5,
    pipeline: Pipeline = 1,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Servers side by side under the same load, in turn; the first is the measure of the others."""
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
    _raise_failures(rows)
    _print_results(rows, "compare", json, lambda path: plot_curves(rows, path, title="side by side"), plot)


def parse_rates(text: str) -> list[float]:
    """Parts of the whole from ``0,0.8,1``. Raises CommandError."""
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise CommandError(f"--hit-rate {text}: parts from 0 to 1, parted by commas", ExitCode.USAGE)
    return rates


def parse_counts(text: str) -> list[int]:
    """Numbers of clients from ``1,10,100``. Raises CommandError."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > 100_000:
        raise CommandError(f"--clients {text}: numbers from 1 to 100000, parted by commas", ExitCode.USAGE)
    return counts


def parse_peer(text: str) -> tuple[str, Dialect, str]:
    """Name, protocol and address of ``nginx=http@tcp://127.0.0.1:80``. Raises CommandError."""
    name, _, rest = text.partition("=")
    dialect, _, address = rest.partition("@")
    for known in get_args(Dialect):
        if dialect == known and name and address:
            return name, known, address
    known = ", ".join(get_args(Dialect))
    raise CommandError(f"--peer {text}: write NAME=PROTOCOL@ADDRESS, the protocol one of {known}", ExitCode.USAGE)
