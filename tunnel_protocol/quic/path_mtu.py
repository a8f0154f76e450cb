"""Datagram PLPMTUD (RFC 9000 section 14.3, RFC 8899): finds the largest datagram that a path carries, and detects when
the path no longer carries it. A state machine without clock and packets: the engine sends padded PING frames as probes
and reports their outcome.
"""

from typing import Final

BASE_BYTES: Final = 1_200
"""Datagram size that every QUIC path must carry (RFC 9000 section 14)."""

_ATTEMPTS: Final = 3
"""A probe size is abandoned after this many lost probes, because a single loss may have another cause."""

_STEP_BYTES: Final = 20
"""The search ends when the largest working size is known to this many bytes."""

_BLACK_HOLE_LOSSES: Final = 8
"""After this many lost large packets in a row the path's MTU is assumed to have shrunk (black hole, RFC 8899 section 4.3)."""

_REPROBE_S: Final = 600.0
_REPROBE_AFTER_BLACK_HOLE_S: Final = 60.0


class PathMtu:
    """`current`: datagram size to use, bytes. `probe_at`: when to call `next_probe` (None: after a probe's outcome)."""

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
        """Start the search; `peer_max_bytes` is the peer's transport parameter `max_udp_payload_size`."""
        self._max = max(BASE_BYTES, min(self._max, peer_max_bytes))
        self.current = self._low = BASE_BYTES
        self._high = self._size = self._max
        self._losses = self._large_losses = 0
        self.probe_at = now if self._max > BASE_BYTES else None

    def next_probe(self) -> int:
        """The size of the next probe in bytes; its outcome must be reported with `probe_acked` or `probe_lost`."""
        self.probe_at = None
        return self._size

    def probe_acked(self, size: int, now: float) -> None:
        """A probe of `size` bytes was acknowledged."""
        if size <= self._low:
            return
        self._losses = self._large_losses = 0
        self.current = self._low = size
        self._continue(now)

    def probe_lost(self, size: int, now: float) -> None:
        """A probe of `size` bytes was lost."""
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
        """A packet larger than `BASE_BYTES` was acknowledged."""
        self._large_losses = 0

    def large_lost(self, now: float) -> bool:
        """A packet larger than `BASE_BYTES` was lost; True if `current` was reduced because of it."""
        self._large_losses += 1
        if self._large_losses < _BLACK_HOLE_LOSSES or self.current == BASE_BYTES:
            return False
        self.black_hole(now)
        return True

    def black_hole(self, now: float) -> None:
        """Reduce `current` to `BASE_BYTES`, and search again later."""
        self.current = self._low = BASE_BYTES
        self._high = self._size = self._max
        self._losses = self._large_losses = 0
        self.probe_at = now + _REPROBE_AFTER_BLACK_HOLE_S

    def _continue(self, now: float) -> None:
        if self._high - self._low <= _STEP_BYTES:
            # The search has ended; probe again later, because the path may change.
            self.probe_at = now + _REPROBE_S if self._low < self._max else None
            self._high = self._size = self._max
            return
        self._size = (self._low + self._high + 1) // 2
        self.probe_at = now
