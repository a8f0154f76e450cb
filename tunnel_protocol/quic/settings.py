"""Limits and timers of QUIC connections. The defaults are those of the reference router and worker (RFC 9000 section 18.2).

Router and worker share these defaults; the router's options take their defaults from here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunnel_protocol.limit import Limit
from tunnel_protocol.observers.line_writer import LineWriter

CONNECTIONS: Final = Limit("quic.connections", pieces=16_384)
HALF_OPEN: Final = Limit("quic.half_open", pieces=512)
STREAM_OPENERS: Final = Limit("quic.stream_openers", pieces=1_024)


@dataclass(frozen=True, slots=True)
class QuicSettings:
    """Settings of all connections of an endpoint. Sizes in bytes, times in milliseconds."""

    idle_timeout_ms: int = 30_000
    """A connection that receives nothing for this long ends; the smaller value of both ends counts (RFC 9000 section 10.1)."""

    keepalive_ms: int = 0
    """Send a PING after receiving nothing for this long; 0 sends none."""

    handshake_timeout_ms: int = 10_000
    """An incoming connection whose handshake takes longer is abandoned."""

    max_consecutive_ptos: int = 0
    """End a connection after more than this many consecutive probe timeouts (RFC 9002 section 6.2); 0: never."""

    max_streams_bidi: int = 100
    """Bidirectional streams a peer may have open at once."""

    stream_window_bytes: int = 1_250_000
    """Flow control window of a stream: bytes a peer may send that the handler has not taken; bounds memory per stream."""

    send_buffer_bytes: int = 256 * 1024
    """High-water mark of unsent bytes per stream; the low-water mark is half of it."""

    credit_queue_limit: int = STREAM_OPENERS.pieces or 0
    """Callers that may wait for stream credit on one connection."""

    max_datagram_bytes: int = 1_452
    """Largest UDP payload to probe for; every connection starts with 1,200 bytes (RFC 9000 section 14.3)."""

    ack_delay_ms: int = 15
    """Longest delay of an ACK; peers are sent max_ack_delay 25 ms (RFC 9000 section 13.2.1)."""

    ack_every: int = 8
    """Acknowledge at once after this many packets of 1,200 bytes; smaller packets count less, but at least one eighth each."""

    max_connections: int = CONNECTIONS.pieces or 0
    """Connections of an endpoint; above it a new one is refused, unless one that has ended can be removed."""

    max_half_open: int = HALF_OPEN.pieces or 0
    """Incoming connections with an incomplete handshake; above it one is evicted for a new one (`quic.admission`)."""

    receive_batch: int = 256
    """Datagrams read from the socket before the event loop does other work."""

    cid_prefix: bytes = b""
    """First bytes of the connection ids of incoming connections (`pod_tag`); the others are random."""

    qlog_dir: Path | None = None
    """Directory for one qlog trace per connection; None writes none. Traces switch the fast paths off."""

    key_log: LineWriter | None = None
    """Receives TLS secrets in NSS key log format, for decrypting captures. Its creator closes it."""

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
        if len(self.cid_prefix) > 4:
            raise ValueError("cid_prefix must have at most 4 bytes")  # half of a connection id must stay random
        if self.ack_every < 1 or self.receive_batch < 1:
            raise ValueError("ack_every and receive_batch must be at least 1")
