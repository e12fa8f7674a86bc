"""``objmapper ls``: the objects below a prefix, printed as they come."""

from typing import Annotated

import typer

from objmapper_cli.options import JsonOption, ServerOption, TimeoutOption, client_of


def ls(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="What their URIs begin with.")] = "/",
    long: Annotated[bool, typer.Option("--long", "-l", help="Size in bytes and modification time, too.")] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
) -> None:
    """List the objects whose URIs begin with PREFIX, in the order of their URIs.

    A prefix is text: /a stands for /a, /ab and /a/b; end it in a slash to mean a directory. To find nothing is no
    failure.
    """
    from objmapper_cli.showing import print_json, print_line, shown, when

    with client_of(server, timeout) as client:
        for uri, size, mtime in client.list(prefix):
            if as_json:
                print_json({"uri": uri, "size": size, "mtime": mtime})
            elif long:
                print_line(f"{size:>14} {when(mtime)} {shown(uri)}")
            else:
                print_line(shown(uri))
