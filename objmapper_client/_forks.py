"""How often this process has become another one: what a fork copies, connections and locks, is its parent's."""

import os

made = 0
_is_watching = False


def count() -> int:
    """The number of forks that led here, from the first call on."""
    global _is_watching
    if not _is_watching:
        _is_watching = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_note)
    return made


def _note() -> None:
    global made
    made += 1
