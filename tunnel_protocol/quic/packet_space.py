"""The application data packet number space: packets received, packets in flight, acknowledgements due (RFC 9000 section 13.2).

It replaces the packet space object of a QUIC library and has all of its attributes, so that the library's code works with it.
`on_packet_received`, `ack_frame` and `acknowledged` are the fast paths for ordinary packets. Times are seconds of the caller's
monotonic clock.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from tunnel_protocol.quic.packets import varint
from tunnel_protocol.quic.ranges import Ranges

MAX_RANGES = 64
"""Ranges of received packet numbers kept for ACK frames; the oldest are dropped."""

WINDOW_PACKETS = 2 * MAX_RANGES
"""Packet numbers this far below the largest count as received (duplicates); dropped ranges only hold such numbers."""

_BYTES_PER_RANGE = 32
"""Upper estimate of the size of one range in an ACK frame."""


Handlers = list[tuple[Any, tuple[Any, ...]]]
"""Functions to call when a packet was acknowledged or lost, each with its additional arguments."""


class SentPacket:
    """A sent packet as loss recovery (RFC 9002) keeps it: the attributes of the library's record, cheaper to create."""

    __slots__ = (
        "delivery_handlers",
        "epoch",
        "in_flight",
        "is_ack_eliciting",
        "is_crypto_packet",
        "packet_number",
        "packet_type",
        "sent_bytes",
        "sent_time",
    )

    def __init__(
        self,
        packet_number: int,
        sent_time: float,
        sent_bytes: int,
        delivery_handlers: Handlers,
        *,
        in_flight: bool,
        epoch: Any,
        packet_type: Any,
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.delivery_handlers = delivery_handlers
        self.in_flight = in_flight
        self.is_ack_eliciting = True
        self.is_crypto_packet = False
        self.epoch = epoch
        self.packet_type = packet_type


class Acknowledged(NamedTuple):
    """The result of processing an ACK frame."""

    packets: list[Any]
    """The newly acknowledged packets, in sending order within each range."""
    flight_bytes: int
    """Bytes that these packets had in flight."""
    largest_sent_at: float | None
    """Sending time of the largest acknowledged packet if it is newly acknowledged and ack-eliciting (RFC 9002 section 5.1)."""


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


class AckRanges:
    """Packet numbers to acknowledge, as ascending disjoint ranges; reads like a sequence of `range`."""

    __slots__ = ("ranges",)

    def __init__(self) -> None:
        self.ranges = Ranges()

    def __len__(self) -> int:
        return len(self.ranges.starts)

    def __getitem__(self, index: int) -> range:
        return range(self.ranges.starts[index], self.ranges.stops[index])

    def __iter__(self) -> Iterator[range]:
        return iter([range(start, stop) for start, stop in zip(self.ranges.starts, self.ranges.stops, strict=True)])

    def add(self, start: int, stop: int | None = None) -> None:
        """Add one number, or `[start, stop)`."""
        stops = self.ranges.stops
        if stop is None:
            stop = start + 1
            if stops and stops[-1] == start:
                stops[-1] = stop
                return
        self.ranges.add(start, stop)

    def shift(self) -> range:
        """Remove and return the oldest range."""
        return range(self.ranges.starts.pop(0), self.ranges.stops.pop(0))

    def subtract(self, start: int, stop: int) -> None:
        """Remove `[start, stop)`, which the peer has seen acknowledged; there must be nothing below `start`."""
        starts, stops = self.ranges.starts, self.ranges.stops
        while starts and stops[0] <= stop:
            self.shift()
        if starts and starts[0] < stop and stops[0] > start:
            starts[0] = stop


class PacketSpace:
    """The application data packet number space of one connection."""

    __slots__ = (
        "_ack_after",
        "_ack_delay_s",
        "_least_counted",
        "ack_at",
        "ack_eliciting_in_flight",
        "ack_queue",
        "discarded",
        "expected_packet_number",
        "is_application_data",
        "largest_acked_packet",
        "largest_received_packet",
        "largest_received_time",
        "loss_time",
        "received_packets",
        "sent_packets",
        "unacknowledged",
    )

    def __init__(self, *, ack_after_bytes: int, least_counted_bytes: int, ack_delay_s: float) -> None:
        self._ack_after = ack_after_bytes
        self._least_counted = least_counted_bytes
        self._ack_delay_s = ack_delay_s
        self.unacknowledged = 0
        """Bytes of ack-eliciting packets received since the last ACK was sent; small packets count with a minimum size."""
        self.ack_at: float | None = None
        """Latest time to send an ACK; None if none is due."""
        self.ack_queue = AckRanges()
        self.discarded = False
        self.is_application_data = True
        self.expected_packet_number = 0
        self.largest_received_packet = -1
        self.largest_received_time: float | None = None
        self.received_packets = ReceivedPacketNumbers()
        self.ack_eliciting_in_flight = 0
        self.largest_acked_packet = 0
        self.loss_time: float | None = None
        self.sent_packets: dict[int, Any] = {}
        """Sent packets that are neither acknowledged nor lost, by packet number, in sending order."""

    def is_new(self, number: int) -> bool:
        """Whether packet `number` has not been received before."""
        return number not in self.received_packets

    def on_packet_received(self, number: int, now: float, size: int) -> bool:
        """Record a received packet and schedule its acknowledgement; True if `ack_at` became earlier.

        `size` is in bytes, 0 for packets that are not ack-eliciting. Bytes are counted instead of packets because the sender's
        congestion window is in bytes: many small chunks do not need an ACK every few packets.
        """
        expected = self.largest_received_packet + 1
        if number >= expected:
            self.largest_received_packet = number
            self.largest_received_time = now
        if number >= self.expected_packet_number:
            self.expected_packet_number = number + 1
        self.ack_queue.add(number)
        self.received_packets.add(number)
        if len(self.ack_queue) > MAX_RANGES:
            self.ack_queue.shift()
        if not size:
            return False
        self.unacknowledged += max(size, self._least_counted)
        if number != expected or self.unacknowledged >= self._ack_after:
            self.ack_at = now
            return True
        if self.ack_at is None:
            self.ack_at = now + self._ack_delay_s
            return True
        return False

    def ack_due(self, now: float) -> bool:
        """Whether an ACK must be sent at `now`."""
        return self.ack_at is not None and self.ack_at <= now

    def ack_frame(self, now: float, max_bytes: int, delay_exponent: int) -> bytes:
        """An ACK frame with the newest ranges, as many as fit in `max_bytes` bytes (RFC 9000 section 19.3)."""
        starts, stops = self.ack_queue.ranges.starts, self.ack_queue.ranges.stops
        at = len(starts) - 1
        received_at = self.largest_received_time
        delay = 0 if received_at is None else max(0, int((now - received_at) * 1_000_000)) >> delay_exponent
        more = min(at, max(0, max_bytes // _BYTES_PER_RANGE - 1))
        parts = [b"\x02", varint(stops[at] - 1), varint(delay), varint(more), varint(stops[at] - starts[at] - 1)]
        for _ in range(more):
            smallest = starts[at]
            at -= 1
            parts.append(varint(smallest - stops[at] - 1))
            parts.append(varint(stops[at] - starts[at] - 1))
        return b"".join(parts)

    def acknowledged(self, largest: int, ranges: list[tuple[int, int]]) -> Acknowledged:
        """Remove the packets that the peer's ACK frame acknowledges from `sent_packets` (RFC 9000 section 13.1)."""
        sent = self.sent_packets
        if largest > self.largest_acked_packet:
            self.largest_acked_packet = largest
        numbers: list[int] = []
        if len(ranges) > 1:
            known = list(sent)
            for low, high in ranges:
                numbers += known[bisect_left(known, low) : bisect_right(known, high)]
        else:
            low, high = ranges[0]
            for number in sent:
                if number > high:
                    break
                if number >= low:
                    numbers.append(number)
        packets: list[Any] = []
        flight_bytes = 0
        largest_sent_at: float | None = None
        for number in numbers:
            packet = sent.pop(number)
            packets.append(packet)
            if packet.is_ack_eliciting:
                self.ack_eliciting_in_flight -= 1
                if number == largest:
                    largest_sent_at = packet.sent_time
            if packet.in_flight:
                flight_bytes += packet.sent_bytes
        return Acknowledged(packets, flight_bytes, largest_sent_at)

    def ack_sent(self) -> None:
        """Record that an ACK of all received packets was sent."""
        self.ack_at = None
        self.unacknowledged = 0
