"""The command and its subcommands. A subcommand's module is imported when it is called."""

import os
from collections import UserDict
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from objmapper_cli.errors import CommandError, ExitCode, with_exit_code

#: The exception of typer for wrong arguments: click's, or that of the copy of click in newer versions of typer.
USAGE_ERROR: Final[Any] = typer.BadParameter.__base__

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
    """Name → command. A command is imported when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.data:
            raise KeyError(name)
        function = getattr(import_module(f"objmapper_cli.commands.{name}"), name)
        if isinstance(function, typer.Typer):
            return typer.main.get_command(function)
        single = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(with_exit_code(function))
        return typer.main.get_command(single)


class Objmapper(TyperGroup):
    """The command with its subcommands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Subcommands(dict.fromkeys(COMMANDS))


def show_version(wanted: bool) -> None:
    """Print the version and exit, if requested."""
    if wanted:
        from importlib.metadata import version

        print(f"objmapper {version('objmapper')}")
        raise typer.Exit


def objmapper(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Objects by URI: an open file descriptor on a Unix socket, the bytes over TCP."""


def run() -> None:
    """Run the command that the arguments name, and exit with its exit code."""
    app = typer.Typer(
        cls=Objmapper,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        # `objmapper completion` replaces it.
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(objmapper)
    if "_OBJMAPPER_COMPLETE" in os.environ:
        with_exit_code(_answer_completion)(app)
    with_exit_code(_run_app)(app)


def _answer_completion(app: typer.Typer) -> int:
    """Answer the completion script of a shell. Raises CommandError if the shell's variables are missing or wrong."""
    from typer._completion_classes import completion_init

    completion_init()
    try:
        return _run_app(app)
    except (KeyError, ValueError) as error:
        raise CommandError(
            f"_OBJMAPPER_COMPLETE is set, but not by a completion script ({error}); unset it", ExitCode.USAGE
        ) from error


def _run_app(app: typer.Typer) -> int:
    try:
        code = app(prog_name="objmapper", standalone_mode=False)
    except SystemExit as exit_request:
        if isinstance(exit_request.code, int):
            return exit_request.code
        raise
    except typer.Abort as error:
        # typer's name for Ctrl-C while it reads the arguments.
        raise KeyboardInterrupt from error
    except USAGE_ERROR as error:
        return _raise_usage_error(error)
    return code if isinstance(code, int) else ExitCode.DONE


def _raise_usage_error(error: Any) -> int:
    """Show the help page if there are no arguments. Raises CommandError, with one line, for wrong ones."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return ExitCode.USAGE
    command = error.ctx.command_path if error.ctx is not None else "objmapper"
    text = error.format_message().removesuffix(".").replace("Value error, ", "")
    raise CommandError(f"{text}; `{command} -h` shows the usage", ExitCode.USAGE) from error
