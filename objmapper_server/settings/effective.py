"""The effective settings as a document: each value, its origin, and whether a reload can change it."""

from typing import Any, Final

from pydantic import BaseModel

from objmapper_server.config import Config
from objmapper_server.errors import ConfigError
from objmapper_server.settings.origin import shown
from objmapper_server.settings.reload import RELOADABLE

MASK: Final = "********"


class Setting(BaseModel):
    """One setting."""

    value: Any
    origin: str  #: ``default``, ``the program``, a flag, a variable, a file, or the command that changed it
    changeable: bool  #: by a reload, without a restart


def settings_without_root(file: str | None, *, environment: bool = True, **flags: object) -> tuple[Config, bool]:
    """Return the settings as `Config.load` does, and whether they have a root, which a server needs."""
    try:
        return Config.load(file, environment=environment, **flags), True
    except ConfigError as error:
        # Without an origin no value was given.
        if error.field != "root" or error.origin:
            raise
    return Config.load(file, environment=environment, **(flags | {"root": "/"})), False


def effective_settings(config: Config, *, has_root: bool = True) -> dict[str, Setting]:
    """Return all settings by name; secret values are masked."""
    values = config.model_dump(mode="json")
    values["unix_mode"] = f"{config.unix_mode:04o}"
    values["origins"] = shown(config.origins)
    document = {
        name: Setting(
            # The configuration excludes secrets from its `repr`.
            value=values[name] if field.repr or values[name] is None else MASK,
            origin=config.sources[name],
            changeable=name in RELOADABLE,
        )
        for name, field in Config.model_fields.items()
    }
    if not has_root:
        document["root"] = Setting(value=None, origin="not given", changeable=False)
    return document
