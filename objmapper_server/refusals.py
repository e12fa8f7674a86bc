"""What was refused to users who may not have it, in the log: a line a second at most, however many there were."""

import logging
import threading
from typing import TYPE_CHECKING, Final

from .not_running import NotRunning

if TYPE_CHECKING:
    from . import _engine
    from .server import Server

LOG: Final = logging.getLogger(__name__)
#: Seconds.
PAUSE: Final = 1.0
#: What happened, by the engine's name of the reason.
WHAT: Final = {
    "user": "is not among those who may connect (allow_uid, allow_gid)",
    "prefix": "may not use {uri!r} (allow_prefix)",
    "connections": "has as many connections as one user may have (max_connections_per_uid)",
    "descriptors": "has as many unread descriptors as one user may have (max_descriptors_per_uid)",
}


class RefusalLog:
    """Tells of refusals until it is stopped."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="objmapper-refusals", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell of what there is, and end."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            # Once more after the end was told, for what came before it.
            ended = self._ended.wait(PAUSE)
            try:
                refusal = self._server.take_refusal()
            except NotRunning:
                return
            if refusal is not None:
                LOG.warning(_line(refusal), extra={"facts": {"event": "refused", **refusal}})


def _line(refusal: "_engine.Refusal") -> str:
    who = "a client without a user" if refusal["uid"] is None else f"uid {refusal['uid']} (pid {refusal['pid']})"
    line = f"refused: {who} {WHAT[refusal['reason']].format(uri=refusal['uri'])}"
    return f"{line}; and {refusal['suppressed']} more" if refusal["suppressed"] else line
