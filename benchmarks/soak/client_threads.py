"""Clients of a soak in this process: a thread each, their counts, and the errors that they found."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Self


class ClientThreads:
    """Repeats each client, a named function, in a thread until the block ends or the function raises.

    An error of `expected` is counted and the function called again; any other is in `wrong` and ends its thread.
    """

    def __init__(
        self, clients: Iterable[tuple[str, Callable[[], None]]], expected: tuple[type[BaseException], ...] = ()
    ) -> None:
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self._expected = expected
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=client) for client in clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, name: str, client: Callable[[], None]) -> None:
        while not self._ended.is_set():
            try:
                client()
            except self._expected:
                self.counts["errors"] += 1
            except BaseException as error:
                self.wrong.append(f"{name}: {error!r}")
                return
