"""One QUIC stream as the rest of the program sees it: write, read callback, pause and resume, reset, stop.

Back-pressure runs through both halves. Sending: `write` tells when enough is buffered and `on_writable` when to go on.
Receiving: credit is granted to the peer only for bytes that were handed to the handler; while reading is paused the peer
can send at most the rest of its window (RFC 9000 section 4.1), which bounds the memory of a stream.
"""

from collections.abc import Callable
from typing import Protocol

from tunnel_protocol.errors import ConnectionClosedError


class StreamHandler(Protocol):
    """What the owner of a stream is told. Called synchronously from the endpoint's tick; must not block or await."""

    def on_data(self, data: bytes, fin: bool) -> None:
        """Received bytes, in order. `fin` is true exactly once, with the last (possibly empty) piece."""

    def on_reset(self, error_code: int) -> None:
        """The peer abandoned its sending side; no more `on_data`."""

    def on_stop(self, error_code: int) -> None:
        """The peer asked to stop sending (the engine has answered with RESET_STREAM); writes are dropped from now on."""

    def on_writable(self) -> None:
        """The send buffer fell below the low-water mark after `write` had returned False."""

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        """The connection is gone; the last call a handler gets, and it gets it unless both sides had ended before."""


class Stream(Protocol):
    """A bidirectional stream. Every method is cheap, synchronous and safe to call from a handler callback."""

    stream_id: int

    def write(self, data: bytes | bytearray, fin: bool = False) -> bool:
        """Queue bytes. False means the send buffer is above its high-water mark: pause until `on_writable`.

        Raises `StreamClosedError` after FIN or a reset of ours; silently drops after the peer's STOP_SENDING.
        """

    def reset(self, error_code: int = 0) -> None:
        """Abandon the sending side (RESET_STREAM); drops what is buffered. No effect once everything was acknowledged."""

    def stop(self, error_code: int = 0) -> None:
        """Abandon the receiving side (STOP_SENDING); no more `on_data`. No effect once FIN or a reset was received."""

    def pause_reading(self) -> None:
        """Deliver nothing and grant no credit until `resume_reading`."""

    def resume_reading(self) -> None:
        """Deliver what arrived meanwhile (within this call or soon after) and grant credit again."""

    def acknowledged(self) -> bool:
        """True once the peer has acknowledged every byte written including FIN; never after RESET_STREAM was sent."""

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the sending side is over: acknowledged in full, reset, or stopped by the peer.

        At once if it is over already; not at all if the connection is lost before (`on_connection_lost` tells).
        """
