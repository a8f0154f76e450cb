"""Received 1-RTT packets: duplicates, and the acknowledgements that are due (RFC 9000 section 13.2).

Times are seconds of the caller's monotonic clock.
"""

from typing import Final

from tunnel_protocol.quic.ranges import Ranges
from tunnel_protocol.quic.varint import varint

MAX_RANGES: Final = 64
"""Ranges of received packet numbers kept for ACK frames; the oldest are dropped."""

WINDOW_PACKETS: Final = 2 * MAX_RANGES
"""Packet numbers this far below the largest count as received (duplicates); dropped ranges only hold such numbers."""

_BYTES_PER_RANGE: Final = 32
"""Upper estimate of the size of one range in an ACK frame."""

_DELAY_EXPONENT: Final = 3
"""Our ack_delay_exponent, the default (RFC 9000 section 18.2)."""


class ReceivedPacketNumbers:
    """Recently received packet numbers, to detect duplicates; numbers below the window count as received."""

    __slots__ = ("_lower", "_seen")

    def __init__(self) -> None:
        self._lower = 0
        self._seen: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number < self._lower or number in self._seen

    def add(self, number: int) -> None:
        """Record a number; the window ends at the largest recorded number."""
        if number < self._lower:
            return
        self._seen.add(number)
        lower = number - WINDOW_PACKETS + 1
        if lower > self._lower:
            self._lower = lower
            if len(self._seen) > 2 * WINDOW_PACKETS:
                self._seen = {one for one in self._seen if one >= lower}


class ReceivedPackets:
    """The receiving side of the application data packet number space."""

    __slots__ = (
        "_ack_after",
        "_ack_delay_s",
        "_least_counted",
        "_seen",
        "_unacknowledged",
        "ack_at",
        "expected",
        "largest_at",
        "ranges",
    )

    def __init__(self, *, ack_after_bytes: int, least_counted_bytes: int, ack_delay_s: float) -> None:
        self._ack_after = ack_after_bytes
        self._least_counted = least_counted_bytes
        self._ack_delay_s = ack_delay_s
        self._unacknowledged = 0
        """Bytes of ack-eliciting packets received since the last ACK was sent; small packets count with a minimum size."""
        self._seen = ReceivedPacketNumbers()
        self.ack_at: float | None = None
        """Latest time to send an ACK; None if none is due."""
        self.ranges = Ranges()
        """Packet numbers to acknowledge."""
        self.expected = 0
        """The largest received packet number plus 1."""
        self.largest_at = 0.0
        """When the packet with the largest number was received."""

    def is_new(self, number: int) -> bool:
        """Whether packet `number` has not been received before."""
        return number not in self._seen

    def on_packet_received(self, number: int, now: float, size: int) -> bool:
        """Record a received packet and schedule its acknowledgement; True if `ack_at` became earlier.

        `size` is in bytes, 0 for packets that are not ack-eliciting. Bytes are counted instead of packets because the sender's
        congestion window is in bytes: many small chunks do not need an ACK every few packets.
        """
        expected = self.expected
        if number >= expected:
            self.expected = number + 1
            self.largest_at = now
        ranges = self.ranges
        stops = ranges.stops
        if stops and stops[-1] == number:
            stops[-1] = number + 1
        else:
            ranges.add(number, number + 1)
            if len(stops) > MAX_RANGES:
                del ranges.starts[0], stops[0]
        self._seen.add(number)
        if not size:
            return False
        self._unacknowledged += max(size, self._least_counted)
        if number != expected or self._unacknowledged >= self._ack_after:
            # RFC 9000 section 13.2.1: at once for a packet out of order.
            self.ack_at = now
            return True
        if self.ack_at is None:
            self.ack_at = now + self._ack_delay_s
            return True
        return False

    def ack_due(self, now: float) -> bool:
        """Whether an ACK must be sent at `now`."""
        return self.ack_at is not None and self.ack_at <= now

    def ack_frame(self, now: float, max_bytes: int) -> bytes:
        """An ACK frame with the newest ranges, as many as fit in `max_bytes` bytes (RFC 9000 section 19.3)."""
        starts, stops = self.ranges.starts, self.ranges.stops
        at = len(starts) - 1
        delay = max(0, int((now - self.largest_at) * 1_000_000)) >> _DELAY_EXPONENT
        more = min(at, max(0, max_bytes // _BYTES_PER_RANGE - 1))
        parts = [b"\x02", varint(stops[at] - 1), varint(delay), varint(more), varint(stops[at] - starts[at] - 1)]
        for _ in range(more):
            smallest = starts[at]
            at -= 1
            parts.append(varint(smallest - stops[at] - 1))
            parts.append(varint(stops[at] - starts[at] - 1))
        return b"".join(parts)

    def ack_sent(self) -> None:
        """Record that an ACK of all received packets was sent."""
        self.ack_at = None
        self._unacknowledged = 0

    def on_ack_acked(self, largest: int) -> None:
        """The peer has seen an ACK up to packet `largest`: acknowledge only later ones (RFC 9000 section 13.2.4)."""
        starts, stops = self.ranges.starts, self.ranges.stops
        while len(starts) > 1 and stops[0] <= largest + 1:
            del starts[0], stops[0]
        # The last range stays, so that there is always something to acknowledge.
        if starts[0] <= largest:
            starts[0] = min(largest + 1, stops[0] - 1)
