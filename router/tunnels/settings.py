"""The limits and times of the tunnels, with the documented defaults."""

from dataclasses import dataclass

from router.tunnels.pending import PENDING
from tunnel_protocol.handshake import MAX_HANDSHAKE_BYTES


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """All of them in milliseconds unless the name says otherwise."""

    connect_timeout_ms: int = 2_000
    """QUIC handshake of one direct connection; also how long a refused worker gets to read the reason."""

    request_timeout_ms: int = 30_000
    """Upper bound of one health probe."""

    reverse_connect_timeout_ms: int = 10_000
    """How long one registration update waits for its reverse tunnel."""

    direct_connections: int = 1
    """Connections in the set of a direct inference server."""

    handshake_timeout_ms: int = 10_000
    """From a completed QUIC handshake to the decision about the tunnel handshake; a worker itself gives up after 5 s."""

    max_handshake_bytes: int = MAX_HANDSHAKE_BYTES
    """Size limit of the one message a worker sends before it is known."""

    max_pending_handshakes: int = PENDING.pieces or 0
    """Connections that have not said who they are, and as many whose claim is being decided. One more makes one of them go."""

    health_interval_ms: int = 1_000
    """Pause between the end of one health probe and the start of the next."""

    silence_ms: int = 1_800
    """A probe unanswered for this long, without any other sign of life, makes a worker lost."""

    direct_grace_ms: int = 2_000
    """How long a direct inference server whose connections are gone still counts as connected."""
