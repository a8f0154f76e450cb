"""The ports through which the other packages of the router use tunnels, as plain interfaces.

`registry` and `proxy` use a registration's tunnels only through these; `router/tunnels` implements them, and
`router/process` connects the packages.
"""

from enum import Enum, auto
from typing import Final, Protocol

from mypy_extensions import mypyc_attr

from tunnel_protocol.head import RequestHead, ResponseHead


class TunnelError(Exception):
    """An exchange failed in transport: before the response head the attempt failed, after it the response ends abnormally.

    `reason` is a short local text for logs (docs/protocol.md, "Failures"). `accepted` is True only if the worker is known to
    have received the whole request, so that sending it again may run it twice.
    """

    def __init__(self, reason: str, *, accepted: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.accepted = accepted


@mypyc_attr(allow_interpreted_subclasses=True)
class ExchangeSink:
    """The callbacks of an exchange to its owner; called synchronously, in wire order.

    A base class, because calls through protocols are slow when compiled.
    """

    __slots__ = ()

    def on_head(self, head: ResponseHead) -> None:
        """The response head. Its headers are as the worker sent them, without the status entry."""
        raise NotImplementedError

    def on_body(self, data: bytes) -> None:
        """One non-empty chunk of the response body."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The response is complete. No further callback about the response follows."""
        raise NotImplementedError

    def on_failed(self, error: TunnelError) -> None:
        """The exchange failed (reset, protocol error, connection closed). No further callback follows."""
        raise NotImplementedError

    def on_upload_writable(self) -> None:
        """`Exchange.send_body`, which had returned False, accepts data again."""
        raise NotImplementedError

    def on_upload_stopped(self) -> None:
        """The worker does not take the rest of the request body; data of further `send_body` calls is dropped."""
        raise NotImplementedError


class _NullSink(ExchangeSink):
    """A sink that ignores every callback."""

    __slots__ = ()

    def on_head(self, head: ResponseHead) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_failed(self, error: TunnelError) -> None: ...

    def on_upload_writable(self) -> None: ...

    def on_upload_stopped(self) -> None: ...


NULL_SINK: Final[ExchangeSink] = _NullSink()
"""Ignores every callback: the sink of a cancelled or ended exchange."""


class Exchange(Protocol):
    """One request and its response on one stream of one tunnel."""

    def send_body(self, data: bytes) -> bool:
        """Queue one piece of request body. False: enough is buffered, wait for `on_upload_writable`."""

    def end_body(self) -> None:
        """The request body is complete (FIN)."""

    def abort_upload(self) -> None:
        """Abandon the request body (RESET_STREAM 0); the response continues. No effect after `end_body`."""

    def cancel(self) -> None:
        """Abandon both directions with code 0; the sink is not called again. No effect after the end."""

    def pause(self) -> None:
        """Stop delivering the response and granting credit for it."""

    def resume(self) -> None:
        """Continue after `pause`."""

    def upload_acknowledged(self) -> bool:
        """True once the worker has acknowledged every byte of the request including FIN (then it was accepted in full)."""


class TunnelSet(Protocol):
    """The connection set of exactly one registration generation (docs/protocol.md, "Connection sets")."""

    direct: bool
    """True if the router dials this worker, False for a reverse tunnel."""

    def healthy(self) -> bool:
        """Whether any connection of the set is open."""

    def free_streams(self) -> int:
        """Number of streams that can be opened now without waiting, over all healthy connections."""

    def silent_since(self) -> float | None:
        """Loop time since which nothing has come from the worker although a connection is open; None if it answers."""

    def try_open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> Exchange | None:
        """As `open`, without waiting; None if no stream is free. Raises `TunnelError`."""

    async def open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> Exchange:
        """Open a stream on the next healthy connection and send the head (and FIN if `end`).

        Waits, in arrival order, while the peer's stream limit is used up; the caller limits the time and cancels the wait.
        Does not suspend when a stream is free. Raises `TunnelError`.
        """

    async def reconnect(self) -> None:
        """Direct only: dial a new set and replace the old one; streams that are open on the old one continue.

        Raises `TunnelError` if any connection of the new set fails; the old set is then kept.
        """


class TunnelStep(Enum):
    """The state of a registration's tunnels when one of its updates is processed."""

    CONNECTED = auto()
    """A connection is open, or a direct worker is within the grace time after its last one closed."""
    REVERSE_DISCONNECTED = auto()
    """The reverse worker has not dialled (again) yet: the ack has the dial address, and nothing is routable."""
    UNAVAILABLE = auto()
    """A direct worker cannot be reached: nothing is routable, and no ack is sent."""
