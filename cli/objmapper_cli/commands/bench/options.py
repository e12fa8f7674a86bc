"""The options that several benches have, and the parsers of their values. Each parser raises CommandError."""

import re
from pathlib import Path
from typing import Annotated, get_args

import typer

from objmapper_cli.commands.bench.report import check_picture
from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.options import complete_with, model_names
from objmapper_server.load import LoadProtocol

#: Maximum seconds of one round.
MAX_SECONDS = 86_400

Server = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Measure this server. [default: the bench's own server]")
]
Uri = Annotated[str | None, typer.Option(metavar="URI", help="URI of the object to get from --server.")]
Transport = Annotated[
    str,
    typer.Option(
        metavar="unix|tcp|udp",
        help="Transport to the bench's own server.",
        autocompletion=complete_with("unix", "tcp", "udp"),
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        metavar="fdpass|copy|splice|pull",
        help="[default: fdpass on unix, copy on tcp, pull (or copy) on udp]",
        autocompletion=complete_with("fdpass", "copy", "splice", "pull"),
    ),
]
Model = Annotated[
    str,
    typer.Option(metavar="MODEL", help="Concurrency model of the bench's own server.", autocompletion=model_names),
]
OptimizeFor = Annotated[
    str,
    typer.Option(
        metavar="latency|throughput",
        help="optimize_for of the bench's own server.",
        autocompletion=complete_with("latency", "throughput"),
    ),
]
FileSize = Annotated[str, typer.Option(metavar="BYTES", help="Size of the object, such as 4096 or 1MB.")]
Duration = Annotated[str, typer.Option(metavar="TIME", help="Time of each round, such as 10s, 2m or 500ms.")]
Rounds = Annotated[int, typer.Option(min=1, max=99, help="Number of rounds; the median one counts.")]
Pipeline = Annotated[int, typer.Option(min=1, max=1000, help="Pending requests of each client.")]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="N", min=1e-3, max=1e9, help="Open loop: send N requests a second, without waiting for responses."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", callback=check_picture, help="Draw a chart, too.")]


def parse_duration(text: str) -> float:
    """Seconds from ``60s``, ``2m``, ``500ms`` or a bare number. Raises CommandError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    seconds = float(match[1]) * {"ms": 1e-3, "": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise CommandError(
            f"--duration: expected a number above 0 with a unit, such as 10s, 2m or 500ms, up to 24h (got {text})",
            ExitCode.USAGE,
        )
    return seconds


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``64KiB`` or ``1MB``. Raises CommandError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise CommandError(
            f"--file-size: expected bytes, such as 4096, 64KiB or 1MB (got {text})", ExitCode.USAGE
        ) from None


#: Modes over version 1 and over version 2.
STREAM_PROTOCOLS: tuple[LoadProtocol, ...] = ("fdpass", "copy", "splice", "fdpass2", "copy2", "splice2")
#: One datagram for what fits, and ranges.
UDP_PROTOCOLS: tuple[LoadProtocol, ...] = ("copy", "pull")


def protocol_for(mode: str | None, transport: str) -> LoadProtocol:
    """The mode, or the default of the transport. Raises CommandError for a mode that the transport does not support."""
    protocol = mode or {"unix": "fdpass", "tcp": "copy", "udp": "pull"}[transport]
    if transport == "udp":
        for known in UDP_PROTOCOLS:
            if protocol == known:
                return known
        raise CommandError(
            f"--mode: over udp, expected pull, or copy for content of one datagram (got {protocol})", ExitCode.USAGE
        )
    for known in STREAM_PROTOCOLS:
        if protocol == known and (transport == "unix" or not known.startswith("fdpass")):
            return known
    raise CommandError(
        f"--mode: over {transport}, expected {'fdpass, ' * (transport == 'unix')}copy or splice, 2 behind it for "
        f"version 2 of the protocol (got {protocol})",
        ExitCode.USAGE,
    )


def parse_rates(text: str) -> list[float]:
    """Parts of the whole from ``0,0.8,1``. Raises CommandError."""
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise CommandError(
            f"--hit-rate: expected numbers from 0 to 1, separated by commas (got {text})", ExitCode.USAGE
        )
    return rates


def parse_counts(text: str) -> list[int]:
    """Numbers of clients from ``1,10,100``. Raises CommandError."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > 100_000:
        raise CommandError(
            f"--clients: expected numbers from 1 to 100000, separated by commas (got {text})", ExitCode.USAGE
        )
    return counts


def parse_peer(text: str) -> tuple[str, LoadProtocol, str]:
    """Name, protocol and address of ``nginx=http@tcp://127.0.0.1:80``. Raises CommandError."""
    name, _, rest = text.partition("=")
    dialect, _, address = rest.partition("@")
    for known in get_args(LoadProtocol):
        if dialect == known and name and address:
            return name, known, address
    known = ", ".join(get_args(LoadProtocol))
    raise CommandError(
        f"--peer: expected NAME=PROTOCOL@ADDRESS, with a protocol of {known} (got {text})", ExitCode.USAGE
    )
