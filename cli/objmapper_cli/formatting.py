"""Formats of URIs, metadata, times and sizes: text for people, JSON for programs."""

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from objmapper_client import Stat

#: Nanoseconds.
NANOSECONDS: Final = 1_000_000_000


def for_terminal(uri: str) -> str:
    """A URI for output: on a terminal without control characters, which could move its cursor."""
    if not sys.stdout.isatty():
        return uri
    from objmapper_client.errors import printable

    return printable(uri)


def print_line(text: str) -> None:
    """Print a line in UTF-8 for every encoding of the terminal: URIs are UTF-8."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    if sys.stdout.isatty():
        sys.stdout.buffer.flush()


def print_text(text: str) -> None:
    """Print a line and flush, for readers that follow the output."""
    print_line(text)
    sys.stdout.buffer.flush()


def print_json(document: Mapping[str, object]) -> None:
    """Print a document as one line of JSON; JSON escapes all but ASCII."""
    print_line(json.dumps(document))


def print_fetched(uri: str, file: str, size: int | None, fetched: bool) -> None:
    """Print the file of an object as JSON; `fetched` is false if the file was up to date."""
    print_text(json.dumps({"uri": uri, "file": file, "size": size, "fetched": fetched}))


def print_stat(found: "Stat", *, has_mtime: bool = True) -> None:
    """Print an object's metadata as JSON, its time in seconds with the server's precision."""
    mtime = format_seconds(found.mtime, found.mtime_ns) if has_mtime else "null"
    uri, etag = json.dumps(found.uri), json.dumps(found.etag)
    print_line(f'{{"uri": {uri}, "size": {found.size}, "mtime": {mtime}, "etag": {etag}}}')


def format_seconds(mtime: int, mtime_ns: int | None) -> str:
    """A time in seconds since 1970 as a JSON number: whole, or with nine digits behind the point."""
    if mtime_ns is None or mtime_ns == mtime * NANOSECONDS:
        return str(mtime)
    whole, rest = divmod(abs(mtime_ns), NANOSECONDS)
    return f"{'-' if mtime_ns < 0 else ''}{whole}.{rest:09}"


def format_time(mtime: int, mtime_ns: int | None = None) -> str:
    """A time, in seconds since 1970, as UTC; as @SECONDS if the year is out of range."""
    rest = 0 if mtime_ns is None else mtime_ns - mtime * NANOSECONDS
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(mtime)) + (f".{rest:09}Z" if rest else "Z")
    except (OverflowError, OSError, ValueError):
        return f"@{mtime}"


def format_micros(value: float) -> str:
    """Return a time with a suitable unit."""
    if value < 1000:
        return f"{value:.1f} µs"
    return f"{value / 1000:.1f} ms" if value < 1e6 else f"{value / 1e6:.2f} s"


def format_bytes(value: float) -> str:
    """Return a number of bytes with a suitable unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_count(value: float) -> str:
    """Return a count, as a whole number from ten on."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
