"""One stream of an HTTP/2 connection: the state that flow control and its end need (RFC 9113 section 5)."""

from router.grpc.frames import DEFAULT_WINDOW


class Receiver:
    """What happens on a stream; the base of what owns one. After `on_reset` the stream is over."""

    def on_data(self, data: bytes) -> None:
        """Bytes of the body; call `Http2Connection.consumed` for them when more may be sent."""

    def on_end(self) -> None:
        """The peer has sent everything."""

    def on_reset(self) -> None:
        """The peer has reset the stream, or the connection is lost."""

    def on_sent(self) -> None:
        """Some of what has to wait may have been given to the connection."""


class Http2Stream:
    """The state of one stream; `Http2Connection` changes it."""

    __slots__ = (
        "head_bytes",
        "head_sent",
        "id",
        "over",
        "receive_window",
        "received_data",
        "received_end",
        "receiver",
        "send_window",
        "trailers",
        "unconsumed",
        "ungranted",
        "unsent",
    )

    def __init__(self, stream_id: int, send_window: int) -> None:
        self.id = stream_id
        self.receiver: Receiver = Receiver()
        self.send_window = send_window
        """Bytes that the peer takes now."""
        self.receive_window = DEFAULT_WINDOW
        """Bytes that the peer may send now."""
        self.unconsumed = 0
        """Received bytes that the receiver has not taken."""
        self.ungranted = 0
        """Taken bytes that the peer may not send again yet."""
        self.unsent = bytearray()
        """Body that waits for flow control or the socket."""
        self.trailers: bytes | None = None
        """The block that ends the stream after the body."""
        self.head_bytes = 0
        """Decoded size of the head of the request."""
        self.head_sent = False
        self.received_data = False
        """Whether a part of a message has arrived: the call is more than a head."""
        self.received_end = False
        self.over = False
        """Whether nothing can be sent any more."""
