"""Exceptions of tunnels.

`ProtocolError` is the only exception that a decoder of this package raises for bytes from a peer.
"""


class ProtocolError(Exception):
    """A peer violated the tunnel protocol; ends the stream, or the connection during a handshake.

    `reason` is a short text that contains no data of the peer except names and numbers; it may be logged.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StreamClosedError(Exception):
    """A call on a stream, exchange or connection that has already ended in that direction."""


class StreamCreditError(Exception):
    """Too many callers already wait for stream credit on this connection.

    `waiting` is their number; the queue is bounded because a peer that grants no credit would make it grow without limit.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests already wait for a free stream on this connection")
        self.waiting = waiting


class ConnectionClosedError(Exception):
    """The QUIC connection under a stream has ended.

    `error_code` and `reason` are those of CONNECTION_CLOSE; `error_code` is None if the connection ended without it, for example
    by idle timeout. `by_peer` is true if the peer closed the connection.
    """

    def __init__(self, error_code: int | None, reason: str, *, by_peer: bool) -> None:
        super().__init__(reason or "connection closed")
        self.error_code = error_code
        self.reason = reason
        self.by_peer = by_peer
