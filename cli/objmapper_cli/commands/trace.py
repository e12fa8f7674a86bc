"""``objmapper trace``: requests that were slow, as they happen."""

import re
import sys
import time
from typing import Annotated, Any, Final

import typer

from objmapper_cli.admin_client import AdminClient
from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.formatting import for_terminal, format_micros, print_text
from objmapper_cli.options import WaitOption, parse_seconds

#: Seconds between two requests to the endpoint.
POLL_INTERVAL: Final = 0.25
#: The server's maximum, in milliseconds.
MAX_MILLISECONDS: Final = 1e9
UNITS: Final = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def trace(
    slower_than: Annotated[
        str, typer.Option(metavar="TIME", help="Minimum time of a request, such as 500us, 5ms or 1s.")
    ] = "5ms",
    count: Annotated[
        int | None, typer.Option(min=1, help="End after this many requests. [default: until Ctrl-C]")
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            metavar="http://HOST:PORT|unix:/PATH",
            help="Admin endpoint. [default: $OBJMAPPER_ADMIN or http://127.0.0.1:9997]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document a line.")] = False,
    wait: WaitOption = "0",
) -> None:
    """Follow the requests that take longer than a time.

    Each line shows a request, its client, and the parts of its time.
    """
    import json

    threshold_ms = parse_milliseconds(slower_than)
    client = AdminClient(admin, parse_seconds("--wait", wait))
    after, left = client.post("/watch", {"slower_than_ms": threshold_ms}, "last")["last"], count
    if sys.stdout.isatty() and not as_json:
        print("time          total  =  queue + storage +   send  mode      status  URI  (client)")
    while left is None or left > 0:
        # A watch ends a few seconds after its last renewal.
        client.post("/watch", {"slower_than_ms": threshold_ms})
        recorded = client.read(f"/requests?slower_than_ms={threshold_ms!r}&after={after}", "last", "requests")
        # A restarted server counts from 0.
        after = recorded["last"]
        for request in recorded["requests"]:
            if left == 0:
                break
            with client.checking_documents():
                text = json.dumps(request) if as_json else format_request(request)
            print_text(text)
            left = None if left is None else left - 1
        time.sleep(POLL_INTERVAL)


def format_request(request: dict[str, Any]) -> str:
    """One request as a line of text."""
    at = time.strftime("%H:%M:%S", time.localtime(request["at"])) + f"{request['at'] % 1:.3f}"[1:]
    total, queue, storage, send = (
        f"{format_micros(request[f'{part}_us']):>8}" for part in ("total", "queue", "storage", "send")
    )
    status = "ok" if request["status"] == 0 else f"{request['status']:02x}"
    outcome = f"{request['mode']:<9} {status:<6}  {for_terminal(request['uri'])}  ({request['peer']})"
    return f"{at} {total} ={queue} +{storage} +{send}  {outcome}"


def parse_milliseconds(text: str) -> float:
    """Milliseconds from ``500us``, ``5ms``, ``1s``. Raises CommandError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|µs|ms|s)", text)
    if match is None or float(match[1]) * UNITS[match[2]] > MAX_MILLISECONDS:
        raise CommandError(
            f"--slower-than: expected a number with us, ms or s, such as 5ms (got {text})", ExitCode.USAGE
        )
    return float(match[1]) * UNITS[match[2]]
