"""``objmapper put``: a file, or standard input, becomes an object."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.name_encoding import uri_of
from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, open_client
from objmapper_cli.output_file import exiting_on_signals
from objmapper_cli.progress import Progress
from objmapper_client.errors import ObjectNotFound


def put(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to store; '-' is standard input.")],
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="URI of the object; the name of FILE is added to one that ends in /.")
    ],
    if_match: Annotated[
        str | None, typer.Option(metavar="ETAG", help="Replace only this version, an etag of `objmapper stat`.")
    ] = None,
    if_none_match: Annotated[
        str | None,
        typer.Option(metavar="ETAG|*", help="Replace any version but this one; '*': store only a new object."),
    ] = None,
    parents: Annotated[bool, typer.Option("--parents", "-p", help="Create missing directories.")] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> None:
    """Store a file as an object, whole or not at all.

    The object is on the server's disk when this returns. The server must run with --writable. Over a Unix socket the
    server copies the file itself.
    """
    uri = uri_of(uri)
    if not file:
        raise CommandError('FILE: expected a file, or - for standard input (got "")', ExitCode.USAGE)
    if uri.endswith("/") and file != "-":
        uri += uri_of(Path(file).name)
    data = sys.stdin.buffer if file == "-" else file
    with (
        open_client(server, timeout, wait=wait) as client,
        exiting_on_signals(),
        Progress(uri, _size(file)) as progress,
    ):
        try:
            stored = client.put(
                uri,
                data,
                if_match=if_match,
                if_none_match=if_none_match,
                make_parents=parents,
                progress=progress.reached,
            )
        except ObjectNotFound as error:
            raise CommandError(
                f"{uri}: the server has no such directory; --parents creates it", ExitCode.NOT_FOUND
            ) from error
    if as_json:
        from objmapper_cli.formatting import print_stat

        print_stat(stored)


def _size(file: str) -> int | None:
    return None if file == "-" else Path(file).stat().st_size or None
