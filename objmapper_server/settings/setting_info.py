"""The documentation of a setting in a field of `Config`; flags, tables and the reload are derived from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize, Field

YEAR: Final = 366 * 86400.0
UNITS: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """The documentation of one setting: ``Annotated[int, at_least(1), SettingInfo("Open connections.", "N")]``."""

    help: str  #: one line, for `objmapper serve --help` and the reference page
    metavar: str = ""  #: the placeholder for the value there; empty for a switch
    default: str | None = None  #: the shown default if it differs from the value; empty: none is shown
    repeatable: bool = False  #: the flag can be given several times
    values: Sequence[str] = ()  #: values for shell completion; those of a Literal are known
    reloadable: bool = False  #: a reload can change it, without a restart
    has_flag: bool = True  #: False for a secret: other users see the arguments of a process
    flag: str = ""  #: the name of the flag if it differs from the setting's


def setting_infos(config: type[BaseModel]) -> dict[str, SettingInfo]:
    """Return the documentation of every setting, by name; raises TypeError for a field without one."""
    found = {}
    for name, field in config.model_fields.items():
        infos = [each for each in field.metadata if isinstance(each, SettingInfo)]
        if len(infos) != 1:
            raise TypeError(f"{config.__name__}.{name} needs one SettingInfo in its annotation, has {len(infos)}")
        found[name] = infos[0]
    return found


def shown_default(config: type[BaseModel], name: str) -> str:
    """Return the default in the form of a settings file; empty if there is none to show."""
    info = setting_infos(config)[name]
    if info.default is not None:
        return info.default
    value = config.model_fields[name].get_default()
    if isinstance(value, bool):
        return "on" if value else ""
    if isinstance(value, ByteSize):
        return next((f"{value // unit}{name}" for unit, name in UNITS if value and value % unit == 0), str(int(value)))
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) else ""


def completions(config: type[BaseModel], name: str) -> Sequence[str]:
    """Return the values that a shell can offer."""
    annotation = config.model_fields[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else setting_infos(config)[name].values


def is_switch(config: type[BaseModel], name: str) -> bool:
    """Return whether the setting is on or off."""
    return config.model_fields[name].annotation is bool


def count(minimum: int, maximum: int = 1_000_000, also: str = "") -> Any:
    """Return the bounds of a whole number."""
    return Field(ge=minimum, le=maximum, description=f"a whole number from {minimum} to {maximum}{also}")


def size(
    minimum: int = 0, minimum_text: str = "", *, zero: str = "", unit: str = "bytes", example: str = "512MB or 1GiB"
) -> Any:
    """Return the bounds of a number of bytes."""
    description = f"{unit}, at least {minimum_text}" if minimum_text else unit
    description += f": a number, or with a unit as in {example}" + (f"; {zero}" if zero else "")
    return Field(ge=minimum, le=1 << 62, description=description)


Seconds = Annotated[float, Field(gt=0, le=YEAR, allow_inf_nan=False, description="seconds, more than 0")]
SecondsOrZero = Annotated[float, Field(ge=0, le=YEAR, allow_inf_nan=False, description="seconds, 0 or more")]
Prefixes = Mapping[str, tuple[str, ...]]
