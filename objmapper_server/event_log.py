"""Logs denials to users, storage failures, and a missing root: at most one line of each a second."""

import logging
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from objmapper_server.errors import NotRunning
from objmapper_server.origin_statistics import MountStatistics
from objmapper_server.start_thread import start_thread

if TYPE_CHECKING:
    from objmapper_server.server import Server

LOG: Final = logging.getLogger(__name__)
#: Seconds between two reports.
REPORT_INTERVAL: Final = 1.0
#: The text of each reason.
REASONS: Final = {
    "user": "may not connect (allow_uid, allow_gid)",
    "prefix": "may not use {uri!r} (allow_prefix)",
    "connections": "has reached its limit of connections (max_connections_per_uid)",
    "descriptors": "has reached its limit of descriptors (max_descriptors_per_uid)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Denial:
    """The first denial to a user since the last call, and the number of further ones."""

    reason: str  #: ``user``, ``prefix``, ``connections`` or ``descriptors``
    uid: int | None  #: None over a transport without users
    pid: int | None  #: 0 for a process in a PID namespace that the server cannot see
    uri: str  #: empty if it did not concern an object
    suppressed: int

    def __str__(self) -> str:
        client = "a client without a user" if self.uid is None else f"uid {self.uid} (pid {self.pid})"
        line = f"{client} {REASONS[self.reason].format(uri=self.uri)}"
        return f"{line}; and {self.suppressed} more" if self.suppressed else line


class EventLog:
    """Logs denials, storage failures, and a root that disappears or returns, until it is stopped.

    Raises OSError if it cannot start a thread.
    """

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._root_problem: str | None = None
        self._origin_problems: dict[str, str | None] = {}
        self._stop_requested = threading.Event()
        self._thread = threading.Thread(target=self._run, name="objmapper-refusals", daemon=True)
        start_thread(self._thread)

    def stop(self) -> None:
        """Log the remaining events and stop."""
        self._stop_requested.set()
        self._thread.join()

    def _run(self) -> None:
        is_stopping = False
        while not is_stopping:
            # One more report after `stop`, for the events before it.
            is_stopping = self._stop_requested.wait(REPORT_INTERVAL)
            try:
                denial, failure = self._server.take_denial(), self._server.take_storage_failure()
                root_problem = self._server.root_problem
                origins = self._server.origin_statistics()
            except NotRunning:
                return
            if denial is not None:
                LOG.warning("refused: %s", denial, extra={"facts": {"event": "refused", **asdict(denial)}})
            if failure is not None:
                facts = {"event": "storage-failed", **asdict(failure)}
                LOG.error("storage failed: %s", failure, extra={"facts": facts})
            if root_problem != self._root_problem:
                extra = {"facts": {"event": "root", "problem": root_problem}}
                if root_problem is None:
                    LOG.warning("the root is back: %s", self._server.config.root, extra=extra)
                else:
                    LOG.error("the root is gone: %s", root_problem, extra=extra)
                self._root_problem = root_problem
            for mount in () if origins is None else origins.mounts:
                self._report_origin(mount)

    def _report_origin(self, mount: MountStatistics) -> None:
        """Log that a store fails, or answers again. A store that fails in another way than before is one line more."""
        if mount.problem == self._origin_problems.get(mount.prefix):
            return
        self._origin_problems[mount.prefix] = mount.problem
        facts = {"facts": {"event": "origin", "mount": mount.prefix, "problem": mount.problem}}
        if mount.problem is None:
            LOG.warning("origin %s answers again", mount.prefix, extra=facts)
        else:
            LOG.error("origin %s (%s) fails: %s", mount.prefix, mount.store, mount.problem, extra=facts)
