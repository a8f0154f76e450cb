"""One stream of a connection: a handler gets what arrives; what is sent waits for flow control, in order."""

from typing import Final, Protocol

Headers = list[tuple[bytes, bytes]]
"""Fields in their order; pseudo header fields come first."""


class StreamHandler(Protocol):
    """What happens on a stream. After `on_end` the peer sends nothing more; after `on_reset` the stream is over."""

    def on_headers(self, headers: Headers, *, ended: bool) -> None:
        """A response head, or trailers; `ended`: nothing follows but `on_end`."""

    def on_data(self, data: bytes) -> None:
        """Bytes of the body; call `Http2Stream.consumed` for them when more may be sent."""

    def on_end(self) -> None:
        """The peer has sent everything."""

    def on_reset(self, code: int | None) -> None:
        """The peer has reset the stream with an error code; None: the connection is lost."""

    def on_sent(self, size: int) -> None:
        """So many bytes of the body were given to the connection."""


class StreamConnection(Protocol):
    """What a stream asks of its connection."""

    def send_headers(self, stream: "Http2Stream", headers: Headers) -> None:
        """Send a head, and the end if it is wanted already."""

    def send_body(self, stream: "Http2Stream") -> None:
        """Send as much of `stream.unsent` as flow control and the socket allow, then its end."""

    def grant(self, stream_id: int, size: int) -> None:
        """Let the peer send so many bytes more."""

    def reset(self, stream_id: int, code: int) -> None:
        """End the stream at once."""


class _Nobody:
    """The handler of a stream that is over, or not taken yet."""

    def on_headers(self, headers: Headers, *, ended: bool) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_reset(self, code: int | None) -> None: ...

    def on_sent(self, size: int) -> None: ...


NOBODY: StreamHandler = _Nobody()
_GRANT_BYTES: Final = 32_768
"""Taken bytes that are granted anew in one frame: half of the window of a stream."""


class Http2Stream:
    """One stream. Methods do nothing once it is over."""

    __slots__ = (
        "_connection",
        "_ungranted",
        "end_wanted",
        "handler",
        "head_sent",
        "id",
        "over",
        "received_end",
        "trailers",
        "unsent",
    )

    def __init__(self, connection: StreamConnection, stream_id: int) -> None:
        self._connection = connection
        self._ungranted = 0
        self.id = stream_id
        self.handler: StreamHandler = NOBODY
        self.unsent = bytearray()
        """Body that waits for flow control or the socket."""
        self.trailers: Headers | None = None
        """Sent after the body."""
        self.end_wanted = False
        """Whether the stream ends after the body (and trailers)."""
        self.head_sent = False
        self.received_end = False
        self.over = False
        """Whether nothing can be sent or received any more."""

    def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        """Send a head. It must be the first thing that is sent."""
        if not self.over:
            self.head_sent = True
            self.end_wanted = end
            self._connection.send_headers(self, headers)

    def send(self, data: bytes) -> None:
        """Send bytes of the body."""
        if not self.over:
            self.unsent += data
            self._connection.send_body(self)

    def send_end(self, trailers: Headers | None = None) -> None:
        """End the body, with trailers or without."""
        if not self.over and not self.end_wanted:
            self.end_wanted = True
            self.trailers = trailers
            self._connection.send_body(self)

    def consumed(self, size: int) -> None:
        """So many received bytes have been taken: the peer may send as many again."""
        if self.over or self.received_end:
            return
        self._ungranted += size
        if self._ungranted >= _GRANT_BYTES:
            size, self._ungranted = self._ungranted, 0
            self._connection.grant(self.id, size)

    def reset(self, code: int) -> None:
        """End the stream at once, in both directions."""
        if not self.over:
            self.finish()
            self._connection.reset(self.id, code)

    def finish(self) -> None:
        """Nothing can be sent or received any more."""
        self.over = True
        self.handler = NOBODY
        self.unsent.clear()
