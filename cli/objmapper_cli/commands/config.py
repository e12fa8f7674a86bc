"""``objmapper config``: the effective settings and their origins; or a check of a file."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from objmapper_cli.admin_client import AdminClient
from objmapper_cli.errors import CommandError, ExitCode, print_error
from objmapper_cli.options import WaitOption, parse_seconds

Document = Mapping[str, Mapping[str, Any]]


def config(
    admin: Annotated[
        str | None,
        typer.Option(
            metavar="http://HOST:PORT|unix:/PATH",
            help="Admin endpoint. [default: $OBJMAPPER_ADMIN or http://127.0.0.1:9997]",
        ),
    ] = None,
    check: Annotated[str | None, typer.Option(metavar="FILE", help="Only check this settings file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document: name → value, origin, changeable.")
    ] = False,
    wait: WaitOption = "0",
) -> None:
    """Show the settings of a server and where they came from.

    Secrets are masked. If no server is named, and none runs, it shows the settings of a server that would start here
    now.
    """
    document = (
        _running_server_settings(admin, parse_seconds("--wait", wait))
        if check is None
        else _load(check, environment=False)
    )
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        _print_table(document)
    if check is not None:
        # If standard output fails, print only that error.
        sys.stdout.flush()
        print_error(f"{check}: valid")


def _load(file: str | None, *, environment: bool) -> Document:
    """Return the effective settings. With `environment` False, variables cannot hide an error in the file."""
    from objmapper_server.settings.effective import effective_settings, settings_without_root

    loaded, has_root = settings_without_root(file, environment=environment)
    return {name: setting.model_dump() for name, setting in effective_settings(loaded, has_root=has_root).items()}


def _running_server_settings(admin: str | None, wait: float) -> Document:
    client = AdminClient(admin, wait)
    try:
        document = client.read("/config", "root")
    except CommandError as failure:
        is_server_named = admin is not None or bool(os.environ.get("OBJMAPPER_ADMIN")) or wait > 0
        if failure.code != ExitCode.NOT_REACHED or is_server_named:
            raise
        print_error(f"{client.address}: no server answers; showing the settings of one that would start here now")
        return _load(None, environment=True)
    with client.checking_documents():
        # The fields that the table shows.
        return {name: {**each, "value": each["value"], "origin": each["origin"]} for name, each in document.items()}


def _print_table(document: Document) -> None:
    rows = [(name, _as_text(setting["value"]), str(setting["origin"])) for name, setting in document.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")


def _as_text(value: object) -> str:
    if isinstance(value, Mapping):
        separator = ";" if any(isinstance(each, list) for each in value.values()) else ","
        return separator.join(f"{name}={_as_text(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
