"""Pacing: spreads a congestion window over the round trip (RFC 9002 section 7.7). Sizes in bytes, times in seconds."""

from typing import Final

_MIN_BURST_DATAGRAMS: Final = 32
"""Datagrams that may be sent at once whatever the rate is."""

_MAX_BURST_DATAGRAMS: Final = 256

_BURST_S: Final[float] = 0.005
"""What the rate allows in this time may be sent at once: event loops wake up no more often than about each millisecond, and a
whole run of datagrams costs little more than one."""

_AHEAD: Final[float] = 1.25
"""The rate, as a multiple of a window per round trip, so that pacing alone never leaves the window unused."""

_MIN_RTT_S: Final[float] = 0.001


class Pacer:
    """A token bucket; call `refill` before sending, and subtract what is sent from `tokens`."""

    __slots__ = ("_at", "_bucket_bytes", "_rate", "tokens")

    def __init__(self) -> None:
        self.tokens: float = 0.0
        """Bytes that may be sent now; the packet that uses up the last of them may be larger."""
        self._at: float = 0.0
        self._rate: float = 1.0
        self._bucket_bytes: float = 0.0

    def refill(self, now: float, window: int, rtt_s: float, datagram_bytes: int) -> None:
        """Add what the time since the last call is worth at the present rate."""
        rate: float = _AHEAD * window / max(rtt_s, _MIN_RTT_S)
        bucket: float = min(
            max(_MIN_BURST_DATAGRAMS * datagram_bytes, rate * _BURST_S), float(_MAX_BURST_DATAGRAMS * datagram_bytes)
        )
        self.tokens = min(bucket, self.tokens + (now - self._at) * rate)
        self._at = now
        self._rate = rate
        self._bucket_bytes = bucket

    def wait_s(self) -> float:
        """How long to wait, with no tokens left, until half of a burst may be sent; at least a millisecond."""
        return max(0.001, (self._bucket_bytes / 2 - self.tokens) / self._rate)
