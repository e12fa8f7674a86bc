"""What reading the settings again comes to: which change at once, and which need a restart."""

from dataclasses import dataclass
from typing import Final, Self

from objmapper_server.config import Config

#: Whatever else is in a file that was changed has to wait for a restart.
CHANGEABLE: Final = frozenset(
    {
        "admin_host",
        "admin_token",
        "allow_gid",
        "allow_prefix",
        "allow_uid",
        "cache_max_age",
        "concurrency_model",
        "header_timeout",
        "idle_timeout",
        "max_connections",
        "max_connections_per_uid",
        "max_descriptors_per_uid",
        "request_timeout",
        "shutdown_grace",
    }
)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The names of the settings that differ from those before, in their usual order."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]

    @classmethod
    def compare(cls, before: Config, now: Config) -> Self:
        """Return what has changed between the two."""
        differ = [name for name in Config.model_fields if getattr(before, name) != getattr(now, name)]
        return cls(
            tuple(name for name in differ if name in CHANGEABLE),
            tuple(name for name in differ if name not in CHANGEABLE),
        )

    def __str__(self) -> str:
        changed = f"changed: {', '.join(self.changed)}" if self.changed else "nothing changed"
        return f"{changed}; needs a restart: {', '.join(self.needs_restart)}" if self.needs_restart else changed
