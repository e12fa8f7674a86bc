"""The flags of ``objmapper serve``: one for each setting, made from the fields of its `Config`."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from objmapper_cli.options import complete_with
from objmapper_server.config import Config
from objmapper_server.settings.setting_info import completions, is_switch, setting_infos, shown_default


def with_flags(function: Callable[..., int], config: type[Config]) -> Callable[..., int]:
    """Return the function with an argument for each setting in place of its ``**flags``: the text of the flag, or None.

    `Config` validates the texts. The function's own arguments follow the settings, except ``no_admin``, which follows
    the settings of the admin endpoint.
    """
    settings = [_argument(config, name) for name, info in setting_infos(config).items() if info.has_flag]
    own_arguments = [
        each.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for each in inspect.signature(function).parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    admin_end = 1 + max(at for at, each in enumerate(settings) if each.name.startswith("admin"))
    (no_admin,) = (each for each in own_arguments if each.name == "no_admin")
    arguments = [
        *settings[:admin_end],
        no_admin,
        *settings[admin_end:],
        *(each for each in own_arguments if each != no_admin),
    ]

    @functools.wraps(function)
    def run_with_flags(**values: Any) -> int:
        return function(**values)

    run_with_flags.__signature__ = inspect.Signature(arguments, return_annotation=int)  # type: ignore[attr-defined]
    run_with_flags.__annotations__ = {each.name: each.annotation for each in arguments} | {"return": int}
    del run_with_flags.__wrapped__
    return run_with_flags


def _argument(config: type[Config], name: str) -> inspect.Parameter:
    info = setting_infos(config)[name]
    text = info.help.removesuffix(".") + (" (repeatable)" if info.repeatable else "") + "." * info.help.endswith(".")
    if default := shown_default(config, name):
        text += f" [default: {default}]"
    kind: Any = bool if is_switch(config, name) else list[str] if info.repeatable else str
    values = completions(config, name)
    flag = info.flag or name.replace("_", "-")
    if name == "root":
        option = typer.Argument(metavar=info.metavar, help=text)
    elif is_switch(config, name):
        option = typer.Option(f"--{flag}/--no-{flag}", help=text)
    else:
        complete = complete_with(*values) if values else None
        option = typer.Option(f"--{flag}", metavar=info.metavar, help=text, autocompletion=complete)
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
