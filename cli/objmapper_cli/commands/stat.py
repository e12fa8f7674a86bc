"""``objmapper stat``: size, modification time and etag of objects."""

from typing import Annotated

import typer

from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, open_client


def stat(
    uris: Annotated[list[str], typer.Argument(metavar="URI...", help="URIs of the objects.", show_default=False)],
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """Show size, modification time and etag of objects."""
    from objmapper_cli.batch import run_each
    from objmapper_cli.formatting import for_terminal, format_time, print_line, print_stat
    from objmapper_cli.name_encoding import uri_of
    from objmapper_client.address import UdpAddress

    with open_client(server, timeout, wait=wait) as client:
        has_mtime = not isinstance(client.address, UdpAddress)

        def show(uri: str) -> None:
            found = client.stat(uri)
            if as_json:
                print_stat(found, has_mtime=has_mtime)
            else:
                mtime = format_time(found.mtime, found.mtime_ns) if has_mtime else "not sent over UDP"
                print_line(f"{for_terminal(uri)}\n  size   {found.size}\n  mtime  {mtime}\n  etag   {found.etag}")

        return run_each(map(uri_of, uris), show)
