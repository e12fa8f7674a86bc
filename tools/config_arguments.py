"""Writes objmapper_server/settings/config_arguments.py from the fields of `Config`; --check compares it with them."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from objmapper_server import Concurrency, Config
from objmapper_server.settings.origin import Origins
from objmapper_server.settings.setting_info import Prefixes, setting_infos

MODULE = Path(__file__).parent.parent / "objmapper_server" / "settings" / "config_arguments.py"
HEAD = '''\
"""The arguments of `Config`, which also parses text. `make reference` writes this from its fields."""

import os
from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from objmapper_server.concurrency import Concurrency

StrPath = str | os.PathLike[str]
IDs = int | str | Iterable[int | str]
Models = Concurrency | str | Iterable[str] | Mapping[str, Concurrency | str]
Prefixes = str | Iterable[str] | Mapping[str, IDs]
Origins = str | Iterable[str] | Mapping[str, str | Mapping[str, object]]


class ConfigArguments(TypedDict, total=False):
    """The arguments of `Config`."""

'''
#: The type of a field, and the wider type of its argument.
TAKES: Mapping[Any, str] = {
    Path: "StrPath",
    Path | None: "StrPath | None",
    str | None: "str | None",
    ByteSize: "int | str",
    tuple[int, ...]: "IDs",
    tuple[str, ...]: "str | Iterable[str]",
    Prefixes: "Prefixes",
    Origins: "Origins",
}


def module() -> str:
    """The whole module."""
    infos = setting_infos(Config)
    lines = [f"    {name}: {taken(field, infos[name].metavar)}\n" for name, field in Config.model_fields.items()]
    return HEAD + "".join(lines)


def taken(field: FieldInfo, metavar: str) -> str:
    """The type of a field's argument, as source."""
    kind = field.annotation
    if metavar == "OCTAL":
        return "int | str"
    if Concurrency in get_args(kind):
        return "Models"
    if get_origin(kind) is Literal:
        values = ", ".join(f'"{value}"' for value in get_args(kind))
        return f"Literal[{values}]"
    if kind in TAKES:
        return TAKES[kind]
    if kind in {int, float, bool}:
        return kind.__name__
    sys.exit(f"tools/config_arguments.py does not know what a field of the type {kind} takes: add it to TAKES")


def main() -> None:
    """Writes the module, or compares it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="say whether the module is up to date, write nothing")
    text = module()
    if not arguments.parse_args().check:
        MODULE.write_text(text, encoding="utf-8")
    elif MODULE.read_text(encoding="utf-8") != text:
        sys.exit(f"{MODULE.name} does not have the fields of Config: make reference")


if __name__ == "__main__":
    main()
