"""The command as a whole: which subcommands there are. A subcommand's module is imported when it is called for."""

import os
from collections import UserDict
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from objmapper_cli.errors import ExitCode, guarded

#: In the order of the help page; each is the name of a module here and of a function in it,
#: or of a group of commands.
COMMANDS: Final = (
    "serve",
    "get",
    "open",
    "put",
    "rm",
    "ls",
    "stat",
    "stats",
    "trace",
    "bench",
    "config",
    "doctor",
    "completion",
)


class Subcommands(UserDict[str, Any]):
    """Name → command. The names are there at once, a command only when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.data:
            raise KeyError(name)
        function = getattr(import_module(f"objmapper_cli.{name}"), name)
        if isinstance(function, typer.Typer):
            return typer.main.get_command(function)
        alone = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
        alone.command(name)(guarded(function))
        return typer.main.get_command(alone)


class Objmapper(TyperGroup):
    """The command with its subcommands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Subcommands(dict.fromkeys(COMMANDS))


def show_version(wanted: bool) -> None:
    """Print the version and leave, where it was asked for."""
    if wanted:
        from importlib.metadata import version

        print(f"objmapper {version('objmapper')}")
        raise typer.Exit


def objmapper(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and leave.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Objects by URI: an open file descriptor on a Unix socket, the bytes over TCP."""


def run() -> None:
    """Run the command that the arguments name, and leave with its exit code."""
    app = typer.Typer(
        cls=Objmapper,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        # `objmapper completion` is the one way.
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(objmapper)
    if "_OBJMAPPER_COMPLETE" in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
    guarded(_ended)(app)


def _ended(app: typer.Typer) -> int:
    try:
        app(prog_name="objmapper")
    except SystemExit as leaving:
        if isinstance(leaving.code, int):
            return leaving.code
        raise
    return ExitCode.DONE
