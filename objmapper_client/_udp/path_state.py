"""What is known of the way to a server over UDP, and outlives transfers: how long it takes, how much it bears."""

#: Pieces under way: at first, and at least.
FIRST_WINDOW = 10
MIN_WINDOW = 2
#: Seconds. A silence is not shorter (Linux takes as much for TCP), a repair not earlier: schedulers are late, too.
_MIN_IDLE_TIMEOUT = 0.2
_MIN_RTO = 0.01


class PathState:
    """One way. Round trips are measured and smoothed as in RFC 6298."""

    __slots__ = ("chunk", "cookie", "first_timeout", "most", "round_trip", "variation", "window")

    def __init__(self, chunk: int, first_timeout: float, most: int) -> None:
        #: Bytes of content in a piece.
        self.chunk = chunk
        #: Seconds that the first answer is waited for.
        self.first_timeout = first_timeout
        #: Pieces that the receive buffer has room for.
        self.most = max(MIN_WINDOW, most)
        self.window = min(FIRST_WINDOW, self.most)
        #: Seconds, smoothed; None before the first answer.
        self.round_trip: float | None = None
        self.variation = 0.0
        self.cookie = b""

    @property
    def rto(self) -> float:
        """Seconds after which a piece is missed, once others that were asked for with it have come."""
        return max(_MIN_RTO, (self.round_trip or 0.0) + 4 * self.variation)

    @property
    def idle_timeout(self) -> float:
        """Seconds after which nothing at all is a silence."""
        return self.first_timeout if self.round_trip is None else max(_MIN_IDLE_TIMEOUT, self.rto)

    def add_rtt_sample(self, seconds: float) -> None:
        """Takes a round trip into account."""
        if self.round_trip is None:
            self.round_trip, self.variation = seconds, seconds / 2
        else:
            self.variation += (abs(self.round_trip - seconds) - self.variation) / 4
            self.round_trip += (seconds - self.round_trip) / 8
