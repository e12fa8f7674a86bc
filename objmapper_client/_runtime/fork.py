"""How often this process has become another one: what a fork copies, connections and locks, is its parent's."""

import os

from objmapper_client.errors import LocalProtocolError


class _Generation:
    """Of the forks that led here, since the first call."""

    made = 0
    is_kept = False


def install_hook() -> None:
    """Counts from now on."""
    if not _Generation.is_kept and hasattr(os, "register_at_fork"):
        _Generation.is_kept = True
        os.register_at_fork(after_in_child=_note)


def _note() -> None:
    _Generation.made += 1


forks = _Generation


def forked(uri: str) -> LocalProtocolError:
    """The error for a stream whose connection is the parent's: each would get parts of the other's bytes."""
    return LocalProtocolError(f"{uri}: the stream was begun before a fork; begin another one in this process")
