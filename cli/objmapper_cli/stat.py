"""``objmapper stat``: what the server says of objects."""

from typing import Annotated

import typer

from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, client_of


def stat(
    uris: Annotated[list[str], typer.Argument(metavar="URI...", help="The objects.", show_default=False)],
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """Show size, modification time and etag of objects."""
    from objmapper_cli.names import uri_of
    from objmapper_cli.one_by_one import one_by_one
    from objmapper_cli.showing import print_line, print_stat, shown, when
    from objmapper_client.address import UdpAddress

    with client_of(server, timeout, wait=wait) as client:
        tells_mtime = not isinstance(client.address, UdpAddress)

        def show(uri: str) -> None:
            found = client.stat(uri)
            if as_json:
                print_stat(found, has_mtime=tells_mtime)
            else:
                mtime = when(found.mtime, found.mtime_ns) if tells_mtime else "not told over UDP"
                print_line(f"{shown(uri)}\n  size   {found.size}\n  mtime  {mtime}\n  etag   {found.etag}")

        return one_by_one(map(uri_of, uris), show)
