"""The runtime for threads: performs effects with blocking calls, poll(2) and locks."""

import select
import time
from collections.abc import Callable, Iterator
from typing import Any

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.multiplexer import PipelineFull
from objmapper_client._connection.pending_request import PendingRequest, Runnable, SimpleRequest
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.request_runner import send_request, to_outcome_error
from objmapper_client._connection.resolver import look_up
from objmapper_client._runtime.effects import (
    Effects,
    NextChunk,
    Notify,
    ResetDeadline,
    RunBlocking,
    T,
    TimeLeft,
    Wait,
    collect_result,
)
from objmapper_client._runtime.thread_multiplexer import ThreadMultiplexer, ThreadWaiter
from objmapper_client.errors import ConnectionFailed, ObjmapperError, RequestTimeout

_now = time.monotonic


def run(pool: Pool, operation: Runnable[T], deadline: float = 0) -> T:
    """Runs an operation in this thread. Raises RequestTimeout after the pool's timeout."""
    is_fresh = not deadline
    deadline = deadline or _now() + pool.timeout
    try:
        if not isinstance(operation, SimpleRequest):
            return _run(pool, operation, deadline)
        # A server of version 1 has no shared connection.
        if pool.version != 1 and _await_response(pool, operation, deadline, is_fresh=is_fresh):
            return operation.result()
        return _run(pool, operation.fallback_v1(pool), deadline)
    except BaseException:
        # A signal handler may have raised at any point.
        pool.recover()
        if isinstance(operation, SimpleRequest):
            operation.discard()
        raise


def _run(pool: Pool, effects: Effects[T], deadline: float) -> T:
    results: list[T] = []
    effects = collect_result(effects, results)
    try:
        effect = next(effects)
        while effect is not None:
            try:
                if isinstance(effect, PendingRequest):
                    result: Any = _await_response(pool, effect, deadline)
                elif isinstance(effect, ResetDeadline):
                    deadline = _now() + pool.timeout + effect.seconds
                    result = True
                elif isinstance(effect, TimeLeft):
                    result = deadline - _now()
                elif isinstance(effect, NextChunk | RunBlocking | Notify):
                    started = _now()
                    result = _perform(effect, deadline)
                    deadline += _now() - started
                else:
                    result = _perform(effect, deadline)
            except BaseException as error:
                if isinstance(effect, PendingRequest):
                    effect.discard()
                effect = effects.throw(error)
            else:
                effect = effects.send(result)
        return results[0]
    finally:
        effects.close()


def _await_response(pool: Pool, pending: PendingRequest, deadline: float, *, is_fresh: bool = False) -> bool:
    """Sends a request and waits for its response; without the retry machinery if the shared connection takes it.

    `is_fresh`: the whole time limit is left.
    """
    first_error: Exception | None = None
    if not pool.has_waiters and isinstance(shared := pool.shared, ThreadMultiplexer):
        try:
            shared.exchange(pending, deadline, is_fresh)
            if pending.status == 0:
                pool.requests += 1
                return True
        except (PipelineFull, ConnectionFailed) as error:
            first_error = error
        except RequestTimeout as error:
            raise to_outcome_error(pending, error) from error
        finally:
            if pool.has_waiters:
                pool.on_request_done()
    return _run(pool, send_request(pool, pending, first_error), deadline)


def _perform(effect: object, deadline: float) -> Any:
    match effect:
        case Wait():
            return _wait(effect, deadline)
        case ThreadWaiter():
            return effect.wait(deadline - _now())
        case list():
            return _exchange_all(effect, deadline)
        case RunBlocking() | Notify():
            return effect.function()
        case NextChunk(source=Iterator() as pieces):
            return next(pieces, None)
    raise TypeError(f"Client cannot wait for {effect!r}; pass an async iterator to AsyncClient")


def _exchange_all(pendings: list[PendingRequest], deadline: float) -> None:
    """Pipelines requests on one connection and waits for all. Stores each error in its request's `failure`."""
    multiplexer: ThreadMultiplexer = pendings[0].multiplexer
    multiplexer.start(pendings, deadline)
    for pending in pendings:
        try:
            multiplexer.wait(pending, deadline)
        except (ObjmapperError, PipelineFull) as error:
            pending.failure = error


def _wait(wait: Wait, deadline: float) -> Any:
    left = deadline - _now()
    if wait.timeout is not None:
        left = min(left, wait.timeout)
    if left <= 0:
        return False
    if wait.host is not None:
        return look_up(wait.host, wait.port).result(left)
    if wait.seconds is not None:
        time.sleep(min(left, wait.seconds))
        return True
    # Rounded up: a thread that wakes too early has to poll again.
    return bool(_poll(wait).poll(left * 1000 + 1))


def _poll(wait: Wait) -> Any:
    if wait.poll is None:
        wait.poll = select.poll()
        wait.poll.register(wait.descriptor, select.POLLOUT if wait.writable else select.POLLIN)
    return wait.poll


class ThreadRuntime:
    """Implements `pool.Runtime` for threads."""

    loop = None

    def new_waiter(self) -> ThreadWaiter:
        """Returns a waiter for the calling thread."""
        return ThreadWaiter()

    def share(self, connection: Connection, timeout: float, _: Callable[[], None], lock: Any) -> "ThreadMultiplexer":
        """Returns a multiplexer for the connection. Its reader calls the pool directly."""
        return ThreadMultiplexer(connection, timeout, lock)

    def is_readable(self, connection: Connection) -> bool:
        """Whether the socket has bytes to read now."""
        return bool(_poll(connection.readable).poll(0))
