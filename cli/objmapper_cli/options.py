"""Options that every command which talks to a server has, and the client that they describe."""

from typing import Annotated

import typer

from objmapper_cli.errors import ExitCode, Failure
from objmapper_client.address import default_address, parse
from objmapper_client.client import Client
from objmapper_client.protocol import Mode

ServerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="unix:/PATH, tcp://HOST:PORT or udp://HOST:PORT.", envvar="OBJMAPPER_SERVER"),
]
TimeoutOption = Annotated[float, typer.Option(metavar="SECONDS", help="The longest wait for the server.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]


def client_of(server: str | None, timeout: float, mode: Mode | None = None) -> Client:
    """The client for these options, to be closed by the caller. Raises Failure, AddressError."""
    if not timeout > 0:
        raise Failure(f"--timeout {timeout}: more than 0 seconds are needed", ExitCode.USAGE)
    return Client(parse(server) if server else default_address(), timeout=timeout, mode=mode)
