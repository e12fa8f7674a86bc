"""Opening many objects at once: requests sent ahead, answered in batches; a result or an error for each."""

from collections import deque
from collections.abc import Sequence

from objmapper_client._connection.dispatch import backoff, pause_after, refusal, shared_connection
from objmapper_client._connection.handshake import ClosedInHandshake
from objmapper_client._connection.multiplexer import PipelineFull
from objmapper_client._connection.pending_request import PendingRequest, details
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.retry import RetryState
from objmapper_client._files.memory import MemoryFile
from objmapper_client._operations.fetch import MAX_SHARED, OpenRequest, Result, fetch_remainder, is_complete, opened
from objmapper_client._runtime.effects import Effects
from objmapper_client.errors import ConnectionFailed, DescriptorLimit, ObjmapperError, ServerBusy
from objmapper_client.object import Object
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_requests import Operation

#: Contents that are asked for ahead are held until their turn comes: at most this many.
_CONTENTS_AHEAD = 16


def open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> Effects[list[Result]]:
    """An object or an error for each URI, in their order. Whatever is raised, no object is left open."""
    if mode is Mode.FDPASS:
        pendings: list[PendingRequest] = [OpenRequest(Operation.FDPASS, uri) for uri in uris]
    else:
        said = details(length=MAX_SHARED)
        pendings = [PendingRequest(Operation.of(mode), uri).with_parameters(said, most=MAX_SHARED) for uri in uris]
    results: list[Result | None] = [None] * len(pendings)
    try:
        yield from _ask_all(pool, pendings, mode, results)
        for at, pending in enumerate(pendings):
            if results[at] is None:
                results[at] = yield from (
                    _opened(pool, pending, mode) if pending.is_done else _one(pool, pending.uri, mode)
                )
        return [result for result in results if result is not None]
    except BaseException:
        for pending in pendings:
            pending.discard()
        for result in results:
            if isinstance(result, Object):
                result.close()
        raise
    finally:
        # Those that were given up have left room.
        if pool.is_waited_for:
            pool.answered()


def _one(pool: Pool, uri: str, mode: Mode) -> Effects[Result]:
    try:
        return (yield from opened(pool, uri, mode))
    except ObjmapperError as error:
        return error


def _ask_all(pool: Pool, pendings: list[PendingRequest], mode: Mode, results: list[Result | None]) -> Effects[None]:
    """Has all of them answered or failed, but for those that are not done where the server speaks version 1 only.

    It may do so from one connection to the next: those that were answered before that have their descriptors.
    """
    waiting = deque(enumerate(pendings))
    tries: dict[int, RetryState] = {}
    while waiting:
        try:
            shared = yield from shared_connection(pool)
        except ClosedInHandshake as error:
            at, pending = waiting[0]
            if not tries:
                # A server of version 1 may do so: one is asked for, which tells.
                waiting.popleft()
                tries[at] = RetryState(pool)
                results[at] = yield from _one(pool, pending.uri, mode)
                continue
            for at, _ in waiting:
                results[at] = type(error)(*error.args)
            return
        except DescriptorLimit as error:
            for at, _ in waiting:
                results[at] = type(error)(*error.args)
            return
        except (ConnectionFailed, ServerBusy) as error:
            at, pending = waiting[0]
            pause = _pause(pending, error, tries.setdefault(at, RetryState(pool)))
            if pause is None:
                for at, _ in waiting:
                    results[at] = type(error)(*error.args)
                return
            yield from backoff(pool, pause)
            continue
        if shared is None:
            return
        room = shared.limit - len(shared.under_way)
        if mode is not Mode.FDPASS:
            room = min(room, _CONTENTS_AHEAD)
        batch = [waiting.popleft() for _ in range(min(max(1, room), len(waiting)))]
        for _, pending in batch:
            pending.multiplexer = shared
        pool.requests += len(batch)
        try:
            yield [pending for _, pending in batch]
        finally:
            pool.leave(shared)
        if pool.is_waited_for:
            pool.answered()
        longest = 0.0
        for at, pending in batch:
            error_found = pending.failure
            if error_found is None and pending.status:
                error_found = refusal(pending)
            if error_found is None:
                if mode is not Mode.FDPASS:
                    results[at] = yield from _opened(pool, pending, mode)
                continue
            if isinstance(error_found, PipelineFull):
                pending.reset()
                waiting.append((at, pending))
                continue
            assert isinstance(error_found, ObjmapperError)
            if isinstance(error_found, ConnectionFailed | ServerBusy):
                pause = _pause(pending, error_found, tries.setdefault(at, RetryState(pool)))
                if pause is not None:
                    longest = max(longest, pause)
                    pending.reset()
                    waiting.append((at, pending))
                    continue
            results[at] = error_found
        yield from backoff(pool, longest)


def _pause(pending: PendingRequest, error: ConnectionFailed | ServerBusy, tries: RetryState) -> float | None:
    try:
        return pause_after(pending, error, tries)
    except (ConnectionFailed, ServerBusy):
        return None


def _opened(pool: Pool, pending: PendingRequest, mode: Mode) -> Effects[Result]:
    """The object that an answer brought, all of it."""
    try:
        if isinstance(pending, OpenRequest):
            return pending.result()
        memory = MemoryFile()
        try:
            _, mtime, etag = pending.metadata[:3]
            length = len(pending.content)
            if is_complete(pending, 0, None):
                memory.write(pending.content)
            else:
                got = yield from fetch_remainder(pool, pending, 0, memory.make_room)
                if got is None:
                    memory.close()
                    return (yield from opened(pool, pending.uri, mode))
                length = got.length
            return memory.become(pending.uri, mode, length, etag=etag, mtime=mtime)
        except BaseException:
            memory.close()
            raise
    except ObjmapperError as error:
        return error
