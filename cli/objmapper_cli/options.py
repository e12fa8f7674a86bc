"""The common options of commands that connect to a server, and the client for them."""

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
TimeoutOption = Annotated[float, typer.Option(metavar="SECONDS", help="Maximum wait for a response.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]


WaitOption = Annotated[
    str, typer.Option(metavar="TIME", help="Maximum wait for a server that is starting, such as 30s or 2m.")
]
UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_seconds(flag: str, text: str) -> float:
    """Seconds from ``30``, ``30s``, ``500ms``, ``2m``. Raises CommandError."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    if match is None or float(match[1]) * UNITS[match[2]] > MAX_WAIT:
        raise CommandError(
            f"{flag}: expected a number with a unit, such as 30s, 2m or 500ms (got {text})", ExitCode.USAGE
        )
    return float(match[1]) * UNITS[match[2]]


def complete_with(*names: str) -> Callable[[], list[str]]:
    """The shell completion of an option that has one of these values."""
    return lambda: list(names)


def model_names() -> list[str]:
    """The names of the concurrency models. It imports the server, so call it only for shell completion and errors."""
    from objmapper_server.concurrency import Concurrency

    return [model.value for model in Concurrency]


def open_client(
    server: str | None, timeout: float, mode: Mode | None = None, wait: str = "0", *, parallel: int = 1
) -> Client:
    """The client for these options, to be closed by the caller; `parallel` contents do not wait for one another.

    Raises CommandError, AddressError.
    """
    if not timeout > 0:
        raise CommandError(f"--timeout: expected more than 0 seconds (got {timeout})", ExitCode.USAGE)
    return Client(
        parse(server) if server else default_address(),
        timeout=timeout,
        # One more: the shared connection.
        max_connections=max(8, parallel + 1),
        mode=mode,
        wait=parse_seconds("--wait", wait),
    )
