"""``objmapper get``: one object, to standard output or into a file. Memory is bounded whatever its size."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated

import typer

from objmapper_cli.copying import write_all
from objmapper_cli.destination import destination
from objmapper_cli.errors import ExitCode, Failure
from objmapper_cli.progress import Progress
from objmapper_client.address import UnixAddress, default_address, parse
from objmapper_client.client import Client
from objmapper_client.object import copy_to
from objmapper_client.protocol import Mode


def get(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The object, such as /models/weights.bin.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE; '-' is standard output.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(metavar="fdpass|copy|splice", help="How it is delivered; by default the best that there is."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="unix:/PATH, tcp://HOST:PORT or udp://HOST:PORT.", envvar="OBJMAPPER_SERVER"
        ),
    ] = None,
    offset: Annotated[int, typer.Option(metavar="BYTES", help="Begin here.", min=0)] = 0,
    length: Annotated[int | None, typer.Option(metavar="BYTES", help="So many at most.", min=0)] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="The longest wait for the server.")] = 30.0,
) -> None:
    """Write an object to standard output, or into a file that appears when it is whole."""
    if not timeout > 0:
        raise Failure(f"--timeout {timeout}: more than 0 seconds are needed", ExitCode.USAGE)
    address = parse(server) if server else default_address()
    chosen = _chosen_mode(mode, passes_descriptors=isinstance(address, UnixAddress))
    with Client(address, timeout=timeout, mode=chosen) as client:
        if chosen is Mode.FDPASS:
            _by_descriptor(client, uri, output, offset, length)
        else:
            _by_bytes(client, uri, output, offset, length)


def _chosen_mode(name: str | None, *, passes_descriptors: bool) -> Mode:
    if name is None:
        return Mode.FDPASS if passes_descriptors else Mode.COPY
    known = {mode.name.lower(): mode for mode in Mode}
    if name not in known:
        raise Failure(f"--mode {name}: there are {', '.join(known)}", ExitCode.USAGE)
    return known[name]


def _by_descriptor(client: Client, uri: str, output: str | None, offset: int, length: int | None) -> None:
    with client.open(uri) as found:
        wanted = max(0, found.size - offset)
        if length is not None:
            wanted = min(wanted, length)
        with destination(output) as target, Progress(uri, wanted) as progress:
            written = copy_to(found.fileno(), target, wanted, offset, progress)
            if written < wanted:
                raise Failure(f"{uri}: it shrank while it was copied ({written} of {wanted} bytes); try again")


def _by_bytes(client: Client, uri: str, output: str | None, offset: int, length: int | None) -> None:
    chunks = client.stream(uri)
    # The answer first: a missing object leaves no trace of a file.
    first = next(chunks, b"")
    with destination(output) as target, Progress(uri) as progress:
        for chunk in within(chain([first], chunks), offset, length):
            write_all(target, chunk)
            progress(len(chunk))


def within(chunks: Iterator[bytes], offset: int, length: int | None) -> Iterator[memoryview]:
    """Yield what lies within a range; what is behind it is not asked for any more."""
    for chunk in chunks:
        piece = memoryview(chunk)[offset:]
        offset = max(0, offset - len(chunk))
        if length is not None:
            piece = piece[:length]
            length -= len(piece)
        yield piece
        if length == 0:
            return
