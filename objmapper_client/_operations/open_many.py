"""Opens many objects with pipelined requests."""

from collections import deque
from collections.abc import Sequence

from objmapper_client._connection.handshake import ClosedInHandshake
from objmapper_client._connection.multiplexer import PipelineFull
from objmapper_client._connection.pending_request import PendingRequest, parameter_values
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.request_runner import backoff, response_error, retry_delay, shared_connection
from objmapper_client._connection.retry import RetryState
from objmapper_client._files.memory_file import MemoryFile
from objmapper_client._operations.open_and_read import (
    MAX_SHARED,
    OpenRequest,
    OpenResult,
    fetch_remainder,
    is_complete,
    run_open,
)
from objmapper_client._runtime.effects import Effects
from objmapper_client.errors import ConnectionFailed, DescriptorLimit, ObjmapperError, ServerBusy
from objmapper_client.object import Object
from objmapper_client.protocol.v1 import Mode
from objmapper_client.protocol.v2_requests import Operation

#: Maximum pipelined requests for contents, which stay in memory until they are processed.
_CONTENTS_AHEAD = 16


def open_many(pool: Pool, uris: Sequence[str], mode: Mode) -> Effects[list[OpenResult]]:
    """Opens many objects. Returns an object or an error for each URI, in their order. Closes all if it raises."""
    if mode is Mode.FDPASS:
        pendings: list[PendingRequest] = [OpenRequest(Operation.FDPASS, uri) for uri in uris]
    else:
        parameters = parameter_values(length=MAX_SHARED)
        pendings = [
            PendingRequest(Operation.of(mode), uri).with_parameters(parameters, max_content=MAX_SHARED) for uri in uris
        ]
    results: list[OpenResult | None] = [None] * len(pendings)
    try:
        yield from _request_all(pool, pendings, mode, results)
        for index, pending in enumerate(pendings):
            if results[index] is None:
                results[index] = yield from (
                    _to_result(pool, pending, mode) if pending.is_done else _open_one(pool, pending.uri, mode)
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
        # Abandoned requests have freed capacity.
        if pool.has_waiters:
            pool.on_request_done()


def _open_one(pool: Pool, uri: str, mode: Mode) -> Effects[OpenResult]:
    try:
        return (yield from run_open(pool, uri, mode))
    except ObjmapperError as error:
        return error


def _request_all(
    pool: Pool, pendings: list[PendingRequest], mode: Mode, results: list[OpenResult | None]
) -> Effects[None]:
    """Runs all requests. If the server speaks version 1 only, the rest stays undone.

    The version may change with a new connection; requests with a response keep their descriptors.
    """
    queue = deque(enumerate(pendings))
    retries: dict[int, RetryState] = {}
    while queue:
        try:
            shared = yield from shared_connection(pool)
        except ClosedInHandshake as error:
            index, pending = queue[0]
            if not retries:
                # A server of version 1 may close the connection. One request in version 1 shows whether it does.
                queue.popleft()
                retries[index] = RetryState(pool)
                results[index] = yield from _open_one(pool, pending.uri, mode)
                continue
            for index, _ in queue:
                results[index] = type(error)(*error.args)
            return
        except DescriptorLimit as error:
            for index, _ in queue:
                results[index] = type(error)(*error.args)
            return
        except (ConnectionFailed, ServerBusy) as error:
            index, pending = queue[0]
            delay = _retry_delay_or_none(pending, error, retries.setdefault(index, RetryState(pool)))
            if delay is None:
                for index, _ in queue:
                    results[index] = type(error)(*error.args)
                return
            yield from backoff(pool, delay)
            continue
        if shared is None:
            return
        capacity = shared.limit - len(shared.pending)
        if mode is not Mode.FDPASS:
            capacity = min(capacity, _CONTENTS_AHEAD)
        batch = [queue.popleft() for _ in range(min(max(1, capacity), len(queue)))]
        for _, pending in batch:
            pending.multiplexer = shared
        pool.requests += len(batch)
        try:
            yield [pending for _, pending in batch]
        finally:
            pool.release_shared(shared)
        if pool.has_waiters:
            pool.on_request_done()
        max_delay = 0.0
        for index, pending in batch:
            error_found = pending.failure
            if error_found is None and pending.status:
                error_found = response_error(pending)
            if error_found is None:
                if mode is not Mode.FDPASS:
                    results[index] = yield from _to_result(pool, pending, mode)
                continue
            if isinstance(error_found, PipelineFull):
                pending.reset()
                queue.append((index, pending))
                continue
            assert isinstance(error_found, ObjmapperError)
            if isinstance(error_found, ConnectionFailed | ServerBusy):
                delay = _retry_delay_or_none(pending, error_found, retries.setdefault(index, RetryState(pool)))
                if delay is not None:
                    max_delay = max(max_delay, delay)
                    pending.reset()
                    queue.append((index, pending))
                    continue
            results[index] = error_found
        yield from backoff(pool, max_delay)


def _retry_delay_or_none(
    pending: PendingRequest, error: ConnectionFailed | ServerBusy, retries: RetryState
) -> float | None:
    try:
        return retry_delay(pending, error, retries)
    except (ConnectionFailed, ServerBusy):
        return None


def _to_result(pool: Pool, pending: PendingRequest, mode: Mode) -> Effects[OpenResult]:
    """Makes an object of a response; fetches the rest of its content if the response has only the first part."""
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
                fetched = yield from fetch_remainder(pool, pending, 0, memory.allocate)
                if fetched is None:
                    memory.close()
                    return (yield from run_open(pool, pending.uri, mode))
                length = fetched.length
            return memory.to_object(pending.uri, mode, length, etag=etag, mtime=mtime)
        except BaseException:
            memory.close()
            raise
    except ObjmapperError as error:
        return error
