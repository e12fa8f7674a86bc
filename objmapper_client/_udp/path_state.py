"""The state of the network path to a server: round-trip time and congestion window. It outlives transfers."""

#: Initial and minimum window, in pieces.
FIRST_WINDOW = 10
MIN_WINDOW = 2
#: Minimum timeouts in seconds (0.2 as in Linux TCP); shorter ones would expire because of scheduling delays.
_MIN_IDLE_TIMEOUT = 0.2
_MIN_RTO = 0.01


class PathState:
    """The state of one network path. Round-trip times are smoothed as in RFC 6298."""

    __slots__ = ("chunk", "cookie", "first_timeout", "max_window", "round_trip", "variation", "window")

    def __init__(self, chunk: int, first_timeout: float, max_window: int) -> None:
        #: Bytes of content in a piece.
        self.chunk = chunk
        #: Seconds to wait for the first response.
        self.first_timeout = first_timeout
        #: Pieces that fit into the receive buffer.
        self.max_window = max(MIN_WINDOW, max_window)
        self.window = min(FIRST_WINDOW, self.max_window)
        #: Smoothed round-trip time in seconds; None before the first response.
        self.round_trip: float | None = None
        self.variation = 0.0
        self.cookie = b""

    @property
    def rto(self) -> float:
        """Seconds after which a piece counts as lost, if pieces requested with it or later have come."""
        return max(_MIN_RTO, (self.round_trip or 0.0) + 4 * self.variation)

    @property
    def idle_timeout(self) -> float:
        """Seconds without any progress after which the window counts as lost."""
        return self.first_timeout if self.round_trip is None else max(_MIN_IDLE_TIMEOUT, self.rto)

    def add_rtt_sample(self, seconds: float) -> None:
        """Updates the smoothed round-trip time with a measured one, in seconds."""
        if self.round_trip is None:
            self.round_trip, self.variation = seconds, seconds / 2
        else:
            self.variation += (abs(self.round_trip - seconds) - self.variation) / 4
            self.round_trip += (seconds - self.round_trip) / 8
