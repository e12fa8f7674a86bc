"""``objmapper completion``: the script with which a shell completes this command, its options and their values."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from objmapper_cli.errors import CommandError, ExitCode
from objmapper_cli.options import JsonOption


class Shell(StrEnum):
    """The shells that typer knows and Linux has."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    context: typer.Context,
    shell: Annotated[Shell | None, typer.Argument(help="Shell. [default: the one in $SHELL]")] = None,
    as_json: JsonOption = False,
) -> int:
    """Print the completion script of a shell.

    bash: eval "$(objmapper completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, after compinit; fish: objmapper
    completion fish > ~/.config/fish/completions/objmapper.fish. With --json: one document with shell and script.
    """
    import io
    from contextlib import redirect_stdout

    from typer._completion_classes import completion_init
    from typer.completion import shell_complete

    completion_init()

    if shell is None:
        shell_name = Path(os.environ.get("SHELL", "")).name
        try:
            shell = Shell(shell_name)
        except ValueError:
            known = ", ".join(Shell)
            raise CommandError(
                f"$SHELL names {shell_name or 'no shell'}: say which of {known}", ExitCode.USAGE
            ) from None

    def print_script() -> int:
        # typer prints the script. On Tab the script calls the command with this variable.
        return shell_complete(context.find_root().command, {}, "objmapper", "_OBJMAPPER_COMPLETE", f"source_{shell}")

    if not as_json:
        return print_script()
    from objmapper_cli.formatting import print_json

    with redirect_stdout(io.StringIO()) as script:
        code = print_script()
    print_json({"shell": str(shell), "script": script.getvalue()})
    return code
