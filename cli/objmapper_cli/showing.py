"""How what a server says of objects is printed: for people, and for programs."""

import json
import sys
import time
from collections.abc import Mapping


def shown(uri: str) -> str:
    """A URI as it can be shown: on a terminal without what would move its cursor or change its colours."""
    if not sys.stdout.isatty():
        return uri
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in uri)


def print_line(text: str) -> None:
    """Print a line in UTF-8, whatever the terminal's encoding is: URIs are UTF-8."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    if sys.stdout.isatty():
        sys.stdout.buffer.flush()


def print_json(document: Mapping[str, object]) -> None:
    """Print a document in one line."""
    print_line(json.dumps(document))


def when(mtime: int) -> str:
    """A time, in seconds since 1970, as UTC. A server may say what is no year of ours."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(mtime))
    except (OverflowError, OSError, ValueError):
        return f"@{mtime}"
