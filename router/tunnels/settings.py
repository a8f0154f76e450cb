"""The limits and times of the tunnels; `router/config` fills them."""

from dataclasses import dataclass

from tunnel_protocol.limit import Limit

PENDING = Limit("tunnels.pending_handshakes", pieces=1_024)
"""Connections that have not said who they are; and, apart from these, connections that have and are being decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """All of them in milliseconds unless the name says otherwise."""

    connect_timeout_ms: int
    """QUIC handshake of one direct connection; also how long a refused worker gets to read the reason."""

    request_timeout_ms: int
    """Upper bound of one health probe."""

    reverse_connect_timeout_ms: int
    """How long one registration update waits for its reverse tunnel."""

    direct_connections: int
    """Connections in the set of a direct inference server."""

    handshake_timeout_ms: int
    """From a completed QUIC handshake to the decision about the tunnel handshake; a worker itself gives up after 5 s."""

    max_handshake_bytes: int
    """Size limit of the one message a worker sends before it is known."""

    max_pending_handshakes: int
    """Connections that have not said who they are, and as many whose claim is being decided. One more makes one of them go."""

    health_interval_ms: int
    """Pause between the end of one health probe and the start of the next."""

    silence_ms: int
    """A probe unanswered for this long, without any other sign of life, makes a worker lost."""

    direct_grace_ms: int
    """How long a direct inference server whose connections are gone still counts as connected."""
