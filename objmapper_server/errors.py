"""The errors of the control plane: an invalid setting, and a server that is not running."""

import difflib
import warnings
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting is invalid. Attributes: its name (`field`), the `problem`, and the `origin` of its value."""

    def __init__(self, field: str, problem: str, origin: str = "") -> None:
        super().__init__(field, problem, origin)
        self.field = field
        self.problem = problem
        self.origin = origin

    def __str__(self) -> str:
        origin_text = f" (from {self.origin})" if self.origin else ""
        return f"{self.field}{origin_text}: {self.problem}"


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return ``"; did you mean 'x'?"`` if `word` resembles a known word, else an empty text."""
    alike = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f"; did you mean {alike[0]!r}?" if alike else ""


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller that a method has a new name."""
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=3)


class NotRunning(RuntimeError):
    """The server was not started, or was stopped."""

    def __init__(self) -> None:
        super().__init__("this server is not running")
