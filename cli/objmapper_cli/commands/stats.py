"""``objmapper stats``: the statistics of the admin endpoint, as a table or as JSON."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final

import typer

from objmapper_cli.admin_client import AdminClient
from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.formatting import format_bytes, format_micros
from objmapper_cli.options import WaitOption, parse_seconds

Document = Mapping[str, Any]
Row = tuple[str, ...]
#: Keys that the document of an objmapper server must have.
NAMES: Final = ("requests_total", "transports")


def stats(
    admin: Annotated[
        str | None,
        typer.Option(
            metavar="http://HOST:PORT|unix:/PATH",
            help="Admin endpoint. [default: $OBJMAPPER_ADMIN or http://127.0.0.1:9997]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the endpoint's JSON document.")] = False,
    watch: Annotated[float | None, typer.Option(metavar="SECONDS", help="Refresh after this time.")] = None,
    wait: WaitOption = "0",
) -> None:
    """Show the requests, rates and latencies of a server.

    Rates are those of the last 10 s, times those of the last minute, totals since start.
    """
    if watch is not None and not 0.1 <= watch <= 86400:
        raise CommandError(f"--watch: expected 0.1 to 86400 seconds (got {watch:g})", ExitCode.USAGE)
    client = AdminClient(admin, parse_seconds("--wait", wait))
    if as_json:
        _repeat(watch, lambda: print(client.text("/stats", *NAMES), flush=True))
        return
    with client.checking_documents():
        if sys.stdout.isatty() and watch is not None:
            from objmapper_cli.watch import watch_statistics

            watch_statistics(lambda: read_statistics(client), title, watch)
        elif sys.stdout.isatty():
            _print_tables(read_statistics(client))
        else:
            _repeat(watch, lambda: print(*_plain_lines(read_statistics(client)), sep="\n", flush=True))


def read_statistics(client: AdminClient) -> Document:
    """Return the statistics; raises `CommandError` if another program answers."""
    return client.read("/stats", *NAMES)


def _repeat(pause: float | None, show: Callable[[], None]) -> None:
    show()
    while pause is not None:
        time.sleep(pause)
        show()


def _model(document: Document) -> str:
    model = document["concurrency_model"]
    return model if isinstance(model, str) else ""


FIGURES: Final[tuple[tuple[str, Callable[[Document], str]], ...]] = (
    ("concurrency model", _model),
    ("requests/s", lambda it: f"{it['requests_per_sec']:.0f}"),
    ("bytes/s", lambda it: format_bytes(it["bytes_per_sec"])),
    ("p50 latency", lambda it: format_micros(it["p50_latency_us"])),
    ("p99 latency", lambda it: format_micros(it["p99_latency_us"])),
    ("p99.9 latency", lambda it: format_micros(it["p999_latency_us"])),
    ("queue wait", lambda it: format_micros(it["queue_wait_time_us"])),
    ("queue depth (max)", lambda it: f"{it['queue_depth']} ({it['queue_depth_max']})"),
    ("active threads", lambda it: f"{it['active_threads']}"),
    ("connections", lambda it: f"{it['connections']}"),
    ("cache hit rate", lambda it: f"{it['cache_hit_rate']:.1%}"),
    ("disk I/O pending", lambda it: f"{it['disk_io_pending']}"),
    ("requests total", lambda it: f"{it['requests_total']}"),
    ("bytes total", lambda it: format_bytes(it["bytes_total"])),
    ("errors total", lambda it: f"{sum(it['errors_total'].values())}"),
    ("rejected total", lambda it: f"{it['rejected_total']}"),
    ("p50 since start", lambda it: format_micros(it["since_start"]["p50_latency_us"])),
    ("p99 since start", lambda it: format_micros(it["since_start"]["p99_latency_us"])),
    ("p99.9 since start", lambda it: format_micros(it["since_start"]["p999_latency_us"])),
)
KIND_HEADER: Final[Row] = ("", "requests total", "requests/s", "bytes/s", "p50", "p99", "p99.9")


def title(document: Document) -> str:
    """Return the addresses and the uptime."""
    minutes, seconds = divmod(int(document["uptime"]), 60)
    hours, minutes = divmod(minutes, 60)
    addresses = " ".join(each["address"] for each in document["transports"].values())
    return f"{addresses}, up {hours}:{minutes:02}:{seconds:02}{', draining' if document['draining'] else ''}"


def transport_rows(document: Document) -> list[Row]:
    """Return the lines of the first table, its head first."""
    columns = [document, *document["transports"].values()]
    return [
        ("", "total", *document["transports"]),
        *((name, *map(show, columns)) for name, show in FIGURES),
        *(
            (f"  {status}", *(f"{each['errors_total'].get(status, 0)}" for each in columns))
            for status in document["errors_total"]
        ),
        # Only for the whole server.
        *(
            (f"  denied: {reason}", f"{count}", *("" for _ in columns[1:]))
            for reason, count in document["denied_total"].items()
            if count
        ),
    ]


def kind_rows(document: Document) -> list[Row]:
    """Return the lines of the second table: the modes and models that were used."""
    rows = [KIND_HEADER]
    for name, each in (*document["modes"].items(), *document["models"].items()):
        if each["requests_total"]:
            latencies = (format_micros(each[f"{percentile}_latency_us"]) for percentile in ("p50", "p99", "p999"))
            rate, volume = f"{each['requests_per_sec']:.0f}", format_bytes(each["bytes_per_sec"])
            rows.append((name, f"{each['requests_total']}", rate, volume, *latencies))
    return rows


def datagram_rows(document: Document) -> list[Row]:
    """Return the lines of the third table: datagrams by kind, if UDP is served."""
    datagrams = document.get("datagrams") or {}
    totals = [(field.removesuffix("_total").replace("_", " "), total) for field, total in datagrams.items()]
    shown = (format_bytes(total) if name.startswith("bytes") else f"{total}" for name, total in totals)
    rows = [(f"  {name}", value) for (name, _), value in zip(totals, shown, strict=True)]
    return [("datagrams", "since start"), *rows] if rows else []


def _plain_lines(document: Document) -> Iterable[str]:
    yield title(document)
    for rows in (transport_rows(document), kind_rows(document), datagram_rows(document)):
        if len(rows) > 1:
            yield ""
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            for first, *others in rows:
                cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
                yield "  ".join((first.ljust(widths[0]), *cells)).rstrip()


def _print_tables(document: Document) -> None:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Table | Text] = [Text(title(document), style="bold")]
    for rows in (transport_rows(document), kind_rows(document), datagram_rows(document)):
        if len(rows) > 1:
            table = Table()
            for column, name in enumerate(rows[0]):
                table.add_column(name, justify="right" if column else "left", no_wrap=not column)
            for row in rows[1:]:
                table.add_row(*row)
            parts.append(table)
    Console(no_color=bool(os.environ.get("NO_COLOR")), highlight=False).print(Group(*parts))
