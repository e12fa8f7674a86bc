"""Decides whether a request is retried, and after which pause."""

import errno
import time
from typing import TYPE_CHECKING

from objmapper_client.errors import ConnectionFailed, ServerBusy

if TYPE_CHECKING:
    from objmapper_client._connection.pool import Pool

_BASE_DELAY = 0.01
_MAX_DELAY = 1.0
_TOKENS_PER_REQUEST = 0.1
#: Seconds between two connection attempts while a client waits for a server to start (`wait=`).
_WAIT_POLL_INTERVAL = 0.05
#: Errors that a later start of the server does not change.
_PERMANENT_ERRNOS = (errno.EACCES, errno.EPERM, errno.EINVAL)
_MAX_TOKENS = 10.0


class RetryBudget:
    """A token bucket: retries are at most 10 % of a client's requests, with a burst of 10.

    Without a budget, clients multiply the load of an overloaded server: by three with three attempts (Beyer et al.,
    "Site Reliability Engineering", 2016, chapter 21: a budget of 10 % a client; a token bucket as in gRPC's A6).
    """

    __slots__ = ("_requests", "_tokens")

    def __init__(self) -> None:
        self._tokens = _MAX_TOKENS
        self._requests = 0

    def spend(self, requests: int) -> bool:
        """Takes a token for a retry. Returns False if there is none. `requests`: requests of the client so far."""
        self._tokens = min(_MAX_TOKENS, self._tokens + _TOKENS_PER_REQUEST * (requests - self._requests))
        self._requests = requests
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RetryState:
    """The attempts of one request."""

    __slots__ = ("_attempts", "_has_retried_stale", "_pool", "_wait_until")

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._attempts = 0
        self._has_retried_stale = False
        self._wait_until = time.monotonic() + pool.wait if pool.wait else 0.0

    def retry_delay(self, error: ConnectionFailed | ServerBusy, *, may_repeat: bool, is_stale: bool = False) -> float:
        """Returns the seconds until the next attempt. Raises the error if there is none.

        `is_stale`: the connection was idle and the server closed it, which is not a failure. The pause is random, from
        0 to a bound that doubles ("full jitter": Brooker, "Exponential Backoff And Jitter", 2015).
        """
        if may_repeat and is_stale and not self._has_retried_stale:
            self._has_retried_stale = True
            return 0.0
        if may_repeat and self._wait_until and may_become_reachable(error) and time.monotonic() < self._wait_until:
            return _WAIT_POLL_INTERVAL
        self._attempts += 1
        pool = self._pool
        if not may_repeat or self._attempts >= pool.attempts or not pool.budget.spend(pool.requests):
            raise error
        # Imported here: the import takes 2 ms, and few programs retry.
        import random

        return random.uniform(0, min(_MAX_DELAY, _BASE_DELAY * 2**self._attempts))  # noqa: S311 - jitter


def may_become_reachable(error: ConnectionFailed | ServerBusy) -> bool:
    """Whether the server was unreachable in a way that ends when it starts."""
    cause = error.__cause__
    return isinstance(error, ConnectionFailed) and isinstance(cause, OSError) and cause.errno not in _PERMANENT_ERRNOS
