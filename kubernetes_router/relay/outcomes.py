"""What becomes of tunnels and of datagrams, as counted in metrics."""

from enum import Enum


class Outcome(Enum):
    """What became of a tunnel; the value is the label `outcome`."""

    MISSING_SNI = "missing_sni"
    """The ClientHello names no server."""
    UNKNOWN_SNI = "unknown_sni"
    """The name in the ClientHello is not one of a router."""
    TARGET_UNAVAILABLE = "target_unavailable"
    """The router of that name is not in the list."""
    UNRESOLVED = "unresolved"
    """The ClientHello was not complete in time, within the bounds, or not well-formed."""
    ACCEPTED = "accepted"
    """The tunnel is relayed; later it is counted once more as one of the following."""
    ADOPTED = "adopted"
    """The tunnel began at another replica, and its datagrams come here now; later counted once more, as after `ACCEPTED`."""
    COMPLETED = "completed"
    """Neither side sent a datagram for the idle time-out, or the relay was closed."""
    RELAY_ERROR = "relay_error"
    """The router did not answer or its host refused datagrams, or there was no place or no socket for the tunnel."""


class Dropped(Enum):
    """Why a datagram was not passed on; the value is the label `reason`."""

    UNKNOWN_FLOW = "unknown_flow"
    """It belongs to no tunnel that this process relays, and does not begin one."""
    MALFORMED = "malformed"
    """It looks like the first datagram of a tunnel, but its packets cannot be decrypted or read."""
    TOO_MANY = "too_many"
    """A limit per second was reached."""
    NOT_SENT = "not_sent"
    """The kernel did not take it: packet loss to QUIC."""
