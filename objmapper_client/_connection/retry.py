"""When a request is tried again, and after which pause."""

import errno
import time
from typing import TYPE_CHECKING

from objmapper_client.errors import ConnectionFailed, ServerBusy

if TYPE_CHECKING:
    from objmapper_client._connection.pool import Pool

_FIRST_PAUSE = 0.01
_MAX_PAUSE = 1.0
_SHARE = 0.1
#: Seconds between two looks for a server that is waited for.
_LOOK = 0.05
#: What a later start of the server does not change.
_FINAL = (errno.EACCES, errno.EPERM, errno.EINVAL)
_SAVED = 10.0


class RetryBudget:
    """At most 10 % of a client's requests are repetitions in the long run, with a burst of ten.

    Without it clients multiply the load of a server that fails under load: with three tries, by three (Beyer et al.,
    "Site Reliability Engineering", 2016, chapter 21: a budget of 10 % a client; kept as a token bucket as in gRPC's
    A6).
    """

    __slots__ = ("_requests", "_saved")

    def __init__(self) -> None:
        self._saved = _SAVED
        self._requests = 0

    def spend(self, requests: int) -> bool:
        """Whether there is enough for a repetition, after `requests` requests in all."""
        self._saved = min(_SAVED, self._saved + _SHARE * (requests - self._requests))
        self._requests = requests
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class RetryState:
    """The tries of one request."""

    __slots__ = ("_had_stale", "_made", "_pool", "_wait_until")

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._made = 0
        self._had_stale = False
        self._wait_until = time.monotonic() + pool.wait if pool.wait else 0.0

    def pause_after(self, error: ConnectionFailed | ServerBusy, *, may_repeat: bool, is_stale: bool = False) -> float:
        """The seconds until the next try. Raises the error where there is none.

        `is_stale`: the connection had been idle, and the server closed it, which is no failure. Pauses are drawn from
        the whole range up to a bound that doubles ("full jitter": Brooker, "Exponential Backoff And Jitter", 2015).
        """
        if may_repeat and is_stale and not self._had_stale:
            self._had_stale = True
            return 0.0
        if may_repeat and self._wait_until and may_start(error) and time.monotonic() < self._wait_until:
            return _LOOK
        self._made += 1
        pool = self._pool
        if not may_repeat or self._made >= pool.attempts or not pool.budget.spend(pool.requests):
            raise error
        # Imported here: it takes two milliseconds, and few programs ever get here.
        import random

        return random.uniform(0, min(_MAX_PAUSE, _FIRST_PAUSE * 2**self._made))  # noqa: S311 - jitter


def may_start(error: ConnectionFailed | ServerBusy) -> bool:
    """Whether the error is that of a server that is not reached, and may be once it has started."""
    cause = error.__cause__
    return isinstance(error, ConnectionFailed) and isinstance(cause, OSError) and cause.errno not in _FINAL
