"""The identity of a registered worker, shared by its registration, its tunnels and its routes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The values that a worker must not change while it is registered."""

    inference_server_id: str
    """Unique among the live registrations of this process; byte for byte as sent, never empty."""
    cluster_id: str
    """The effective cluster id: the `inference_server_id` if the worker named none."""
    url: str
    """As sent: `quic://ip:port` for a direct worker, the engine's http(s) URL for a reverse one."""
    routing_key: str | None
    """From authentication, not from the message; None = unscoped."""
    reverse: bool
    """True if the worker dials the router."""
