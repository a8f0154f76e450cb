"""Settings of the tunnels; `router/config` fills them."""

from dataclasses import dataclass
from typing import Final

from tunnel_protocol.limit import Limit

PENDING: Final = Limit("tunnels.pending_handshakes", pieces=1_024)
"""Anonymous connections, and separately connections that have sent an id and are being decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """Limits and timeouts of tunnels; the unit is in the name."""

    connect_timeout_ms: int
    """Timeout of the QUIC handshake of one direct connection; also of the delivery of a refusal to a worker."""

    probe_timeout_ms: int
    """Timeout of one health probe."""

    reverse_connect_timeout_ms: int
    """How long one registration update waits for its reverse tunnel."""

    direct_connections: int
    """Number of connections in the set of a direct inference server."""

    handshake_timeout_ms: int
    """From a completed QUIC handshake to the decision about the reverse handshake; a worker itself times out after 5 s."""

    max_handshake_bytes: int
    """Size limit of the message in which a worker identifies itself."""

    max_pending_handshakes: int
    """Limit of anonymous connections, and of those that have sent an id and are being decided; one more closes another."""

    health_interval_ms: int
    """Pause between the end of one health probe and the start of the next, give or take a fortieth (`probe_times`)."""

    silence_ms: int
    """A worker counts as lost if a probe is unanswered for this long and nothing else is received."""

    direct_grace_ms: int
    """How long a direct inference server whose connections have closed still counts as connected."""
