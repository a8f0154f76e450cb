"""Settings of the control plane and of worker authentication; `router/config` fills them."""

from dataclasses import dataclass
from typing import Final

from tunnel_protocol.control.grpc_options import Keepalive

SECRETS_KEY: Final = "authToken"
"""Default key of the bearer token in the secrets file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneSettings:
    """What is published to workers, and timeouts of registrations; times in milliseconds."""

    stargate_id: str
    advertise_addr: str
    """`ip:port` at which workers reach this router's control plane."""
    dns_name: str
    """DNS name of discovery, for the log."""
    reverse_tunnel_target: str
    """`host:port` in every ack; empty = no reverse listener."""
    reverse_tunnel_dial_addr: str
    """Address to which workers send their UDP datagrams; blank = the target."""
    idle_timeout_ms: int
    """Minimum of the idle timeout, after which a registration without an update ends; 0 = no timeout."""
    max_idle_timeout_ms: int
    """Maximum of the idle timeout, for any announced heartbeat; 0 = no timeout."""
    duplicate_delay_ms: int
    """Delay of the refusal of a duplicate id: refused workers retry without a pause of their own."""
    min_silence_ms: int
    """Time without a message, and at least three heartbeats, after which a registration without tunnel counts as dead."""
    unknown_heartbeat_ms: int
    """The heartbeat assumed, for `min_silence_ms`, for a worker that announced none."""
    teardown_ms: int
    """Maximum time that the end of a registration waits for its health loop."""
    lifecycle_logs: bool
    """Log every end of a registration with its reason and models, and every stream that ends without a registration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAuthSettings:
    """How the gateway is asked to authenticate a worker's token; times in seconds."""

    endpoint: str
    """`http://host:port`, or `https://` with TLS."""
    ca_pem: bytes | None
    """CA certificates for https; None = the system's."""
    deadline_s: float
    """Deadline of one authentication, retry included."""
    cache_s: float
    """How long an acceptance is cached; 0 = not at all. A refusal is not cached."""
    cache_entries: int
    """Maximum number of cached acceptances; one more removes the oldest."""
    keepalive: Keepalive | None
    """HTTP/2 keepalive of the channel to the gateway; None = the default of all channels."""
