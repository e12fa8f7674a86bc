"""The access log: a line of JSON for one request of so many, written by a thread of its own.

The threads that serve never wait for it: the engine keeps what is to be written for a moment, and what comes too fast
for the disk is lost, and counted in the next line that is written.
"""

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .not_running import NotRunning

if TYPE_CHECKING:
    from .server import Server

LOG: Final = logging.getLogger(__name__)
#: Seconds.
PAUSE: Final = 0.1


class AccessLog:
    """Appends to `path` until it is stopped. Raises OSError where it cannot be opened."""

    def __init__(self, server: "Server", path: Path) -> None:
        self._server = server
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._ended = threading.Event()
        self._after = 0
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="objmapper-access-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what there is, and close."""
        self._ended.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        ended = False
        while not ended:
            # Once more after the end was told, for what came before it.
            ended = self._ended.wait(PAUSE)
            try:
                self._write()
            except NotRunning:
                return
            except OSError as error:
                LOG.error("the access log %s ends: %s", self._path, error.strerror)
                return

    def _write(self) -> None:
        recorded = self._server.recorded_requests(self._after)
        for request in recorded.requests:
            self._lost += request.number - self._after - 1
            self._after = request.number
            line = request.model_dump_json(exclude={"number"})
            if self._lost:
                line = f'{line[:-1]},"lost":{self._lost}}}'
                self._lost = 0
            self._file.write(line + "\n")
        if recorded.requests:
            self._file.flush()
