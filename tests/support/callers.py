"""One verb called the way a thread does, and the way a task does: what a test says holds for both."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from objmapper_client import AsyncClient, Client


class Caller(Protocol):
    """Makes a client, calls its verbs in order, closes it. A verb is a name with what it is given."""

    def __call__(self, address: str, *verbs: "Verb", **options: Any) -> list[Any]: ...


Verb = tuple[Any, ...]


def in_thread(address: str, *verbs: Verb, **options: Any) -> list[Any]:
    """With `Client`. Iterators are drained."""
    with Client(address, **options) as client:
        results = []
        for name, *given in verbs:
            named = given.pop() if given and isinstance(given[-1], dict) else {}
            found = getattr(client, name)(*given, **named)
            results.append(list(found) if isinstance(found, Iterator) else found)
        return results


def in_task(address: str, *verbs: Verb, **options: Any) -> list[Any]:
    """With `AsyncClient`."""

    async def call() -> list[Any]:
        async with AsyncClient(address, **options) as client:
            results = []
            for name, *given in verbs:
                named = given.pop() if given and isinstance(given[-1], dict) else {}
                found = getattr(client, name)(*given, **named)
                if isinstance(found, AsyncIterator):
                    results.append([each async for each in found])
                else:
                    results.append(await found)
            return results

    return asyncio.run(call())


def in_task_of_uvloop(address: str, *verbs: Verb, **options: Any) -> list[Any]:
    """With `AsyncClient` under uvloop."""
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        return in_task(address, *verbs, **options)
    finally:
        asyncio.set_event_loop_policy(None)
