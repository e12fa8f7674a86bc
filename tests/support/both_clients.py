"""Calls of operations with `Client`, and with `AsyncClient` in asyncio and uvloop: one test for all of them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from objmapper_client import AsyncClient, Client


class Caller(Protocol):
    """Makes a client, calls its operations in order, closes it. A call is a name with its arguments."""

    def __call__(self, address: str, *calls: "Call", **options: Any) -> list[Any]: ...


Call = tuple[Any, ...]


def call_in_thread(address: str, *calls: Call, **options: Any) -> list[Any]:
    """With `Client`. Iterators are drained."""
    with Client(address, **options) as client:
        results = []
        for name, *arguments in calls:
            keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
            result = getattr(client, name)(*arguments, **keywords)
            results.append(list(result) if isinstance(result, Iterator) else result)
        return results


def call_in_task(address: str, *calls: Call, **options: Any) -> list[Any]:
    """With `AsyncClient`."""

    async def call() -> list[Any]:
        async with AsyncClient(address, **options) as client:
            results = []
            for name, *arguments in calls:
                keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
                result = getattr(client, name)(*arguments, **keywords)
                if isinstance(result, AsyncIterator):
                    results.append([each async for each in result])
                else:
                    results.append(await result)
            return results

    return asyncio.run(call())


def call_in_uvloop_task(address: str, *calls: Call, **options: Any) -> list[Any]:
    """With `AsyncClient` under uvloop."""
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        return call_in_task(address, *calls, **options)
    finally:
        asyncio.set_event_loop_policy(None)
