"""The settings in force as a document: each value, where it came from, and whether a reload can change it."""

from typing import Any, Final

from pydantic import BaseModel

from .config import Config
from .reload import CHANGEABLE

MASK: Final = "********"


class Setting(BaseModel):
    """One setting."""

    value: Any
    origin: str  #: ``default``, ``the program``, a flag, a variable, a file, or what changed it since
    changeable: bool  #: by a reload, without a restart


def settings_in_force(config: Config) -> dict[str, Setting]:
    """Return every setting by its name; what is secret is masked."""
    values = config.model_dump(mode="json")
    values["unix_mode"] = f"{config.unix_mode:04o}"
    return {
        name: Setting(
            # A secret is what the configuration itself does not show.
            value=values[name] if field.repr or values[name] is None else MASK,
            origin=config.origins[name],
            changeable=name in CHANGEABLE,
        )
        for name, field in Config.model_fields.items()
    }
