"""Congestion control with CUBIC (RFC 9438), as the reference's peers do it.

CUBIC and not NewReno: tunnels cross the Internet to NAT'd sites, and after a loss on a path of 100 ms NewReno needs minutes to
use 1 Gbit/s again. Slow start and the minimum window are those of RFC 9002 section 7. Sizes in bytes, times in seconds.
"""

from typing import Final

_CUBE: Final[float] = 0.4
"""C of RFC 9438 section 4.1, in datagrams per cubic second."""

_BETA: Final[float] = 0.7
"""The window after a loss, as a part of the one before (RFC 9438 section 4.6)."""

_RENO_FRIENDLY: Final[float] = 3 * (1 - _BETA) / (1 + _BETA)
"""Datagrams per window of acknowledgements by which NewReno would grow with this `_BETA` (RFC 9438 section 4.3)."""

MAX_WINDOW_BYTES: Final = 16 << 20
"""The window does not grow above this: what a path of 1 Gbit/s and 130 ms holds."""

_INITIAL_BYTES: Final = 14_720


class Congestion:
    """Congestion window and bytes in flight of one path."""

    __slots__ = (
        "_epoch_at",
        "_k",
        "_recovery_at",
        "_reno_window",
        "_window_max",
        "datagram_bytes",
        "in_flight",
        "slow_start_threshold",
        "window",
    )

    def __init__(self, datagram_bytes: int) -> None:
        self.in_flight = 0
        self.datagram_bytes = datagram_bytes
        self.window = 0
        self.slow_start_threshold: int | None = None
        """None until the first loss."""
        self._recovery_at: float = -1.0
        """When the last reduction was; losses of packets sent before it are part of the same event."""
        self._epoch_at: float | None = None
        """When the current period of congestion avoidance began; None: with the next acknowledgement."""
        self._window_max: float = 0.0
        self._reno_window: float = 0.0
        self._k: float = 0.0
        self.reset()

    def reset(self) -> None:
        """Start again as on a new path (RFC 9000 section 9.4); bytes in flight stay."""
        datagram = self.datagram_bytes
        self.window = min(10 * datagram, max(_INITIAL_BYTES, 2 * datagram))
        self.slow_start_threshold = None
        self._recovery_at = -1.0
        self._epoch_at = None
        self._window_max = 0.0

    def use_datagram_bytes(self, size: int) -> None:
        """Another datagram size is in use: the smallest window is two of them (RFC 9002 section 7.2)."""
        self.datagram_bytes = size
        self.window = max(self.window, 2 * size)

    def is_used(self) -> bool:
        """Whether so much of the window is used that it may grow (RFC 9002 section 7.8)."""
        return self.in_flight * 2 >= self.window

    def on_acked(self, size: int, sent_at: float, now: float, rtt_s: float) -> None:
        """A packet of `size` bytes, which counted in flight, was acknowledged while the window was used."""
        if sent_at <= self._recovery_at or self.window >= MAX_WINDOW_BYTES:
            return
        threshold = self.slow_start_threshold
        if threshold is None or self.window < threshold:
            self.window += size
            return
        datagram: float = float(self.datagram_bytes)
        window: float = float(self.window)
        started = self._epoch_at
        if started is None:
            started = self._epoch_at = now
            self._reno_window = window
            if window < self._window_max:
                self._k = ((self._window_max - window) / datagram / _CUBE) ** (1 / 3)
            else:
                self._k = 0.0
                self._window_max = window
        grown: float = now - started + rtt_s - self._k
        target: float = self._window_max + _CUBE * grown * grown * grown * datagram
        target = min(max(target, window), 1.5 * window)
        rate: float = 1.0 if self._reno_window >= self._window_max else _RENO_FRIENDLY
        self._reno_window += rate * datagram * size / window
        self.window = int(max(window + (target - window) * size / window, self._reno_window))

    def on_not_used(self) -> None:
        """Acknowledgements came while the window was not used: the time does not count as growth (RFC 9438 section 5.8)."""
        self._epoch_at = None

    def on_lost(self, latest_sent_at: float, now: float) -> None:
        """Packets were lost, the latest of them sent at `latest_sent_at`: reduce the window once per round trip."""
        if latest_sent_at <= self._recovery_at:
            return
        self._recovery_at = now
        window: float = float(self.window)
        # Fast convergence (RFC 9438 section 4.7): give up more if the window did not reach the last maximum.
        self._window_max = window if window >= self._window_max else window * (1 + _BETA) / 2
        self.window = max(int(window * _BETA), 2 * self.datagram_bytes)
        self.slow_start_threshold = self.window
        self._epoch_at = None

    def on_persistent_congestion(self) -> None:
        """Nothing got through for a long time: start with the smallest window (RFC 9002 section 7.6)."""
        self.window = 2 * self.datagram_bytes
        self._recovery_at = -1.0
        self._epoch_at = None
