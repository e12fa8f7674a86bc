"""Moves and closes descriptors inside one C call, so that an exception from a signal handler leaks none.

Python runs signal handlers between two bytecodes. If a handler raises after a system call has returned a descriptor and
before an object holds it, the descriptor stays open. Therefore one C call both gets a descriptor and appends it to a
list that has an owner, and one C call both removes it from the list and closes it.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Descriptors(Protocol):
    """A list or a deque of descriptors."""

    def pop(self) -> int:
        """Removes and returns the last one."""
        raise NotImplementedError


def call_into(results: list[Any], function: Callable[..., object], *arguments: object) -> None:
    """Calls a C function and appends its result to `results`. Raises what the function raises."""
    results.extend(map(function, *((argument,) for argument in arguments)))


def close_all(descriptors: Iterable[int]) -> None:
    """Closes these descriptors."""
    close_and_clear([*descriptors])


def close_and_clear(descriptors: Descriptors) -> None:
    """Closes all descriptors of a list and removes them from it."""
    with contextlib.suppress(IndexError):
        deque(map(os.close, iter(descriptors.pop, None)), maxlen=0)


_KEY = ("_descriptor",)


def move_last(descriptors: Descriptors, owner: object) -> None:
    """Moves the last of `descriptors` to the attribute `_descriptor` of `owner`."""
    owner.__dict__.update(zip(_KEY, iter(descriptors.pop, None), strict=False))


class _Closing(threading.local):
    """The descriptors that this thread is closing: one, or more if a signal handler closes another meanwhile."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.close_last = map(os.close, iter(self.descriptors.pop, None)).__next__


_closing = _Closing()


def close_descriptor(owner: Any) -> None:
    """Closes the descriptor in the attribute `_descriptor` and sets that to -1. Does nothing if it is negative."""
    descriptor = owner._descriptor
    if descriptor >= 0:
        closing = _closing
        descriptors, close_last = closing.descriptors, closing.close_last
        try:
            descriptors.append(descriptor)
            owner._descriptor = -1
            close_last()
        except BaseException:
            if descriptor in descriptors:
                # Still open: the owner keeps it, or this call closes it now.
                if owner._descriptor >= 0:
                    descriptors.remove(descriptor)
                else:
                    close_last()
            raise
