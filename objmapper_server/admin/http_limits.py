"""What one HTTP connection of the admin endpoint may cost: its time, and how many there are at once.

Rule: all admin connections together, with those that still wait to be accepted, fit into the descriptors that the data
plane leaves free (32, `RESERVED_DESCRIPTORS` in the engine). Connections here take none from there.
"""

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

#: Connections at once; one more, and the one that has been idle longest goes.
CONNECTIONS: Final = 16
#: Connections that are accepted in one go, before the number above is looked at.
BACKLOG: Final = 8
#: Seconds from a request's first byte to the last byte of its answer; a new connection's first request starts at once.
REQUEST_TIME: Final = 10.0
#: Seconds between two requests.
IDLE_TIME: Final = 15
#: Seconds that a request under way gets when the endpoint ends.
GRACE: Final = 1.0
#: Bytes of a request's line and headers.
HEADERS: Final = 16 << 10


class LimitedHttp(H11Protocol):
    """HTTP/1.1 with an end to everybody's patience."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._heard_at = self.loop.time()
        # What a client does wrong is no news; what goes wrong here is logged by the application.
        self.logger = logging.Logger("objmapper_server.http", logging.CRITICAL)
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin, and make room."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "peer_uid": peer_uid(transport.get_extra_info("socket"))}
        self._start_deadline()
        others = [each for each in self.connections if isinstance(each, LimitedHttp) and each is not self]
        if len(others) >= CONNECTIONS:
            oldest = min(others, key=LimitedHttp.precedence)
            # Its loss is told later; until then it is not chosen again.
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come; a request's time starts with its first byte."""
        if self._deadline is None:
            self._start_deadline()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Stop the clock once an answer is on its way, unless the next request has begun already."""
        if not self.transport.get_write_buffer_size():
            self._stop_deadline()
        self._heard_at = self.loop.time()
        super().on_response_complete()
        if self._deadline is None and not self.transport.is_closing() and not self._between:
            self._start_deadline()

    def shutdown(self) -> None:
        """Finish what is under way, but not for ever."""
        super().shutdown()
        self.loop.call_later(GRACE, self.transport.abort)

    @property
    def _busy(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    @property
    def _between(self) -> bool:
        begun = cast("RequestResponseCycle | None", self.cycle) is not None
        return begun and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def precedence(self) -> tuple[bool, float]:
        """Which is dropped first: one without a request under way, then the one that has been silent longest."""
        return self._busy, self._heard_at

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_TIME, self._too_late)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        # Between two requests this clock is stopped, but for an answer that the client has not taken yet.
        if not self._between or self.transport.get_write_buffer_size():
            # close() would wait for a client that does not read.
            self.transport.abort()


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user at the other end of a Unix socket; None where it is none."""
    if connection.family != socket.AF_UNIX:
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
