"""One parsed client request and its body, as the other packages see them.

The body is a stream with one consumer at a time: until one attaches, bytes wait (bounded: the client is paused), and
`100 Continue` is not sent (RFC 9110 section 10.1.1).
"""

from collections.abc import Callable
from typing import Final, Protocol

from router.http1.blocks import Blocks
from tunnel_protocol.head import HeaderList
from tunnel_protocol.limit import Limit

WAITING_BODY: Final = Limit("http1.waiting_body", bytes=64 * 1024)
"""Body bytes that may wait for a consumer before the client is paused; small pieces are collected in blocks."""

_MAX_WAITING_BYTES: Final = WAITING_BODY.bytes or 0


class BodyConsumer(Protocol):
    """Receives a request body."""

    def on_body(self, data: bytes) -> None:
        """The next bytes of the body; never empty."""

    def on_body_end(self) -> None:
        """The body is complete."""

    def on_body_broken(self, reason: str) -> None:
        """The client's framing of the body is invalid, for `reason`; no further call follows."""


class RequestBody:
    """The body of one request while it arrives."""

    __slots__ = (
        "_consumer",
        "_paused",
        "_reading",
        "_set_reading",
        "_waiting",
        "broken",
        "complete",
        "invite",
        "wanted",
    )

    def __init__(self, set_reading: Callable[[bool], None]) -> None:
        self._set_reading = set_reading
        self._consumer: BodyConsumer | None = None
        self._waiting = Blocks()
        self._paused = False
        self._reading = True
        self.complete = False
        """Whether the client has sent all of the body."""
        self.broken: str | None = None
        self.wanted = False
        """Whether a consumer has asked for the body."""
        self.invite: Callable[[], None] | None = None
        """Called when the body is first asked for, if the client waits for `100 Continue`."""

    @property
    def empty(self) -> bool:
        """Whether the body is complete and has no byte."""
        return self.complete and not self._waiting.size

    def attach(self, consumer: BodyConsumer) -> None:
        """Give `consumer` the bytes that wait and all that follow."""
        self._want()
        self._consumer = consumer
        self._flush()
        self._update_reading()

    def take(self) -> list[bytes]:
        """Remove and return all bytes of a complete body."""
        self._want()
        taken = self._waiting.take()
        self._update_reading()
        return taken

    def detach(self) -> None:
        """Detach the consumer; bytes that arrive from now on are dropped."""
        self.wanted = True
        self._consumer = None
        self._waiting.clear()
        self._paused = False
        self._update_reading()

    def pause(self) -> None:
        """Deliver nothing until `resume`; bytes wait, and the client is paused when too many do."""
        self._paused = True
        self._update_reading()

    def resume(self) -> None:
        """Deliver the bytes that wait, and go on."""
        self._paused = False
        self._flush()
        self._update_reading()

    # --- from the connection ---------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes of the body have arrived."""
        if self._consumer is not None and not self._paused:
            self._consumer.on_body(data)
        elif not self.wanted or self._consumer is not None:
            self._waiting.add(data)
            self._update_reading()

    def finish(self) -> None:
        """The last byte of the body has arrived."""
        self.complete = True
        consumer = self._consumer
        if consumer is not None and not self._waiting.size:
            self._end(consumer)

    def fail(self, reason: str) -> None:
        """The client's framing of the body is invalid."""
        self.broken = reason
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.on_body_broken(reason)

    def _want(self) -> None:
        self.wanted = True
        invite, self.invite = self.invite, None
        if invite is not None:
            invite()

    def _flush(self) -> None:
        while self._waiting.size and self._consumer is not None and not self._paused:
            self._consumer.on_body(self._waiting.pop())
        consumer = self._consumer
        if self._waiting.size or consumer is None:
            return
        if self.broken is not None:
            self.fail(self.broken)
        elif self.complete:
            self._end(consumer)

    def _end(self, consumer: BodyConsumer) -> None:
        # Even if the consumer paused: the connection must go on reading, or a close by the client would not be seen.
        self._paused = False
        self._update_reading()
        self._consumer = None
        consumer.on_body_end()

    def _update_reading(self) -> None:
        reading = not self._paused and self._waiting.size <= _MAX_WAITING_BYTES
        if reading != self._reading:
            self._reading = reading
            self._set_reading(reading)


class ClientRequest:
    """A request head and its body. `headers` holds lower-case names and original values, in order."""

    __slots__ = (
        "body",
        "expects_continue",
        "first",
        "headers",
        "http_1_0",
        "keep_alive",
        "last",
        "method",
        "path",
        "received_at",
        "target",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: HeaderList,
        first: dict[bytes, bytes],
        *,
        http_1_0: bool,
        keep_alive: bool,
        received_at: float,
        body: RequestBody,
        last: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        """The request target exactly as received, query included."""
        self.path = target.partition(b"?")[0]
        self.headers = headers
        self.first = first
        """The first value of each header."""
        self.http_1_0 = http_1_0
        self.keep_alive = keep_alive
        self.last = last
        """Whether the head gave two framings: no later request is read, and the connection closes (RFC 9112 section 6.1)."""
        self.received_at = received_at
        """Monotonic seconds at which the head was complete."""
        self.body = body
        self.expects_continue = b"expect" in first and first[b"expect"].lower() == b"100-continue" and not http_1_0
