"""``objmapper ls``: the objects below a prefix, printed as they arrive."""

from typing import Annotated

import typer

from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, WaitOption, open_client


def ls(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Beginning of the URIs.")] = "/",
    long: Annotated[bool, typer.Option("--long", "-l", help="Show size in bytes and modification time, too.")] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = "0",
) -> int:
    """List the objects whose URIs begin with PREFIX.

    The objects are sorted by URI. A prefix is text: /a matches /a, /ab and /a/b; end it in a slash for a directory. An
    empty list is not an error. Files that the server cannot list, because a name is not UTF-8 or it may not read a
    directory, are named on standard error, and the exit code is 1.
    """
    import json

    from objmapper_cli.formatting import for_terminal, format_seconds, format_time, print_line
    from objmapper_cli.name_encoding import uri_of
    from objmapper_cli.skipped_files import SkippedFiles

    with open_client(server, timeout, wait=wait) as client:
        left_out = SkippedFiles()
        for entry in client.list(uri_of(prefix), left_out=left_out):
            uri, size, mtime = entry
            if as_json:
                at = format_seconds(mtime, entry.mtime_ns)
                print_line(f'{{"uri": {json.dumps(uri)}, "size": {size}, "mtime": {at}}}')
            elif long:
                print_line(f"{size:>14} {format_time(mtime, entry.mtime_ns)} {for_terminal(uri)}")
            else:
                print_line(for_terminal(uri))
    return left_out.code
