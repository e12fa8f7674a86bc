"""``objmapper stats --watch`` on a terminal: the current values, each with a line of its history."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.formatting import format_bytes, format_count, format_micros
from objmapper_cli.output_file import exiting_on_signals

Document = Mapping[str, Any]
BARS: Final = "▁▂▃▄▅▆▇█"
PLAIN_BARS: Final = "_.-=+*#@"
#: Samples in memory; a line shows those that fit.
HISTORY_LENGTH: Final = 240
#: Columns that the other cells of a row need.
OTHER_COLUMNS: Final = 34
OUTAGES: Final = (ExitCode.NOT_REACHED, ExitCode.TIMEOUT)


def rate_of(field: str) -> Callable[[Document, Document, float], float]:
    """Return the growth of a counter a second."""
    return lambda now, before, seconds: max(0, now[field] - before[field]) / seconds


def value_of(field: str) -> Callable[[Document, Document, float], float]:
    """Return the value of a field."""
    return lambda now, _before, _seconds: float(now[field])


#: Name, formatter, and reader of a value from this document and the previous one.
ROWS: Final[tuple[tuple[str, Callable[[float], str], Callable[[Document, Document, float], float]], ...]] = (
    ("requests/s", format_count, rate_of("requests_total")),
    ("bytes/s", format_bytes, rate_of("bytes_total")),
    ("p50 latency", format_micros, value_of("p50_latency_us")),
    ("p99 latency", format_micros, value_of("p99_latency_us")),
    ("p99.9 latency", format_micros, value_of("p999_latency_us")),
    ("queue wait", format_micros, value_of("queue_wait_time_us")),
    ("queue depth", format_count, value_of("queue_depth")),
    ("connections", format_count, value_of("connections")),
    ("active threads", format_count, value_of("active_threads")),
    ("cache hit rate", lambda value: f"{value:.1%}", value_of("cache_hit_rate")),
    ("refused/s", format_count, rate_of("rejected_total")),
    ("errors/s", format_count, lambda now, before, seconds: max(0, _errors(now) - _errors(before)) / seconds),
)


def _errors(document: Document) -> int:
    return sum(document["errors_total"].values())


def sparkline(values: Sequence[float], bars: str = BARS) -> str:
    """Return a bar for each value, from 0 to the highest."""
    highest = max(values, default=0.0)
    if highest <= 0:
        return bars[0] * len(values)
    return "".join(bars[min(len(bars) - 1, int(value / highest * len(bars)))] for value in values)


class History:
    """The past values of each row, the newest last."""

    def __init__(self) -> None:
        self.lines: dict[str, deque[float]] = {name: deque(maxlen=HISTORY_LENGTH) for name, _, _ in ROWS}
        self.columns: dict[str, dict[str, float]] = {}
        self._before: Document | None = None

    def add(self, now: Document) -> None:
        """Add one document. A restarted server counts from 0, and its history starts again."""
        before = self._before
        self._before = now
        if before is None or now["uptime"] < before["uptime"]:
            before = now
        seconds = max(now["uptime"] - before["uptime"], 1e-3)
        self.columns = {}
        for column, figures in {"total": now, **now["transports"]}.items():
            # A new transport has not grown yet.
            previous = before if column == "total" else before["transports"].get(column, figures)
            self.columns[column] = {name: figure_of(figures, previous, seconds) for name, _, figure_of in ROWS}
        if before is not now:
            for name, value in self.columns["total"].items():
                self.lines[name].append(value)


def watch_statistics(
    read_statistics: Callable[[], Document], title: Callable[[Document], str], interval: float
) -> None:
    """Redraw until interrupted. After the first answer, wait while the server is not reachable."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    # rich handles NO_COLOR, and terminals without colour.
    console = Console(highlight=False)
    bars = BARS if (console.encoding or "").lower().startswith("utf") else PLAIN_BARS
    history = History()
    document = read_statistics()
    history.add(document)

    def draw(error: str = "") -> Group:
        table = Table(expand=True)
        seen = len(history.lines["requests/s"])
        width = max(8, console.width - OTHER_COLUMNS - 14 * len(history.columns))
        table.add_column("", no_wrap=True)
        for column in history.columns:
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column(f"last {seen} × {interval:g} s", ratio=1, no_wrap=True, overflow="crop")
        for name, format_value, _ in ROWS:
            line = sparkline(list(history.lines[name])[-width:], bars)
            table.add_row(
                name, *(format_value(values[name]) for values in history.columns.values()), Text(line, style="cyan")
            )
        models = ", ".join(f"{name}: {model}" for name, model in document["concurrency_model"].items())
        head = Text(error, style="bold red") if error else Text(title(document), style="bold")
        return Group(head, Text(models), table)

    with exiting_on_signals(), ExitStack() as stack:
        # `Live` hides the cursor. A signal before its block begins would leave it hidden.
        stack.callback(console.show_cursor, True)
        live = stack.enter_context(Live(draw(), console=console, auto_refresh=False, screen=False))
        while True:
            time.sleep(interval)
            try:
                document = read_statistics()
            except CommandError as failure:
                if failure.code not in OUTAGES:
                    raise
                live.update(draw(str(failure)), refresh=True)
                continue
            history.add(document)
            live.update(draw(), refresh=True)
