"""How a request gets its connection and, if need be, another try: on the shared connection, or on one of its own."""

import time
from collections.abc import Callable

from objmapper_client._ask import Ask
from objmapper_client._connect import connect, negotiate
from objmapper_client._multiplex import Multiplex, NoRoom
from objmapper_client._pool import Gate, Pool
from objmapper_client._retry import Tries
from objmapper_client._steps import Progress, Steps, T, Wait
from objmapper_client._transport import Connection
from objmapper_client.errors import (
    ConnectionFailed,
    LocalProtocolError,
    RequestTimeout,
    ServerBusy,
    ServerReply,
    UnsupportedOperation,
    error_for,
)
from objmapper_client.protocol import Status

_NO_PLACE = "all of the client's connections are in use: wait longer, or allow more (max_connections)"


def answered(pool: Pool, ask: Ask, trouble: Exception | None = None) -> Steps[bool]:
    """Has a request answered on the shared connection; the answer is in `ask` then. `trouble` is what a first try met.

    False where the server speaks version 1 only: then nothing was sent. Raises what the server answered, and the errors
    of connections; a further try is made only before the first byte of an answer.
    """
    pool.requests += 1
    tries = Tries(pool)
    try:
        while True:
            pause = 0.0
            try:
                if trouble is not None:
                    raise trouble
                if ask.is_done:
                    if ask.status == 0:
                        return True
                    raise refusal(ask)
                shared = yield from shared_connection(pool)
                if shared is None:
                    return False
                ask.multiplex = shared
                yield [ask]
                trouble = ask.failure
                continue
            except NoRoom:
                pass
            except (ConnectionFailed, ServerBusy) as error:
                pause = pause_after(ask, error, tries)
            trouble = None
            yield from rest(pool, pause)
            ask.renew()
    except BaseException:
        ask.discard()
        raise
    finally:
        if pool.is_waited_for:
            pool.answered()


def refusal(ask: Ask) -> ServerReply:
    """The error that a request was answered with."""
    return error_for(ask.status, ask.metadata.message or "", ask.uri)


def pause_after(ask: Ask, error: ConnectionFailed | ServerBusy, tries: Tries) -> float:
    """The seconds until a request's next try. Raises the error where there is none."""
    was_executed_perhaps = ask.number > 0 and not (ask.multiplex is not None and ask.multiplex.is_refusing)
    may_repeat = isinstance(error, ServerBusy) or (not ask.is_begun and (ask.repeatable or not was_executed_perhaps))
    is_stale = ask.found_idle and isinstance(error, ConnectionFailed)
    return tries.pause_after(error, may_repeat=may_repeat, is_stale=is_stale)


def rest(pool: Pool, pause: float) -> Steps[None]:
    """The time between two tries."""
    if pool.wait:
        # The time that a server takes to start is not the request's.
        yield Progress()
    if pause and not (yield Wait(seconds=pause)):
        raise RequestTimeout(f"{pool.address}: no time left for another try")


def shared_connection(pool: Pool) -> Steps[Multiplex | None]:
    """The connection that requests share, None where the server speaks version 1 only. For those who send several."""
    has_waited = False
    while pool.version != 1:
        found = pool.take_shared(has_waited=has_waited)
        if isinstance(found, Multiplex):
            return found
        if found is not None:
            yield from _stand(pool, found)
            has_waited = True
            continue
        connection: Connection | None = None
        try:
            connection = yield from _new(pool)
        finally:
            multiplex = pool.put_shared(connection if connection is not None and connection.version == 2 else None)
        if multiplex is not None:
            return multiplex
        assert connection is not None
        pool.adopt(connection)
    return None


def own(pool: Pool) -> Steps[Connection]:
    """A connection for the caller alone, who gives it back to the pool or has the pool drop it."""
    while True:
        found = pool.take_own()
        if isinstance(found, Connection):
            return found
        if found is None:
            break
        yield from _stand(pool, found)
    try:
        connection = yield from _new(pool)
    except BaseException:
        pool.put_own(None)
        raise
    pool.put_own(connection)
    return connection


def _stand(pool: Pool, gate: Gate) -> Steps[None]:
    try:
        if pool.wait:
            yield Progress(pool.wait)
        in_time = yield gate
    except BaseException:
        pool.withdraw(gate)
        raise
    if not in_time:
        pool.withdraw(gate)
        raise RequestTimeout(_NO_PLACE)


def _new(pool: Pool) -> Steps[Connection]:
    return (yield from _within(_negotiated(pool), pool.connect_timeout))


def _negotiated(pool: Pool) -> Steps[Connection]:
    """A new connection that speaks the best version that the server has."""
    connection = yield from connect(pool.address)
    try:
        if pool.version != 1:
            if (yield from negotiate(connection)):
                pool.version = 2
            else:
                connection.close()
                connection = yield from connect(pool.address)
                pool.version = 1
    except BaseException:
        connection.close()
        raise
    return connection


def _within(steps: Steps[T], timeout: float) -> Steps[T]:
    """Steps with a time limit of their own."""
    deadline = time.monotonic() + timeout
    try:
        wish = next(steps)
        while True:
            if isinstance(wish, Wait):
                wish.most = deadline - time.monotonic()
            came = yield wish
            if isinstance(wish, Wait):
                wish.most = None
            wish = steps.send(came if time.monotonic() < deadline else False)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def on_own(pool: Pool, exchange: Callable[[Connection], Steps[T]], *, repeatable: bool) -> Steps[T]:
    """Runs an exchange on a connection of its own. Whoever returns from it says whether the connection is kept.

    The exchange gives it back (`pool.give`) or has it dropped once it is done; where it raises, that is done here.
    """
    pool.requests += 1
    tries = Tries(pool)
    while True:
        connection: Connection | None = None
        try:
            connection = yield from own(pool)
            connection.answered = False
            connection.is_sent = False
            return (yield from exchange(connection))
        except ServerReply as error:
            # Answered in full: the connection is as good as before, unless the server gave it up.
            if connection is not None:
                if error.status == Status.PROTOCOL_ERROR:
                    pool.drop(connection)
                else:
                    pool.give(connection)
            if not isinstance(error, ServerBusy):
                raise
            pause = tries.pause_after(error, may_repeat=True)
        except LocalProtocolError:
            if connection is not None:
                if connection.is_sent:
                    pool.drop(connection)
                else:
                    pool.give(connection)
            raise
        except ConnectionFailed as error:
            may_repeat, is_stale = True, False
            if connection is not None:
                pool.drop(connection)
                if connection.version == 1:
                    pool.doubt_version()
                may_repeat = not connection.answered and (repeatable or not connection.is_sent)
                is_stale = connection.is_reused
            pause = tries.pause_after(error, may_repeat=may_repeat, is_stale=is_stale)
        except BaseException:
            if connection is not None:
                pool.drop(connection)
            raise
        yield from rest(pool, pause)


def lacking(pool: Pool, verb: str) -> UnsupportedOperation:
    """The error for a verb that the server does not have."""
    return UnsupportedOperation(
        f"{pool.address}: no {verb}: the server speaks version 1 of the protocol, which hands out objects and no more"
    )
