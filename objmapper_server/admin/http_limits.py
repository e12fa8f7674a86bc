"""The limits of HTTP connections to the admin endpoint: their time and their number.

Rule: all admin connections, with those that wait to be accepted, fit into the 32 descriptors that the data plane leaves
free (`RESERVED_DESCRIPTORS` in the engine), so that they take none from clients.
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

#: Maximum connections. A further one closes the connection that has been idle longest.
MAX_CONNECTIONS: Final = 16
#: Connections that one loop iteration may accept before it checks the maximum.
BACKLOG: Final = 8
#: Seconds from a request's first byte to the last byte of its answer; a new connection's first request starts at once.
REQUEST_TIMEOUT: Final = 10.0
#: Seconds between two requests.
IDLE_TIMEOUT: Final = 15
#: Seconds that pending requests have to finish when the endpoint stops.
STOP_TIMEOUT: Final = 1.0
#: Maximum bytes of a request's line and headers.
MAX_HEADER_SIZE: Final = 16 << 10


class LimitedHttp(H11Protocol):
    """HTTP/1.1 with deadlines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._active_at = self.loop.time()
        # Do not log clients' errors. The application logs its own.
        self.logger = logging.Logger("objmapper_server.http", logging.CRITICAL)
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start the deadline. Over the maximum, close the connection that has been idle longest."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "peer_uid": peer_uid(transport.get_extra_info("socket"))}
        self._start_deadline()
        others = [other for other in self.connections if isinstance(other, LimitedHttp) and other is not self]
        if len(others) >= MAX_CONNECTIONS:
            oldest = min(others, key=LimitedHttp.closing_order)
            # `connection_lost` comes later; do not choose it again until then.
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the deadline with a request's first byte."""
        if self._deadline is None:
            self._start_deadline()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Stop the deadline when the answer has been sent, unless the next request has started."""
        if not self.transport.get_write_buffer_size():
            self._stop_deadline()
        self._active_at = self.loop.time()
        super().on_response_complete()
        if self._deadline is None and not self.transport.is_closing() and not self._is_between_requests:
            self._start_deadline()

    def shutdown(self) -> None:
        """Finish the pending request within `STOP_TIMEOUT` seconds."""
        super().shutdown()
        self.loop.call_later(STOP_TIMEOUT, self.transport.abort)

    @property
    def _is_busy(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    @property
    def _is_between_requests(self) -> bool:
        has_request = cast("RequestResponseCycle | None", self.cycle) is not None
        return has_request and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def closing_order(self) -> tuple[bool, float]:
        """Order of closing: connections without a pending request first, then the longest idle one."""
        return self._is_busy, self._active_at

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT, self._on_deadline)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        # Between two requests the deadline applies only to an answer that the client has not read yet.
        if not self._is_between_requests or self.transport.get_write_buffer_size():
            # `close` would wait for a client that does not read.
            self.transport.abort()


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user of the client on a Unix socket; None for other sockets."""
    if connection.family != socket.AF_UNIX:
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
