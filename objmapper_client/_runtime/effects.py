"""The effects that an operation yields. An operation is a generator; a runtime (threads or asyncio) performs effects.

The runtime resumes the operation with the effect's result: `Wait` gives whether the event came before the deadline (a
look-up gives the host's addresses), `RunBlocking` and `NextChunk` give their result, `TIME_LEFT` gives seconds. Two
more effects are `pool.Waiter` and `pending_request.PendingRequest`. `RunBlocking`, `NextChunk` and `Notify` extend the
deadline by the time that they take, because the caller's data and callbacks take that time, not the server.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Wait:
    """Waits until a descriptor is readable or writable, until a time has passed, or for a host's address."""

    __slots__ = ("descriptor", "host", "poll", "port", "seconds", "timeout", "writable")

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
        #: Seconds until this wait fails; None applies the deadline of the request only.
        self.timeout: float | None = None
        # The `select.poll` object of this descriptor; the thread runtime creates it once.
        self.poll: Any = None


class RunBlocking:
    """Calls a function that may block on a disk. The asyncio runtime calls it in another thread."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function


Pieces = Iterator[bytes | memoryview] | AsyncIterator[bytes | memoryview]


class NextChunk:
    """Takes the next chunk of the caller's iterator; None at its end."""

    __slots__ = ("descriptor", "may_wait", "source")

    def __init__(self, source: Pieces, *, may_wait: bool = False, descriptor: int = -1) -> None:
        self.source = source
        #: Whether the iterator reads from a file that may block. The asyncio runtime then reads in another thread.
        self.may_wait = may_wait
        #: A descriptor that is readable when the next chunk is available; -1 if there is none.
        self.descriptor = descriptor


class ResetDeadline:
    """Restarts the request's time limit and adds `seconds` to it."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds


class Notify:
    """Calls the caller's callback in the caller's thread or event loop."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function


class TimeLeft:
    """Gives the seconds that are left until the request's deadline."""


TIME_LEFT = TimeLeft()


#: Bytes of content after which the time limit restarts.
PROGRESS_STRIDE = 1 << 20

# The runtime sends the effect's result into the generator, or throws the effect's error into it.
Effects = Generator[object, Any, T]


def collect_result(effects: Effects[T], results: list[T]) -> Effects[T]:
    """Runs `effects`, appends their result to `results`, and yields a last None.

    A StopIteration that carries the result refers to its own frame. If a signal handler raises at that moment, only the
    garbage collector would free the result.
    """
    result = yield from effects
    results.append(result)
    del result
    yield None
    return results[0]
