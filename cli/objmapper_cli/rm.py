"""``objmapper rm``: objects that are not wanted any more."""

from typing import Annotated

import typer

from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, client_of


def rm(
    uris: Annotated[list[str], typer.Argument(metavar="URI...", help="The objects.", show_default=False)],
    if_match: Annotated[
        str | None, typer.Option(metavar="ETAG", help="Only this version of it, as `objmapper stat` says it.")
    ] = None,
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """Delete objects. The server must have been started with --writable.

    With --json each object that was deleted is a line: {"uri": …}.
    """
    from objmapper_cli.names import uri_of
    from objmapper_cli.one_by_one import one_by_one

    with client_of(server, timeout, wait=wait) as client:

        def delete(uri: str) -> None:
            client.delete(uri, if_match=if_match)
            if as_json:
                from objmapper_cli.showing import print_json

                print_json({"uri": uri})

        return one_by_one(map(uri_of, uris), delete)
