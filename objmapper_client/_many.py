"""Opening many objects at once: requests sent ahead, answered in batches; a result or an error for each."""

from collections import deque
from collections.abc import Sequence

from objmapper_client._ask import Ask, details
from objmapper_client._connect import HungUp
from objmapper_client._exchange import SHARED_MOST, Opening, Result, is_whole, opened, rest_of
from objmapper_client._lines import pause_after, refusal, rest, shared_connection
from objmapper_client._multiplex import NoRoom
from objmapper_client._pool import Pool
from objmapper_client._retry import Tries
from objmapper_client._steps import Steps
from objmapper_client.errors import ConnectionFailed, DescriptorLimit, ObjmapperError, ServerBusy
from objmapper_client.object import MemoryFile, Object
from objmapper_client.protocol import Mode
from objmapper_client.protocol_v2 import Operation

#: Contents that are asked for ahead are held until their turn comes: at most this many.
_CONTENTS_AHEAD = 16


def open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> Steps[list[Result]]:
    """An object or an error for each URI, in their order. Whatever is raised, no object is left open."""
    if mode is Mode.FDPASS:
        asks: list[Ask] = [Opening(Operation.FDPASS, uri) for uri in uris]
    else:
        said = details(length=SHARED_MOST)
        asks = [Ask(Operation.of(mode), uri).saying(said, most=SHARED_MOST) for uri in uris]
    results: list[Result | None] = [None] * len(asks)
    try:
        yield from _ask_all(pool, asks, mode, results)
        for at, ask in enumerate(asks):
            if results[at] is None:
                results[at] = yield from (_opened(pool, ask, mode) if ask.is_done else _one(pool, ask.uri, mode))
        return [result for result in results if result is not None]
    except BaseException:
        for ask in asks:
            ask.discard()
        for result in results:
            if isinstance(result, Object):
                result.close()
        raise
    finally:
        # Those that were given up have left room.
        if pool.is_waited_for:
            pool.answered()


def _one(pool: Pool, uri: str, mode: Mode) -> Steps[Result]:
    try:
        return (yield from opened(pool, uri, mode))
    except ObjmapperError as error:
        return error


def _ask_all(pool: Pool, asks: list[Ask], mode: Mode, results: list[Result | None]) -> Steps[None]:
    """Has all of them answered or failed, but for those that are not done where the server speaks version 1 only.

    It may do so from one connection to the next: those that were answered before that have their descriptors.
    """
    waiting = deque(enumerate(asks))
    tries: dict[int, Tries] = {}
    while waiting:
        try:
            shared = yield from shared_connection(pool)
        except HungUp as error:
            at, ask = waiting[0]
            if not tries:
                # A server of version 1 may do so: one is asked for, which tells.
                waiting.popleft()
                tries[at] = Tries(pool)
                results[at] = yield from _one(pool, ask.uri, mode)
                continue
            for at, _ in waiting:
                results[at] = type(error)(*error.args)
            return
        except DescriptorLimit as error:
            for at, _ in waiting:
                results[at] = type(error)(*error.args)
            return
        except (ConnectionFailed, ServerBusy) as error:
            at, ask = waiting[0]
            pause = _pause(ask, error, tries.setdefault(at, Tries(pool)))
            if pause is None:
                for at, _ in waiting:
                    results[at] = type(error)(*error.args)
                return
            yield from rest(pool, pause)
            continue
        if shared is None:
            return
        room = shared.limit - len(shared.under_way)
        if mode is not Mode.FDPASS:
            room = min(room, _CONTENTS_AHEAD)
        batch = [waiting.popleft() for _ in range(min(max(1, room), len(waiting)))]
        for _, ask in batch:
            ask.multiplex = shared
        pool.requests += len(batch)
        try:
            yield [ask for _, ask in batch]
        finally:
            pool.leave(shared)
        if pool.is_waited_for:
            pool.answered()
        longest = 0.0
        for at, ask in batch:
            error_found = ask.failure
            if error_found is None and ask.status:
                error_found = refusal(ask)
            if error_found is None:
                if mode is not Mode.FDPASS:
                    results[at] = yield from _opened(pool, ask, mode)
                continue
            if isinstance(error_found, NoRoom):
                ask.renew()
                waiting.append((at, ask))
                continue
            assert isinstance(error_found, ObjmapperError)
            if isinstance(error_found, ConnectionFailed | ServerBusy):
                pause = _pause(ask, error_found, tries.setdefault(at, Tries(pool)))
                if pause is not None:
                    longest = max(longest, pause)
                    ask.renew()
                    waiting.append((at, ask))
                    continue
            results[at] = error_found
        yield from rest(pool, longest)


def _pause(ask: Ask, error: ConnectionFailed | ServerBusy, tries: Tries) -> float | None:
    try:
        return pause_after(ask, error, tries)
    except (ConnectionFailed, ServerBusy):
        return None


def _opened(pool: Pool, ask: Ask, mode: Mode) -> Steps[Result]:
    """The object that an answer brought, all of it."""
    try:
        if isinstance(ask, Opening):
            return ask.result()
        memory = MemoryFile()
        try:
            _, mtime, etag = ask.metadata[:3]
            length = len(ask.content)
            if is_whole(ask, 0, None):
                memory.write(ask.content)
            else:
                got = yield from rest_of(pool, ask, 0, memory.make_room)
                if got is None:
                    memory.close()
                    return (yield from opened(pool, ask.uri, mode))
                length = got.length
            return memory.become(ask.uri, mode, length, etag=etag, mtime=mtime)
        except BaseException:
            memory.close()
            raise
    except ObjmapperError as error:
        return error
