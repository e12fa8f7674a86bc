"""Descriptors change owners inside one call of C: an exception out of a signal handler never comes in between.

Python runs the handlers of signals between two bytecodes. A number that a system call returned, and that no object
holds yet, would be lost then, and its descriptor stays open. So a call in C stores the number where it gets it, in a
list that has an owner, and takes it off a list where it closes it.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Numbers(Protocol):
    """A list, or a deque, of descriptors."""

    def pop(self) -> int:
        """Takes the last one off."""
        raise NotImplementedError


def take_in(results: list[Any], function: Callable[..., object], *arguments: object) -> None:
    """Calls a function of C and appends what it returns to `results`. Raises what the function raises."""
    results.extend(map(function, *((argument,) for argument in arguments)))


def close_all(numbers: Iterable[int]) -> None:
    """Closes these descriptors."""
    close_taken([*numbers])


def close_taken(numbers: Numbers) -> None:
    """Closes all descriptors of a list, and takes them off."""
    with contextlib.suppress(IndexError):
        deque(map(os.close, iter(numbers.pop, None)), maxlen=0)


_KEY = ("_descriptor",)


def give_last(numbers: Numbers, owner: object) -> None:
    """Moves the last of `numbers` to the attribute `_descriptor` of its next owner."""
    owner.__dict__.update(zip(_KEY, iter(numbers.pop, None), strict=False))


class _Closing(threading.local):
    """What the current thread is about to close: one number, unless a signal handler closes another meanwhile."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.close_last = map(os.close, iter(self.numbers.pop, None)).__next__


_closing = _Closing()


def close_descriptor(owner: Any) -> None:
    """Closes the descriptor in the attribute `_descriptor` and sets that to -1. Does nothing where it is negative."""
    number = owner._descriptor
    if number >= 0:
        closing = _closing
        numbers, close_last = closing.numbers, closing.close_last
        try:
            numbers.append(number)
            owner._descriptor = -1
            close_last()
        except BaseException:
            if number in numbers:
                # It is still open: either the owner keeps it, or it is closed now.
                if owner._descriptor >= 0:
                    numbers.remove(number)
                else:
                    close_last()
            raise
