"""How a request gets its connection and, if need be, another try: on the shared connection, or on one of its own."""

import time
from collections.abc import Callable

from objmapper_client._connection.connection import Connection
from objmapper_client._connection.handshake import ClosedInHandshake, connect, negotiate
from objmapper_client._connection.multiplexer import Multiplexer, PipelineFull
from objmapper_client._connection.pending_request import PendingRequest
from objmapper_client._connection.pool import Claim, Pool, Waiter
from objmapper_client._connection.retry import RetryState
from objmapper_client._runtime.effects import Effects, ResetDeadline, T, Wait, collect_result
from objmapper_client.errors import (
    ConnectionFailed,
    LocalProtocolError,
    ObjmapperError,
    OutcomeUnknown,
    RequestTimeout,
    ServerBusy,
    ServerReply,
    UnsupportedOperation,
    error_for,
    unanswered,
)
from objmapper_client.protocol.v1 import Status
from objmapper_client.protocol.v2_requests import Operation

_IN_VERSION_1 = (Operation.FDPASS, Operation.COPY, Operation.SPLICE)
_NO_PLACE = "all of the client's connections are in use: wait longer, or allow more (max_connections)"


def send_request(pool: Pool, pending: PendingRequest, first_error: Exception | None = None) -> Effects[bool]:
    """Has a request answered on the shared connection; the answer is in `ask` then. `trouble` is what a first try met.

    False where the server speaks version 1 only, or perhaps: then nothing was sent. Raises what the server answered,
    and the errors of connections; a further try is made only before the first byte of an answer.
    """
    pool.requests += 1
    tries = RetryState(pool)
    has_waited = False
    try:
        while True:
            pause = 0.0
            try:
                if first_error is not None:
                    raise first_error
                if pending.is_done:
                    if pending.status == 0:
                        return True
                    raise refusal(pending)
                shared = yield from shared_connection(pool, has_waited=has_waited)
                if shared is None:
                    return False
                pending.multiplexer = shared
                yield [pending]
                first_error = pending.failure
                continue
            except PipelineFull:
                has_waited = True
            except ClosedInHandshake as error:
                if pending.operation in _IN_VERSION_1:
                    return False
                pause = pause_after(pending, error, tries)
            except (ConnectionFailed, ServerBusy) as error:
                pause = pause_after(pending, error, tries)
            first_error = None
            yield from backoff(pool, pause)
            pending.reset()
    except RequestTimeout as error:
        pending.discard()
        raise with_server_error(pending, error) from error
    except BaseException:
        pending.discard()
        raise
    finally:
        pool.leave(pending.multiplexer)
        if pool.is_waited_for:
            pool.answered()


def refusal(pending: PendingRequest) -> ServerReply:
    """The error that a request was answered with."""
    return error_for(pending.status, pending.metadata.message or "", pending.uri)


def with_server_error(pending: PendingRequest, error: ConnectionFailed | RequestTimeout) -> ObjmapperError:
    """The error, or the one that says that a request which is not repeated may have been executed."""
    may_be_executed = not pending.idempotent and pending.number > 0 and not pending.is_unsent
    if may_be_executed and not isinstance(error, ServerReply | OutcomeUnknown):
        return unanswered(pending.operation.name.lower(), pending.uri, error)
    return error


def pause_after(pending: PendingRequest, error: ConnectionFailed | ServerBusy, tries: RetryState) -> float:
    """The seconds until a request's next try. Raises the error where there is none."""
    if isinstance(error, ServerBusy):
        return tries.pause_after(error, may_repeat=True)
    found = with_server_error(pending, error)
    if found is not error:
        raise found from error
    return tries.pause_after(error, may_repeat=not pending.is_begun, is_stale=pending.found_idle)


def backoff(pool: Pool, pause: float) -> Effects[None]:
    """The time between two tries."""
    if pool.wait:
        # The time that a server takes to start is not the request's.
        yield ResetDeadline()
    if pause and not (yield Wait(seconds=pause)):
        raise RequestTimeout(f"{pool.address}: no time left for another try")


def shared_connection(pool: Pool, *, has_waited: bool = False) -> Effects[Multiplexer | None]:
    """The connection that requests share, None where the server speaks version 1 only. For those who send several."""
    claim = Claim(pool)
    while pool.version != 1:
        found = pool.acquire_shared(claim, has_waited=has_waited)
        if isinstance(found, Multiplexer):
            return found
        if found is not None:
            yield from _wait_turn(pool, found)
            has_waited = True
            continue
        try:
            multiplexer = pool.publish_shared(claim, (yield from _new(pool, may_guess=False)))
        finally:
            pool.release_claim(claim)
        if multiplexer is not None:
            return multiplexer
    return None


def exclusive(pool: Pool) -> Effects[Connection]:
    """A connection for the caller alone, who gives it back to the pool or has the pool drop it."""
    claim = Claim(pool)
    has_waited = False
    while True:
        found = pool.acquire_exclusive(claim, has_waited=has_waited)
        if isinstance(found, Connection):
            return found
        if found is None:
            break
        yield from _wait_turn(pool, found)
        has_waited = True
    try:
        connection = yield from _new(pool, may_guess=True)
        pool.publish_exclusive(claim, connection)
    except BaseException:
        pool.release_claim(claim)
        raise
    return connection


def _wait_turn(pool: Pool, gate: Waiter) -> Effects[None]:
    try:
        if pool.wait:
            yield ResetDeadline(pool.wait)
        in_time = yield gate
    except BaseException:
        pool.cancel_wait(gate)
        raise
    if not in_time:
        pool.cancel_wait(gate)
        raise RequestTimeout(_NO_PLACE)


def _new(pool: Pool, *, may_guess: bool) -> Effects[Connection]:
    return (yield from _within(_negotiated(pool, may_guess=may_guess), pool.connect_timeout))


def _negotiated(pool: Pool, *, may_guess: bool) -> Effects[Connection]:
    """A new connection that speaks the best version that the server has.

    A server that hangs up on a hello may be one of version 1, or one that is about to end. Where `may_guess`, the next
    request is said in version 1, which every server understands; its answer tells. Else HungUp is raised.
    """
    connection = yield from connect(pool.address)
    try:
        if pool.version == 1:
            return connection
        try:
            if (yield from negotiate(connection)):
                pool.version = 2
                return connection
            pool.assume_version_1(is_certain=True)
        except ClosedInHandshake:
            if not may_guess:
                raise
        connection.close()
        return (yield from connect(pool.address))
    except BaseException:
        connection.close()
        raise


def _within(steps: Effects[T], timeout: float) -> Effects[T]:
    """Steps with a time limit of their own."""
    deadline = time.monotonic() + timeout
    results: list[T] = []
    steps = collect_result(steps, results)
    try:
        effect = next(steps)
        while effect is not None:
            if isinstance(effect, Wait):
                effect.most = deadline - time.monotonic()
            came = yield effect
            if isinstance(effect, Wait):
                effect.most = None
            effect = steps.send(came if time.monotonic() < deadline else False)
        return results[0]
    finally:
        steps.close()


def with_exclusive(
    pool: Pool,
    exchange: Callable[[Connection], Effects[T]],
    *,
    put: str | None = None,
    may_begin_again: Callable[[], bool] = lambda: True,
) -> Effects[T]:
    """Runs an exchange on a connection of its own.

    The exchange gives it back (`pool.give`) or has it dropped once it is done; where it raises, that is done here.
    `put` is the URI of one that is not repeated where it may have been executed. There is no further try where
    `may_begin_again` says no.
    """
    pool.requests += 1
    tries = RetryState(pool)
    while True:
        connection: Connection | None = None
        try:
            connection = yield from exclusive(pool)
            connection.answered = connection.is_begun = connection.is_sent = False
            connection.moved = 0
            return (yield from exchange(connection))
        except ServerReply as error:
            # Answered in full: the connection is as good as before, unless the server gave it up.
            if connection is not None:
                if error.status == Status.PROTOCOL_ERROR:
                    pool.discard(connection)
                else:
                    pool.release(connection)
            if not isinstance(error, ServerBusy):
                raise
            pause = tries.pause_after(error, may_repeat=may_begin_again())
        except LocalProtocolError:
            if connection is not None:
                if connection.is_begun:
                    pool.discard(connection)
                else:
                    pool.release(connection)
            raise
        except ConnectionFailed as error:
            may_repeat, is_stale = may_begin_again(), False
            if connection is not None:
                pool.discard(connection)
                if connection.version == 1:
                    pool.forget_version()
                if put is not None and connection.is_sent:
                    raise unanswered("put", put, error) from error
                may_repeat = may_repeat and not connection.answered
                is_stale = connection.is_reused
            pause = tries.pause_after(error, may_repeat=may_repeat, is_stale=is_stale)
        except RequestTimeout as error:
            if connection is not None:
                pool.discard(connection)
                if put is not None and connection.is_sent:
                    raise unanswered("put", put, error) from error
            raise
        except BaseException:
            if connection is not None:
                pool.discard(connection)
            raise
        yield from backoff(pool, pause)


def require_version_2(pool: Pool, pending: PendingRequest, operation: str) -> Effects[None]:
    """Has a request answered that version 1 lacks: there may be another server now. Raises UnsupportedOperation."""
    if pool.may_renegotiate():
        pending.reset()
        if (yield pending):
            return
    raise unsupported(pool, operation)


def unsupported(pool: Pool, operation: str) -> UnsupportedOperation:
    """The error for a verb that the server does not have."""
    return UnsupportedOperation(
        f"{pool.address}: no {operation}: the server speaks version 1 of the protocol,"
        " which hands out objects and no more"
    )
