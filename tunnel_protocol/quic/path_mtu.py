"""Finds the largest datagram a path carries by sending padded PINGs (RFC 9000 section 14.3, RFC 8899), and notices when
it no longer does. A state machine without clock and packets: the engine sends the probes and tells what became of them.
"""

BASE_BYTES = 1_200
"""What every QUIC path must carry."""

_ATTEMPTS = 3
"""A probe size is given up after this many losses: one loss may be ordinary."""

_STEP_BYTES = 20
"""The search ends when the answer is known this closely."""

_BLACK_HOLE_LOSSES = 8
"""So many large packets lost and none acknowledged in between: the path has shrunk."""

_REPROBE_S = 600.0
_REPROBE_AFTER_BLACK_HOLE_S = 60.0


class PathMtu:
    """`current` is the datagram size to use; `probe_at` when to ask for `next_probe` again (None: not before an outcome)."""

    def __init__(self, max_bytes: int) -> None:
        self.current = BASE_BYTES
        self.probe_at: float | None = None
        self._max = max_bytes
        self._low = BASE_BYTES
        self._high = max_bytes
        self._size = max_bytes
        self._losses = 0
        self._large_losses = 0

    def start(self, now: float, peer_max_bytes: int) -> None:
        """Search from scratch, now that the peer told what it takes (`max_udp_payload_size`)."""
        self._max = max(BASE_BYTES, min(self._max, peer_max_bytes))
        self.current = self._low = BASE_BYTES
        self._high = self._size = self._max
        self._losses = self._large_losses = 0
        self.probe_at = now if self._max > BASE_BYTES else None

    def next_probe(self) -> int:
        """The size to probe with; its outcome must be told."""
        self.probe_at = None
        return self._size

    def probe_acked(self, size: int, now: float) -> None:
        """A probe of this size arrived."""
        if size <= self._low:
            return
        self._losses = self._large_losses = 0
        self.current = self._low = size
        self._continue(now)

    def probe_lost(self, size: int, now: float) -> None:
        """A probe of this size was lost."""
        if size != self._size:
            return
        self._losses += 1
        if self._losses >= _ATTEMPTS:
            self._high = size
            self._losses = 0
            self._continue(now)
        else:
            self.probe_at = now

    def large_acked(self) -> None:
        """A packet larger than `BASE_BYTES` arrived."""
        self._large_losses = 0

    def large_lost(self, now: float) -> bool:
        """A packet larger than `BASE_BYTES` was lost; True if `current` fell because of it."""
        self._large_losses += 1
        if self._large_losses < _BLACK_HOLE_LOSSES or self.current == BASE_BYTES:
            return False
        self.black_hole(now)
        return True

    def black_hole(self, now: float) -> None:
        """Go back to what every path carries; search again later."""
        self.current = self._low = BASE_BYTES
        self._high = self._size = self._max
        self._losses = self._large_losses = 0
        self.probe_at = now + _REPROBE_AFTER_BLACK_HOLE_S

    def _continue(self, now: float) -> None:
        if self._high - self._low <= _STEP_BYTES:
            # Done; a better path may come up later.
            self.probe_at = now + _REPROBE_S if self._low < self._max else None
            self._high = self._size = self._max
            return
        self._size = (self._low + self._high + 1) // 2
        self.probe_at = now
