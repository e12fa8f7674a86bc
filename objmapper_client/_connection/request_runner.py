"""Runs requests on the shared connection or on an exclusive one, and retries them."""

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
    outcome_unknown,
)
from objmapper_client.protocol.v1 import Status
from objmapper_client.protocol.v2_requests import Operation

_IN_VERSION_1 = (Operation.FDPASS, Operation.COPY, Operation.SPLICE)
_NO_CONNECTION_FREE = "all of the client's connections are in use: wait longer, or allow more (max_connections)"


def send_request(pool: Pool, pending: PendingRequest, first_error: Exception | None = None) -> Effects[bool]:
    """Runs a request on the shared connection; the response is in `pending`. `first_error`: of an earlier attempt.

    Returns False if the server speaks version 1 only, or may do so; nothing was sent then. Raises the server's error
    response and connection errors. Retries only before the first byte of a response.
    """
    pool.requests += 1
    retries = RetryState(pool)
    has_waited = False
    try:
        while True:
            delay = 0.0
            try:
                if first_error is not None:
                    raise first_error
                if pending.is_done:
                    if pending.status == 0:
                        return True
                    raise response_error(pending)
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
                delay = retry_delay(pending, error, retries)
            except (ConnectionFailed, ServerBusy) as error:
                delay = retry_delay(pending, error, retries)
            first_error = None
            yield from backoff(pool, delay)
            pending.reset()
    except RequestTimeout as error:
        pending.discard()
        raise to_outcome_error(pending, error) from error
    except BaseException:
        pending.discard()
        raise
    finally:
        pool.release_shared(pending.multiplexer)
        if pool.has_waiters:
            pool.on_request_done()


def response_error(pending: PendingRequest) -> ServerReply:
    """The error of an unsuccessful response."""
    return error_for(pending.status, pending.metadata.message or "", pending.uri)


def to_outcome_error(pending: PendingRequest, error: ConnectionFailed | RequestTimeout) -> ObjmapperError:
    """The error, or OutcomeUnknown if the server may have executed a request that is not idempotent."""
    may_be_executed = not pending.idempotent and pending.request_id > 0 and not pending.is_unsent
    if may_be_executed and not isinstance(error, ServerReply | OutcomeUnknown):
        return outcome_unknown(pending.operation.name.lower(), pending.uri, error)
    return error


def retry_delay(pending: PendingRequest, error: ConnectionFailed | ServerBusy, retries: RetryState) -> float:
    """The seconds until a request's next attempt. Raises the error if there is none."""
    if isinstance(error, ServerBusy):
        return retries.retry_delay(error, may_repeat=True)
    found = to_outcome_error(pending, error)
    if found is not error:
        raise found from error
    return retries.retry_delay(error, may_repeat=not pending.is_response_started, is_stale=pending.found_idle)


def backoff(pool: Pool, delay: float) -> Effects[None]:
    """Waits between two attempts. Raises RequestTimeout."""
    if pool.wait:
        # The time in which the server starts does not count against the request's time limit.
        yield ResetDeadline()
    if delay and not (yield Wait(seconds=delay)):
        raise RequestTimeout(f"{pool.address}: no time left for another try")


def shared_connection(pool: Pool, *, has_waited: bool = False) -> Effects[Multiplexer | None]:
    """Returns the shared connection; None if the server speaks version 1 only. The caller may send several requests."""
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
            multiplexer = pool.publish_shared(claim, (yield from _new_connection(pool, may_assume_v1=False)))
        finally:
            pool.release_claim(claim)
        if multiplexer is not None:
            return multiplexer
    return None


def exclusive_connection(pool: Pool) -> Effects[Connection]:
    """Returns an exclusive connection. The caller returns it with `Pool.release` or `Pool.discard`."""
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
        connection = yield from _new_connection(pool, may_assume_v1=True)
        pool.publish_exclusive(claim, connection)
    except BaseException:
        pool.release_claim(claim)
        raise
    return connection


def _wait_turn(pool: Pool, waiter: Waiter) -> Effects[None]:
    try:
        if pool.wait:
            yield ResetDeadline(pool.wait)
        in_time = yield waiter
    except BaseException:
        pool.cancel_wait(waiter)
        raise
    if not in_time:
        pool.cancel_wait(waiter)
        raise RequestTimeout(_NO_CONNECTION_FREE)


def _new_connection(pool: Pool, *, may_assume_v1: bool) -> Effects[Connection]:
    return (yield from _with_timeout(_connect_and_negotiate(pool, may_assume_v1=may_assume_v1), pool.connect_timeout))


def _connect_and_negotiate(pool: Pool, *, may_assume_v1: bool) -> Effects[Connection]:
    """Connects with the best version that the server speaks.

    A server that closes the connection after a hello may speak version 1 only, or may be shutting down. With
    `may_assume_v1` the connection uses version 1, which every server speaks; else this raises ClosedInHandshake.
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
            if not may_assume_v1:
                raise
        connection.close()
        return (yield from connect(pool.address))
    except BaseException:
        connection.close()
        raise


def _with_timeout(effects: Effects[T], timeout: float) -> Effects[T]:
    """Runs effects with a time limit of their own."""
    deadline = time.monotonic() + timeout
    results: list[T] = []
    effects = collect_result(effects, results)
    try:
        effect = next(effects)
        while effect is not None:
            if isinstance(effect, Wait):
                effect.timeout = deadline - time.monotonic()
            result = yield effect
            if isinstance(effect, Wait):
                effect.timeout = None
            effect = effects.send(result if time.monotonic() < deadline else False)
        return results[0]
    finally:
        effects.close()


def with_exclusive(
    pool: Pool,
    exchange: Callable[[Connection], Effects[T]],
    *,
    put_uri: str | None = None,
    may_retry: Callable[[], bool] = lambda: True,
) -> Effects[T]:
    """Runs an exchange on an exclusive connection, and retries it.

    A successful exchange calls `Pool.release` or `Pool.discard` itself; after an exception this function does.
    `put_uri`: the URI of a put, which is not repeated once the server may have executed it. `may_retry` returns whether
    the exchange can start again.
    """
    pool.requests += 1
    retries = RetryState(pool)
    while True:
        connection: Connection | None = None
        try:
            connection = yield from exclusive_connection(pool)
            connection.has_response = connection.is_request_started = connection.is_sent = False
            connection.bytes_since_reset = 0
            return (yield from exchange(connection))
        except ServerReply as error:
            # The response is complete: the connection can be reused, unless the server gives it up.
            if connection is not None:
                if error.status == Status.PROTOCOL_ERROR:
                    pool.discard(connection)
                else:
                    pool.release(connection)
            if not isinstance(error, ServerBusy):
                raise
            delay = retries.retry_delay(error, may_repeat=may_retry())
        except LocalProtocolError:
            if connection is not None:
                if connection.is_request_started:
                    pool.discard(connection)
                else:
                    pool.release(connection)
            raise
        except ConnectionFailed as error:
            may_repeat, is_stale = may_retry(), False
            if connection is not None:
                pool.discard(connection)
                if connection.version == 1:
                    pool.forget_version()
                if put_uri is not None and connection.is_sent:
                    raise outcome_unknown("put", put_uri, error) from error
                may_repeat = may_repeat and not connection.has_response
                is_stale = connection.is_reused
            delay = retries.retry_delay(error, may_repeat=may_repeat, is_stale=is_stale)
        except RequestTimeout as error:
            if connection is not None:
                pool.discard(connection)
                if put_uri is not None and connection.is_sent:
                    raise outcome_unknown("put", put_uri, error) from error
            raise
        except BaseException:
            if connection is not None:
                pool.discard(connection)
            raise
        yield from backoff(pool, delay)


def require_version_2(pool: Pool, pending: PendingRequest, operation: str) -> Effects[None]:
    """Retries a request that version 1 lacks, after a new negotiation if one is due. Raises UnsupportedOperation."""
    if pool.may_renegotiate():
        pending.reset()
        if (yield pending):
            return
    raise unsupported_error(pool, operation)


def unsupported_error(pool: Pool, operation: str) -> UnsupportedOperation:
    """The error for an operation that version 1 lacks."""
    return UnsupportedOperation(
        f"{pool.address}: {operation} is not supported: the server speaks version 1 of the protocol,"
        " which can only open and read objects"
    )
