"""What is remembered of a sent packet until it is acknowledged or lost (RFC 9002 appendix A.1)."""

from typing import Final

from tunnel_protocol.quic.stream import BidirectionalStream

STREAM: Final = 0
RESET_STREAM: Final = 1
STOP_SENDING: Final = 2
MAX_STREAM_DATA: Final = 3
MAX_STREAMS: Final = 4
STREAMS_BLOCKED: Final = 5
ACK: Final = 6
NEW_CONNECTION_ID: Final = 7
RETIRE_CONNECTION_ID: Final = 8
HANDSHAKE_DONE: Final = 9
MTU_PROBE: Final = 10
PATH_CHALLENGE: Final = 11
PING: Final = 12


class SentFrame:
    """A frame whose acknowledgement or loss matters."""

    __slots__ = ("fin", "kind", "start", "stop", "stream")

    def __init__(
        self, kind: int, stream: BidirectionalStream | None = None, start: int = 0, stop: int = 0, fin: bool = False
    ) -> None:
        self.kind = kind
        """One of the constants of this module."""
        self.stream = stream
        self.start = start
        """Offset of stream data, or the value that the frame carries (sequence number, limit, size, packet number)."""
        self.stop = stop
        self.fin = fin


class SentPacket:
    """An ack-eliciting packet; packets with only an ACK are not remembered.

    A packet of a run of stream data has no `frames`, but `stream` and what it holds of that.
    """

    __slots__ = ("fin", "frames", "in_flight", "number", "sent_at", "size", "start", "stop", "stream")

    def __init__(
        self,
        number: int,
        sent_at: float,
        size: int,
        frames: list[SentFrame],
        in_flight: bool,
        stream: BidirectionalStream | None = None,
        start: int = 0,
        stop: int = 0,
        fin: bool = False,
    ) -> None:
        self.number = number
        self.sent_at = sent_at
        """Seconds of the caller's clock."""
        self.size = size
        """Bytes of the datagram."""
        self.frames = frames
        self.in_flight = in_flight
        """Whether the packet counts for congestion control; not so for probes of the path MTU (RFC 9000 section 14.4)."""
        self.stream = stream
        self.start = start
        self.stop = stop
        self.fin = fin
