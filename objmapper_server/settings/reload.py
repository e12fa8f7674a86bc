"""The result of a reload: settings that change at once, and settings that need a restart."""

from dataclasses import dataclass
from typing import Final, Self

from objmapper_server.config import Config
from objmapper_server.settings.setting_info import setting_infos

#: The settings that a reload applies. All others need a restart.
RELOADABLE: Final = frozenset(name for name, info in setting_infos(Config).items() if info.reloadable)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The names of the settings that differ from the previous ones, in the order of `Config`."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]

    @classmethod
    def compare(cls, before: Config, now: Config) -> Self:
        """Return the differences between two configurations."""
        differ = [name for name in Config.model_fields if getattr(before, name) != getattr(now, name)]
        return cls(
            tuple(name for name in differ if name in RELOADABLE),
            tuple(name for name in differ if name not in RELOADABLE),
        )

    def __str__(self) -> str:
        changed = f"changed: {', '.join(self.changed)}" if self.changed else "nothing changed"
        return f"{changed}; needs a restart: {', '.join(self.needs_restart)}" if self.needs_restart else changed
