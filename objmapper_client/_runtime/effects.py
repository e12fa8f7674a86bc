"""The effects: what an operation may wait for. Operations are generators that yield one; a runtime performs it.

The runtime resumes the operation: after a `Wait` with whether it came in time (after a look-up with the host's
addresses), after `RunBlocking` and `NextChunk` with a result, after `ResetDeadline` at once, after `TIME_LEFT` with
seconds. Two more effects are a `pool.Waiter` and a `pending_request.PendingRequest`. `RunBlocking`, `NextChunk` and
`Notify` extend the deadline by the time that they take: the caller's own data and callbacks take that time, not the
server.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Wait:
    """What a step waits for: a descriptor to become readable or writable, a time to pass, or a host's address."""

    __slots__ = ("descriptor", "host", "most", "poll", "port", "seconds", "writable")

    def __init__(
        self,
        descriptor: int = -1,
        *,
        writable: bool = False,
        seconds: float | None = None,
        host: str | None = None,
        port: int = 0,
    ) -> None:
        self.descriptor = descriptor
        self.writable = writable
        self.seconds = seconds
        self.host = host
        self.port = port
        #: Seconds after which the time is up, whatever is left of the whole request's.
        self.most: float | None = None
        # Where a waiter keeps what it made for this descriptor.
        self.poll: Any = None


class RunBlocking:
    """A function that may wait for a disk: an event loop has it done by another thread."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function


Pieces = Iterator[bytes | memoryview] | AsyncIterator[bytes | memoryview]


class NextChunk:
    """The next piece of what a caller handed over, None at its end."""

    __slots__ = ("descriptor", "may_wait", "source")

    def __init__(self, source: Pieces, *, may_wait: bool = False, descriptor: int = -1) -> None:
        self.source = source
        #: Whether the next piece is read from a file, which may wait: an event loop has it done by another thread.
        self.may_wait = may_wait
        #: Readable once the next piece is there, which an event loop waits for; -1 where that is not known.
        self.descriptor = descriptor


class ResetDeadline:
    """So much of a content has moved that the time limit begins anew, with so many seconds more."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds


class Notify:
    """A callback of the caller's, called where the caller waits."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function


class TimeLeft:
    """How many seconds are left for the request."""


TIME_LEFT = TimeLeft()


#: Bytes of a content for which the time limit holds.
STRIDE = 1 << 20

# Resumed with what the wish came to; an error of the wish is thrown in.
Effects = Generator[object, Any, T]


def collect_result(steps: Effects[T], results: list[T]) -> Effects[T]:
    """The same steps; what they return goes into `results`, and a last None is yielded.

    A StopIteration that carries the result refers to its own frame: where an exception comes in between, only the
    garbage collector frees what it carries.
    """
    result = yield from steps
    results.append(result)
    del result
    yield None
    return results[0]
