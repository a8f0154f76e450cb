"""What can go wrong on a tunnel, as exceptions with fields.

`ProtocolError` is the only exception a decoder of this package raises for bytes a peer sent, whatever they are.
"""


class ProtocolError(Exception):
    """A peer broke the wire protocol; costs that peer its stream (or, during a handshake, its connection).

    `reason` is a short text without any payload of the peer in it beyond names and numbers; it may be logged.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StreamClosedError(Exception):
    """A call on a stream, exchange or connection that has already ended on that side."""


class StreamCreditError(Exception):
    """Too many openers already wait for stream credit on this connection.

    `waiting` is how many there are; the queue is bounded so that a stalled peer cannot collect requests without limit.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests already wait for a free stream on this connection")
        self.waiting = waiting


class ConnectionClosedError(Exception):
    """The QUIC connection under a stream has ended.

    `error_code` and `reason` are those of CONNECTION_CLOSE, `by_peer` tells who closed; an idle timeout or a dead path has
    `error_code` None.
    """

    def __init__(self, error_code: int | None, reason: str, *, by_peer: bool) -> None:
        super().__init__(reason or "connection closed")
        self.error_code = error_code
        self.reason = reason
        self.by_peer = by_peer
