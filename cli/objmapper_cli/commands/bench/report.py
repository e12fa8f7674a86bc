"""The output of a bench: rows as a table, as JSON, or as a chart."""

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from objmapper_server.load import LoadResult

COLORS = {
    "thread-per-connection": "#4477aa",
    "thread-pool": "#ee6677",
    "work-stealing": "#228833",
    "epoll": "#aa3377",
    "auto": "#222222",
}
PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured point: its parameters, and its result (the median of the rounds)."""

    labels: dict[str, str | int | float]
    result: LoadResult
    memory: int | None = None  #: bytes, of the bench's own server

    def as_json(self) -> dict[str, Any]:
        """The row as plain values, without the curve."""
        figures = {name: value for name, value in asdict(self.result).items() if name != "curve"}
        return {**self.labels, **figures, "memory": self.memory}


def median(results: Sequence[LoadResult]) -> LoadResult:
    """The round with the median throughput; all its figures are of one round."""
    return sorted(results, key=lambda result: result.requests_per_sec)[len(results) // 2]


def show(rows: Sequence[Row], *, as_json: bool, title: str) -> None:
    """Prints the rows on stdout: a table, or a JSON document."""
    if as_json:
        json.dump({"bench": title, "rows": [row.as_json() for row in rows]}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0].labels:
        table.add_column(name)
    with_memory = any(row.memory is not None for row in rows)
    refused = any(row.result.refused for row in rows)
    for name in ("requests/s", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "errors", "lost"):
        table.add_column(name, justify="right")
    for name, is_shown in (("refused", refused), ("MiB", with_memory)):
        if is_shown:
            table.add_column(name, justify="right")
    for row in rows:
        result = row.result
        cells = [str(value) for value in row.labels.values()]
        cells += [f"{result.requests_per_sec:,.0f}", f"{result.bytes_per_sec / 1e6:,.1f}"]
        cells += [f"{value:,.1f}" for value in (result.p50_us, result.p99_us, result.p999_us)]
        cells += [str(result.errors), f"{result.lost:,}"]
        cells += [f"{result.refused:,}"] * refused
        cells += [f"{row.memory / (1 << 20):,.1f}" if row.memory is not None else ""] * with_memory
        table.add_row(*cells)
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)


def check_picture(path: Path | None) -> Path | None:
    """The path, if a chart can be written there. Raises BadParameter before the bench measures."""
    if path is None:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("charts need matplotlib; pip install 'objmapper[plot]'")
    if path.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{path}: expected a name that ends in one of {', '.join(PICTURES)}")
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
        raise typer.BadParameter(f"{path}: cannot be written; choose another path")
    return path


def plot_rows(rows: Sequence[Row], path: Path, *, title: str, line: str, along: str) -> None:
    """Draws throughput and p99 against `along`, a line for each value of `line`, a column for each transport."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = list(dict.fromkeys(str(row.labels.get("transport", "")) for row in rows))
    figure, axes = plt.subplots(2, len(columns), figsize=(6 * len(columns), 8), squeeze=False, layout="constrained")
    figure.suptitle(title)
    for number, column in enumerate(columns):
        column_rows = [row for row in rows if str(row.labels.get("transport", "")) == column]
        for name in dict.fromkeys(str(row.labels.get(line, "")) for row in column_rows):
            line_rows = [row for row in column_rows if str(row.labels.get(line, "")) == name]
            x = [float(row.labels[along]) for row in line_rows]
            style = {"marker": "o", "label": name, "color": COLORS.get(name)}
            axes[0][number].plot(x, [row.result.requests_per_sec / 1000 for row in line_rows], **style)
            axes[1][number].plot(x, [row.result.p99_us for row in line_rows], **style)
        mode = str(column_rows[0].labels.get("mode", ""))
        axes[0][number].set_title(f"{column} {mode}".strip())
        axes[0][number].set_ylabel("thousand requests/s")
        axes[0][number].set_ylim(bottom=0)
        axes[1][number].set_ylabel("p99, µs")
        axes[1][number].set_yscale("log")
        for axis in (axes[0][number], axes[1][number]):
            axis.set_xlabel(along)
            if len({row.labels[along] for row in column_rows}) > 2:
                axis.set_xscale("log")
            axis.grid(visible=True, alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_curves(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """Draws latency by quantile, a line for each row."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        tail = [(1 / max(1 - quantile, 1e-7), value) for quantile, value in row.result.curve]
        axis.plot(*zip(*tail, strict=True), label=" ".join(map(str, row.labels.values())))
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = {1: "0", 2: "50 %", 10: "90 %", 100: "99 %", 1000: "99.9 %", 10_000: "99.99 %", 100_000: "99.999 %"}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_xlabel("percentile of the requests")
    axis.set_ylabel("latency, µs")
    axis.set_title(title)
    axis.grid(visible=True, alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
