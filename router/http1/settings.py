"""What can be set about the HTTP listener and its connections; `router/config` fills it."""

from dataclasses import dataclass

from tunnel_protocol.limit import Limit

CONNECTIONS = Limit("http1.connections", pieces=65_536, option="--http-max-connections")
"""Open client connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTimeouts:
    """How long a connection waits where neither its client nor a request sets an end; in seconds."""

    discard: float
    """A client may go on sending for so long what nobody wants, so that it reads its answer rather than a reset."""

    half_sent: float
    """In a drain, for the rest of a head."""

    watch: float
    """Between two questions to the system whether a client that is not being read is still there."""

    stalled: float
    """A closed connection whose client takes nothing of what is left for so long is cut."""

    head: float
    """From the first byte of a head to its end; then the answer is 408. Connections between two requests are not meant."""

    body: float
    """Without a byte of a body that is being read and not yet answered; then the answer is 408."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits and times of one listener."""

    max_connections: int
    """Client connections open at a time; further ones are closed as soon as they are accepted."""

    timeouts: ConnectionTimeouts
    """Of each of its connections."""
