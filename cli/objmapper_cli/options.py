"""Options that every command which talks to a server has, and the client that they describe."""

from collections.abc import Callable
from typing import Annotated

import typer

from objmapper_cli.errors import CommandError, ExitCode
from objmapper_client._client_options import MAX_WAIT
from objmapper_client.address import default_address, parse
from objmapper_client.client import Client
from objmapper_client.protocol import Mode

ServerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="unix:/PATH, tcp://HOST:PORT or udp://HOST:PORT.", envvar="OBJMAPPER_SERVER"),
]
TimeoutOption = Annotated[float, typer.Option(metavar="SECONDS", help="The longest wait for the server.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]


WaitOption = Annotated[
    str, typer.Option(metavar="TIME", help="How long to wait for a server that is starting, such as 30s or 2m.")
]
UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_seconds(flag: str, text: str) -> float:
    """Seconds from ``30``, ``30s``, ``500ms``, ``2m``. Raises CommandError."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    if match is None or float(match[1]) * UNITS[match[2]] > MAX_WAIT:
        raise CommandError(f"{flag} {text}: a time is a number with a unit, such as 30s, 2m or 500ms", ExitCode.USAGE)
    return float(match[1]) * UNITS[match[2]]


def complete_with(*names: str) -> Callable[[], list[str]]:
    """What a shell offers for an option that has one of these values."""
    return lambda: list(names)


def model_names() -> list[str]:
    """The names of the concurrency models. It loads the server: called where a shell completes, or a text is wrong."""
    from objmapper_server.concurrency import Concurrency

    return [model.value for model in Concurrency]


def open_client(
    server: str | None, timeout: float, mode: Mode | None = None, wait: str = "0", *, parallel: int = 1
) -> Client:
    """The client for these options, to be closed by the caller; `parallel` contents do not wait for one another.

    Raises CommandError, AddressError.
    """
    if not timeout > 0:
        raise CommandError(f"--timeout {timeout}: more than 0 seconds are needed", ExitCode.USAGE)
    return Client(
        parse(server) if server else default_address(),
        timeout=timeout,
        # One more, which requests share.
        max_connections=max(8, parallel + 1),
        mode=mode,
        wait=parse_seconds("--wait", wait),
    )
