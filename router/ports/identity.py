"""Who a worker is: what its registration, its tunnels and its routes agree on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker may not change while it is registered."""

    inference_server_id: str
    """Unique among the live registrations of this process; byte for byte as sent, never empty."""
    cluster_id: str
    """The effective cluster: the id itself if the worker named none."""
    url: str
    """As sent: `quic://ip:port` for a worker to be dialled, its engine's http(s) URL for a reverse one."""
    routing_key: str | None
    """From authentication, never from the message; None = unscoped."""
    reverse: bool
    """True if the worker dials the router."""
