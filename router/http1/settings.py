"""Settings of the HTTP listener and its connections; `router/config` fills them."""

from dataclasses import dataclass
from typing import Final

from tunnel_protocol.limit import Limit

CONNECTIONS: Final = Limit("http1.connections", pieces=65_536, option="--http-max-connections")
"""Client connections open at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTimeouts:
    """Timeouts of one connection, in seconds."""

    discard: float
    """How long bytes of an answered request are read and dropped, so that the client reads the response and not a reset."""

    half_sent: float
    """How long a drain waits for the rest of a head that has begun to arrive."""

    watch: float
    """Pause between two checks of the TCP state of a client that is not being read."""

    stalled: float
    """A closing connection is aborted after this long without the client reading any of the bytes left."""

    head: float
    """From the first byte of a head to its end; then the answer is 408. Does not apply between two requests."""

    body: float
    """Between two bytes of a body that is being read, before its response begins; then the answer is 408."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits and timeouts of one listener."""

    max_connections: int
    """Client connections open at a time; further ones are closed as soon as they are accepted."""

    close_unread: bool
    """Close the connection after a response without success whose request body has not arrived to its end."""

    timeouts: ConnectionTimeouts
    """Timeouts of each connection."""
