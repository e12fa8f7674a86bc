"""Runs loads one after the other, with a progress bar on stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from objmapper_cli.output_file import exiting_on_signals
from objmapper_server.load import LoadPlan, LoadResult, run_load

# Between them these use up the generator's half of the machine; more would take from the server.
THREADS = max(1, (os.cpu_count() or 2) // 2)


@contextmanager
def progress(total: float, *, quiet: bool) -> Iterator[Any]:
    """A bar over seconds of measuring, on stderr; nothing where that is no terminal."""
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


def run(plan: LoadPlan, bar: Any, what: str) -> LoadResult:
    """Runs one load and moves the bar by its time."""
    bar.set_postfix_str(what)
    result = run_load(plan, lambda answered: bar.set_postfix_str(f"{what}: {answered:,}"))
    bar.update(result.elapsed)
    return result
