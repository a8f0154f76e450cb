"""The control plane's settings as one frozen value; app.py fills it from the command line."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneSettings:
    """Defaults are those of the command line; times in milliseconds."""

    stargate_id: str
    advertise_addr: str
    """`ip:port` under which workers reach this router's control plane."""
    dns_name: str = ""
    """Discovery name, for the log."""
    reverse_tunnel_target: str = ""
    """`host:port` every ack carries; empty = no reverse listener."""
    reverse_tunnel_dial_addr: str = ""
    """Where workers send their UDP, if not to the target; blank = the target."""
    idle_timeout_ms: int = 60_000
    """Shortest time without an update after which a registration ends; 0 = never."""
    max_idle_timeout_ms: int = 300_000
    """Longest such time, whatever heartbeat a worker announces; 0 = never."""
    duplicate_delay_ms: int = 200
    """How long the refusal of a duplicate id is held back: refused workers come again without a pause of their own."""
    min_silence_ms: int = 3_000
    """A registration whose tunnel is dead counts as dead after this long, and three heartbeats, without a message."""
    unknown_heartbeat_ms: int = 5_000
    """The heartbeat assumed, for that purpose, of a worker that announced none."""
    teardown_ms: int = 2_000
    """How long the end of a registration waits for its health loop."""
