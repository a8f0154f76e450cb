"""Limits and timers of QUIC connections, with the values the reference peers use as defaults (RFC 9000 section 18.2).

Router and worker share them, so the defaults stand here; the router's options take theirs from here.
"""

from dataclasses import dataclass
from pathlib import Path

from tunnel_protocol.limit import Limit
from tunnel_protocol.observers.line_writer import LineWriter

CONNECTIONS = Limit("quic.connections", pieces=16_384)
HALF_OPEN = Limit("quic.half_open", pieces=512)
STREAM_OPENERS = Limit("quic.stream_openers", pieces=1_024)


@dataclass(frozen=True, slots=True)
class QuicSettings:
    """One value for every connection of an endpoint. Sizes in bytes, times in milliseconds."""

    idle_timeout_ms: int = 30_000
    """A connection on which nothing was received for this long is dead; the smaller value of both ends counts."""

    keepalive_ms: int = 0
    """Send a PING after this long without receiving anything; 0 is off."""

    handshake_timeout_ms: int = 10_000
    """An incoming connection whose handshake takes longer is dropped."""

    max_consecutive_ptos: int = 0
    """Give a peer up after this many probe timeouts in a row (RFC 9002 section 6.2); 0 leaves it to the idle timeout."""

    max_streams_bidi: int = 100
    """Bidirectional streams a peer may have open at once."""

    stream_window_bytes: int = 1_250_000
    """How much a peer may send on a stream beyond what the stream's owner has taken: the bound of memory per stream."""

    send_buffer_bytes: int = 256 * 1024
    """High-water mark of unsent bytes per stream; the low-water mark is half of it."""

    credit_queue_limit: int = STREAM_OPENERS.pieces or 0
    """How many may wait for stream credit on one connection."""

    max_datagram_bytes: int = 1_452
    """Largest UDP payload to try on a path; every connection starts at 1,200 and probes (RFC 9000 section 14.3)."""

    ack_delay_ms: int = 15
    """How long an acknowledgement may wait for company; peers are told 25 ms (RFC 9000 section 13.2.1)."""

    ack_every: int = 8
    """Acknowledge at once after this many packets of 1,200 bytes, or eight times as many however small they are."""

    max_connections: int = CONNECTIONS.pieces or 0
    """Connections an endpoint holds; one more is refused, unless one that has ended can go."""

    max_half_open: int = HALF_OPEN.pieces or 0
    """Incoming connections whose handshake has not completed. One more makes the most expendable of them go (`quic.admission`)."""

    receive_batch: int = 256
    """Datagrams taken from the socket before other work of the event loop gets its turn."""

    qlog_dir: Path | None = None
    """Where to write one qlog trace per connection; switches the fast paths off."""

    key_log: LineWriter | None = None
    """Takes TLS secrets in NSS key log format, for decrypting captures; stays its maker's."""

    def __post_init__(self) -> None:
        """Raise ValueError for values QUIC cannot express or this program cannot work with."""
        if not 1_200 <= self.max_datagram_bytes <= 65_527:
            raise ValueError("max_datagram_bytes must be between 1200 and 65527")
        if not 0 <= self.ack_delay_ms <= 25:
            raise ValueError("ack_delay_ms must be between 0 and 25")
        if self.stream_window_bytes < 1_024 or self.send_buffer_bytes < 1_024:
            raise ValueError("stream_window_bytes and send_buffer_bytes must be at least 1024")
        if self.max_streams_bidi < 0 or self.idle_timeout_ms < 0 or self.keepalive_ms < 0:
            raise ValueError("max_streams_bidi, idle_timeout_ms and keepalive_ms must not be negative")
        if self.ack_every < 1 or self.receive_batch < 1:
            raise ValueError("ack_every and receive_batch must be at least 1")
