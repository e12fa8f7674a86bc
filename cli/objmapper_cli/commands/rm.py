"""``objmapper rm``: deletes objects."""

from typing import Annotated

import typer

from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, open_client


def rm(
    uris: Annotated[list[str], typer.Argument(metavar="URI...", help="URIs of the objects.", show_default=False)],
    if_match: Annotated[
        str | None, typer.Option(metavar="ETAG", help="Delete only this version, an etag of `objmapper stat`.")
    ] = None,
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """Delete objects. The server must run with --writable.

    With --json each deleted object is a line: {"uri": …}.
    """
    from objmapper_cli.batch import run_each
    from objmapper_cli.name_encoding import uri_of

    with open_client(server, timeout, wait=wait) as client:

        def delete(uri: str) -> None:
            client.delete(uri, if_match=if_match)
            if as_json:
                from objmapper_cli.formatting import print_json

                print_json({"uri": uri})

        return run_each(map(uri_of, uris), delete)
