"""Names of objects and of local files: URIs are UTF-8, file names are bytes, arguments are text of the locale."""

import os

from objmapper_cli.errors import CommandError, ExitCode


def uri_of(argument: str) -> str:
    """The URI that an argument names: in a locale without UTF-8 it may have surrogate escapes. Raises CommandError."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode()
        except UnicodeError:
            from objmapper_client.errors import printable

            raise CommandError(f"{printable(argument)}: invalid URI: not UTF-8", ExitCode.USAGE) from None
    return argument


def local_name(name: str) -> str:
    """The name of a local file for a part of a URI: as the locale writes it, else its UTF-8 as it is."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return os.fsdecode(name.encode())
    return name
