"""Loss detection and probe timeouts of one packet number space (RFC 9002 sections 5 and 6, appendix A).

Times are seconds of the caller's monotonic clock.
"""

from bisect import bisect_left, bisect_right
from typing import Final

from tunnel_protocol.quic.congestion import Congestion
from tunnel_protocol.quic.sent_packet import SentPacket

GRANULARITY_S: Final[float] = 0.001
"""The smallest time that timers can distinguish (RFC 9002 section 6.1.2)."""

INITIAL_RTT_S: Final[float] = 0.333
"""The round trip assumed before the first sample (RFC 9002 section 6.2.2)."""

_PACKET_THRESHOLD: Final = 3
_TIME_THRESHOLD: Final[float] = 9 / 8
_PERSISTENT_PTOS: Final = 3

MAX_PACKETS_IN_FLIGHT: Final = 16_384
"""Packets sent and neither acknowledged nor lost: packet numbers are sent with two bytes, which tell half of 65,536 apart."""


class LossRecovery:
    """Packets in flight and the round trip time."""

    __slots__ = (
        "_first_sample_at",
        "_last_sent_at",
        "_latest",
        "_max_ack_delay_s",
        "_minimum",
        "_newest_acked_at",
        "_path_begins",
        "_variance",
        "confirmed",
        "congestion",
        "largest_acked",
        "loss_at",
        "probes_due",
        "pto_count",
        "sent",
        "smoothed",
    )

    def __init__(self, congestion: Congestion, max_ack_delay_s: float, confirmed: bool) -> None:
        self.congestion = congestion
        self.confirmed = confirmed
        """Whether the handshake is confirmed; probe timeouts begin then (RFC 9002 section 6.2.1)."""
        self.sent: dict[int, SentPacket] = {}
        """Packets neither acknowledged nor lost, in sending order."""
        self.largest_acked = -1
        self.loss_at: float | None = None
        """When the next packet counts as lost."""
        self.pto_count = 0
        """Consecutive probe timeouts."""
        self.probes_due = 0
        """Packets to send without regard to the congestion window, because of a probe timeout."""
        self.smoothed: float = 0.0
        """Smoothed round trip time; 0 before the first sample."""
        self._variance: float = 0.0
        self._latest: float = 0.0
        self._minimum: float = 0.0
        self._first_sample_at: float | None = None
        self._max_ack_delay_s: float = max_ack_delay_s
        self._last_sent_at: float = 0.0
        self._path_begins = 0
        """Number of the first packet that may have been sent on the present path."""
        self._newest_acked_at: float = 0.0
        """Sending time of the packet with the largest number that is acknowledged."""

    def use_handshake_sample(self, smoothed: float, variance: float, now: float) -> None:
        """Begin with the round trip time that the handshake has measured."""
        self.smoothed = self._latest = self._minimum = smoothed
        self._variance = variance
        self._first_sample_at = now

    def leave_path(self, next_number: int) -> None:
        """The path has changed: what was sent before packet `next_number` says nothing about the new one (RFC 9000 section 9.4)."""
        self._first_sample_at = None
        self._path_begins = next_number
        for packet in self.sent.values():
            packet.in_flight = False
        self.congestion.in_flight = 0
        self.congestion.reset()

    def pto_s(self) -> float:
        """The probe timeout without backoff (RFC 9002 section 6.2.1)."""
        if self._first_sample_at is None:
            return 2 * INITIAL_RTT_S + self._max_ack_delay_s
        return self.smoothed + max(4 * self._variance, GRANULARITY_S) + self._max_ack_delay_s

    def deadline(self) -> float | None:
        """When to call `on_timeout`; None if nothing is in flight."""
        if self.loss_at is not None:
            return self.loss_at
        if not self.sent or not self.confirmed:
            return None
        return self._last_sent_at + self.pto_s() * (1 << min(self.pto_count, 30))

    def on_packet_sent(self, packet: SentPacket) -> None:
        """Remember an ack-eliciting packet."""
        self.sent[packet.number] = packet
        self._last_sent_at = packet.sent_at
        if packet.in_flight:
            self.congestion.in_flight += packet.size

    def on_ack(self, largest: int, ranges: list[tuple[int, int]], delay_s: float, now: float) -> list[SentPacket]:
        """Remove and return the packets that an ACK frame acknowledges; updates round trip time and congestion window."""
        acked = self._remove_acked(largest, ranges)
        if not acked:
            return acked
        congestion = self.congestion
        used = congestion.is_used()
        for packet in acked:
            if packet.in_flight:
                congestion.in_flight -= packet.size
                if used:
                    congestion.on_acked(packet.size, packet.sent_at, now, self.smoothed)
        if not used:
            congestion.on_not_used()
        for packet in (acked[0], acked[-1]):
            if packet.number == largest >= self._path_begins:
                self._measure(now - packet.sent_at, delay_s, now)
                break
        self.pto_count = 0
        self.probes_due = 0
        return acked

    def _remove_acked(self, largest: int, ranges: list[tuple[int, int]]) -> list[SentPacket]:
        sent = self.sent
        if largest > self.largest_acked:
            self.largest_acked = largest
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
        return [sent.pop(number) for number in numbers]

    def detect_lost(self, acked: list[SentPacket], now: float) -> list[SentPacket]:
        """Remove and return the packets that count as lost (RFC 9002 section 6.1); `acked` is what was just acknowledged."""
        self.loss_at = None
        largest = self.largest_acked
        delay: float = max(_TIME_THRESHOLD * max(self._latest, self.smoothed), GRANULARITY_S)
        lost: list[SentPacket] = []
        for number, packet in self.sent.items():
            if number >= largest:
                break
            if number <= largest - _PACKET_THRESHOLD or packet.sent_at + delay <= now:
                lost.append(packet)
            elif self.loss_at is None or packet.sent_at + delay < self.loss_at:
                self.loss_at = packet.sent_at + delay
        if lost:
            self._on_lost(lost, acked, now)
        self.note_acked(acked)
        return lost

    def note_acked(self, acked: list[SentPacket]) -> None:
        """Remember how late a packet was sent that is acknowledged; `detect_lost` does it itself."""
        for packet in acked:
            if packet.sent_at > self._newest_acked_at:
                self._newest_acked_at = packet.sent_at

    def _on_lost(self, lost: list[SentPacket], acked: list[SentPacket], now: float) -> None:
        congestion = self.congestion
        first_at: float | None = None
        last_at: float = 0.0
        for packet in lost:
            del self.sent[packet.number]
            if packet.in_flight:
                congestion.in_flight -= packet.size
                if first_at is None:
                    first_at = packet.sent_at
                last_at = packet.sent_at
        if first_at is None:
            return
        congestion.on_lost(last_at, now)
        sample_at = self._first_sample_at
        if (
            sample_at is not None
            and first_at > sample_at
            and first_at > self._newest_acked_at
            and last_at - first_at > _PERSISTENT_PTOS * self.pto_s()
            and all([packet.sent_at > last_at for packet in acked])  # noqa: C419 - compiled, a list is faster
        ):
            congestion.on_persistent_congestion()

    def on_timeout(self, now: float) -> list[SentPacket]:
        """The deadline has passed: returns lost packets, or asks for probes (`probes_due`)."""
        if self.loss_at is not None:
            return self.detect_lost([], now)
        self.pto_count += 1
        self.probes_due = 2 if self.pto_count > 1 else 1
        return []

    def forget(self) -> None:
        """The connection has ended."""
        self.sent.clear()
        self.loss_at = None

    def _measure(self, latest: float, delay_s: float, now: float) -> None:
        """A sample of the round trip time (RFC 9002 section 5.3)."""
        latest = max(latest, GRANULARITY_S)
        self._latest = latest
        if self._first_sample_at is None:
            self._first_sample_at = now
            self._minimum = self.smoothed = latest
            self._variance = latest / 2
            return
        if latest < self._minimum:
            self._minimum = latest
        adjusted: float = latest
        delay_s = min(delay_s, self._max_ack_delay_s)
        if latest >= self._minimum + delay_s:
            adjusted = latest - delay_s
        self._variance += (abs(self.smoothed - adjusted) - self._variance) / 4
        self.smoothed += (adjusted - self.smoothed) / 8
