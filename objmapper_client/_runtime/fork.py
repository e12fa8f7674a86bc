"""Counts forks: a child process must not use the connections and locks that it copied from its parent."""

import os

from objmapper_client.errors import LocalProtocolError


class _Generation:
    """The number of forks since `install_hook`, in this process and its ancestors."""

    generation = 0
    is_installed = False


def install_hook() -> None:
    """Counts forks from now on. Does nothing on the second call."""
    if not _Generation.is_installed and hasattr(os, "register_at_fork"):
        _Generation.is_installed = True
        os.register_at_fork(after_in_child=_increment)


def _increment() -> None:
    _Generation.generation += 1


forks = _Generation


def forked_error(uri: str) -> LocalProtocolError:
    """The error for a stream of the parent process: both processes would read from one connection."""
    return LocalProtocolError(f"{uri}: the stream started before a fork; start another one in this process")
