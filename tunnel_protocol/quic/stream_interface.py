"""The interface of one QUIC stream for the rest of the program: write, receive callback, pause and resume, reset, stop.

Back-pressure works in both directions. Sending: `write` returns False when the writer should pause, `on_writable` says when to
continue. Receiving: credit is granted only for bytes that were passed to the handler; while reading is paused the peer can
send at most the rest of its window (RFC 9000 section 4.1), which bounds the memory of a stream.
"""

from collections.abc import Callable

from mypy_extensions import mypyc_attr

from tunnel_protocol.errors import ConnectionClosedError

# Base classes and not protocols: compiled calls through a class are cheaper.


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamHandler:
    """Callbacks for the owner of a stream, called synchronously from the endpoint's tick; they must not block."""

    __slots__ = ()

    def on_data(self, data: bytes, fin: bool) -> None:
        """Received bytes, in order. `fin` is true exactly once, with the last (possibly empty) piece."""
        raise NotImplementedError

    def on_reset(self, error_code: int) -> None:
        """The peer sent RESET_STREAM; no more `on_data`."""
        raise NotImplementedError

    def on_stop(self, error_code: int) -> None:
        """The peer sent STOP_SENDING (the engine has answered with RESET_STREAM); later writes are dropped."""
        raise NotImplementedError

    def on_writable(self) -> None:
        """The send buffer fell below the low-water mark after `write` had returned False."""
        raise NotImplementedError

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        """The connection has ended. The last call; not made if both directions of the stream had ended before."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Stream:
    """A bidirectional stream. Every method is cheap, synchronous and safe to call from a handler callback."""

    __slots__ = ("stream_id",)

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id

    def write(self, data: bytes | bytearray, fin: bool = False) -> bool:
        """Queue bytes, and FIN if `fin`. False: the send buffer is above its high-water mark, pause until `on_writable`.

        Raises `StreamClosedError` after `fin` or `reset`. After the peer's STOP_SENDING bytes are dropped without an error.
        """
        raise NotImplementedError

    def reset(self, error_code: int = 0) -> None:
        """Send RESET_STREAM and drop buffered bytes. No effect if all bytes and FIN are acknowledged."""
        raise NotImplementedError

    def stop(self, error_code: int = 0) -> None:
        """Send STOP_SENDING; no more `on_data`. Nothing is sent if all bytes or a RESET_STREAM were received."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        """Make no `on_data` call and grant no credit until `resume_reading`."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Deliver the bytes received meanwhile (in a later `on_data` call) and grant credit again."""
        raise NotImplementedError

    def acknowledged(self) -> bool:
        """Whether the peer has acknowledged all written bytes and FIN; always False after RESET_STREAM."""
        raise NotImplementedError

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the sending part ends: all acknowledged, reset, or stopped by the peer.

        Called at once if it has ended already; not called if the connection ends first (then `on_connection_lost` is called).
        """
        raise NotImplementedError
