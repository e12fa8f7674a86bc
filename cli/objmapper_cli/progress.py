"""A progress bar on stderr for transfers longer than half a second; none where stderr is not a terminal."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Never, Self

if TYPE_CHECKING:
    from tqdm import tqdm

#: Seconds. A shorter transfer shows no bar, and does not import its library.
DELAY: Final = 0.5


class Progress:
    """Counts the bytes of one transfer: call it with the bytes of each step."""

    def __init__(self, name: str, size: int | None = None) -> None:
        self._name = name
        self._size = size
        self._done = 0
        self._bar: tqdm[Never] | None = None
        self._due = time.monotonic() + DELAY if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, step: int) -> None:
        """Count the bytes of one step."""
        self._done += step
        if self._bar is not None:
            self._bar.update(step)
        elif self._due is not None and time.monotonic() >= self._due:
            self._bar = self._new_bar()

    def reached(self, done: int) -> None:
        """Set the number of bytes done so far."""
        self(done - self._done)

    def _new_bar(self) -> "tqdm[Never]":
        from tqdm import tqdm

        from objmapper_client.errors import printable

        return tqdm(
            desc=printable(self._name),
            total=self._size,
            initial=self._done,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            leave=False,
        )
