"""The ports through which the rest of the router meets tunnels, as plain interfaces.

`registry` and `gateway` know a registration's tunnels only through these; `router/tunnels` implements them and `app.py`
introduces them to each other.
"""

from enum import Enum, auto
from typing import Protocol

from tunnel_protocol.head import RequestHead, ResponseHead


class TunnelError(Exception):
    """An exchange failed in transport: before the head it is the attempt's synthetic 502, after it an abnormal end.

    `reason` is a short local text for logs (docs/protocol.md, "Failures"). `accepted` is True only if the worker is known to
    have received the whole request, so that sending it again may run it twice.
    """

    def __init__(self, reason: str, *, accepted: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.accepted = accepted


class ExchangeSink(Protocol):
    """What the owner of an exchange is told, synchronously, in wire order."""

    def on_head(self, head: ResponseHead) -> None:
        """The response head. Its headers are as the worker sent them, without the status entry."""

    def on_body(self, data: bytes) -> None:
        """One non-empty chunk of the response body."""

    def on_end(self) -> None:
        """The response is complete. Nothing follows."""

    def on_failed(self, error: TunnelError) -> None:
        """The exchange failed (reset, protocol error, connection lost). Nothing follows."""

    def on_upload_writable(self) -> None:
        """`Exchange.send_body` had returned False; it accepts data again."""

    def on_upload_stopped(self) -> None:
        """The worker does not want (the rest of) the request body; further `send_body` calls are dropped."""


class _NullSink:
    """The sink of an exchange that nobody listens to any more."""

    __slots__ = ()

    def on_head(self, head: ResponseHead) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_failed(self, error: TunnelError) -> None: ...

    def on_upload_writable(self) -> None: ...

    def on_upload_stopped(self) -> None: ...


NULL_SINK: ExchangeSink = _NullSink()
"""Ignores everything: the sink of an exchange that nobody follows any more."""


class Exchange(Protocol):
    """One request and its response on one stream of one tunnel."""

    def send_body(self, data: bytes) -> bool:
        """Queue one piece of request body. False: enough is buffered, wait for `on_upload_writable`."""

    def end_body(self) -> None:
        """The request body is complete (FIN)."""

    def abort_upload(self) -> None:
        """Abandon the request body (RESET_STREAM 0); the response goes on. No effect after `end_body`."""

    def cancel(self) -> None:
        """Abandon both directions with code 0; the sink is not called again. Harmless when already over."""

    def pause(self) -> None:
        """Stop delivering the response and granting credit for it."""

    def resume(self) -> None:
        """Go on after `pause`."""

    def upload_acknowledged(self) -> bool:
        """True once the worker has acknowledged every byte of the request including FIN (then it was accepted in full)."""


class TunnelSet(Protocol):
    """The connection set of exactly one registration generation (docs/protocol.md, "Connection sets")."""

    direct: bool
    """True if the router dials this worker, False for a reverse tunnel."""

    def healthy(self) -> bool:
        """Whether any connection of the set is open."""

    def free_streams(self) -> int:
        """How many streams can be opened right now without waiting, over all healthy connections."""

    def try_open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> Exchange | None:
        """`open` if that is possible without waiting; None if every stream is taken. Raises `TunnelError`."""

    async def open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> Exchange:
        """Open a stream on the next healthy connection and send the head (and FIN if `end`).

        Waits, in arrival order, while the peer's stream limit is used up; the caller bounds the wait and cancels it.
        Completes without suspending when a stream is free. Raises `TunnelError`.
        """

    async def reconnect(self) -> None:
        """Direct only: dial the whole set anew and replace it; streams that run on the old one are undisturbed.

        Raises `TunnelError` if any connection of the new set fails; the old set is then kept as it is.
        """


class TunnelStep(Enum):
    """Where a registration's tunnels stand when one of its updates is processed."""

    CONNECTED = auto()
    """A connection is open, or a dialled worker is within the grace time after losing it."""
    REVERSE_DISCONNECTED = auto()
    """The worker has not dialled (again) yet: ack with the dial address, nothing is routable."""
    UNAVAILABLE = auto()
    """A worker to be dialled cannot be reached: nothing is routable, and no ack."""
