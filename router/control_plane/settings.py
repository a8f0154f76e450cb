"""What can be set about the control plane and the authentication of workers; `router/config` fills it."""

from dataclasses import dataclass
from typing import Final

from tunnel_protocol.control.grpc_options import Keepalive

SECRETS_KEY: Final = "authToken"
"""Where the bearer token stands in the secrets file, if nothing else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneSettings:
    """What workers are told, and how long they are waited for; times in milliseconds."""

    stargate_id: str
    advertise_addr: str
    """`ip:port` under which workers reach this router's control plane."""
    dns_name: str
    """Discovery name, for the log."""
    reverse_tunnel_target: str
    """`host:port` every ack carries; empty = no reverse listener."""
    reverse_tunnel_dial_addr: str
    """Where workers send their UDP, if not to the target; blank = the target."""
    idle_timeout_ms: int
    """Shortest time without an update after which a registration ends; 0 = never."""
    max_idle_timeout_ms: int
    """Longest such time, whatever heartbeat a worker announces; 0 = never."""
    duplicate_delay_ms: int
    """How long the refusal of a duplicate id is held back: refused workers come again without a pause of their own."""
    min_silence_ms: int
    """A registration whose tunnel is dead counts as dead after this long, and three heartbeats, without a message."""
    unknown_heartbeat_ms: int
    """The heartbeat assumed, for that purpose, of a worker that announced none."""
    teardown_ms: int
    """How long the end of a registration waits for its health loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAuthSettings:
    """How the gateway is asked about a worker's token; times in seconds."""

    endpoint: str
    """`http://host:port`, or `https://` with TLS."""
    ca_pem: bytes | None
    """Trust anchors for https; None = the system's."""
    deadline_s: float
    """For one question, retry included."""
    cache_s: float
    """How long an acceptance is remembered; 0 = not at all. A refusal never is."""
    cache_entries: int
    """Acceptances remembered; one more makes the oldest go."""
    keepalive: Keepalive | None
    """When a gateway that has gone silent is connected to anew; None = as all channels."""
