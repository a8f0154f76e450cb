"""One QUIC stream: sending part, receiving part, handler, and entries in the connection's work sets (RFC 9000 section 3).

The engine calls the `on_*` methods for received frames and takes frames to send; the user of the stream calls the methods of
`Stream`. Received bytes are bounded by the flow control window (credit is granted only for bytes the handler has taken), unsent
bytes by the high-water mark, at which the writer must pause.

A stream adds itself to the sets `sending` (bytes or FIN to send within the peer's limit), `control` (RESET_STREAM,
STOP_SENDING or MAX_STREAM_DATA to send) and `ready` (something for the handler) of its connection, so that an engine visits
only streams with something to do.
"""

from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.receive_half import PROTOCOL_VIOLATION, ReceiveHalf, ReceiveState, StreamError
from tunnel_protocol.quic.send_half import SendHalf, SendState
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11), and these run for every chunk.
_DATA_RECVD: Final = SendState.DATA_RECVD
_RECV: Final = ReceiveState.RECV
_DATA_READ: Final = ReceiveState.DATA_READ
_RESET_RECVD: Final = ReceiveState.RESET_RECVD


STREAM_GAPS: Final = Limit("quic.stream_gaps", pieces=1_024)
"""Blocks received out of order on one stream; more than loss explains is treated as an attack (RFC 9000 section 21.7)."""

CONNECTION_GAPS: Final = Limit("quic.connection_gaps", pieces=2_048)
"""Blocks received out of order on all streams of a connection."""

_MAX_STREAM_GAPS: Final = STREAM_GAPS.pieces or 0
_MAX_CONNECTION_GAPS: Final = CONNECTION_GAPS.pieces or 0


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamCallbacks:
    """What streams use of their connection: a base class, because attributes of protocols are slow to reach when compiled.

    The three work sets keep insertion order.
    """

    __slots__ = ("control", "pieces_out_of_order", "poll_scheduled", "ready", "sending")

    def __init__(self) -> None:
        self.sending: dict[BidirectionalStream, None] = {}
        self.control: dict[BidirectionalStream, None] = {}
        self.ready: dict[BidirectionalStream, None] = {}
        self.poll_scheduled = False
        self.pieces_out_of_order = 0
        """Blocks received out of order on all streams."""

    def schedule_poll(self) -> None:
        """Schedule a `poll` of the connection; called only while `poll_scheduled` is false."""

    def release(self, stream: "BidirectionalStream") -> None:
        """Both parts have ended and the handler was notified: remove the stream."""


class _NullHandler(StreamHandler):
    """The handler of a stream that has no owner yet, or no longer."""

    __slots__ = ()

    def on_data(self, data: bytes, fin: bool) -> None: ...

    def on_reset(self, error_code: int) -> None: ...

    def on_stop(self, error_code: int) -> None: ...

    def on_writable(self) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None: ...


NULL_HANDLER: Final[StreamHandler] = _NullHandler()


class BidirectionalStream(Stream):
    """Implements `Stream`; its methods are documented there."""

    __slots__ = ("_handler", "_owner", "_stop_to_report", "id_bytes", "receive_half", "send_half")

    def __init__(
        self,
        owner: StreamCallbacks,
        stream_id: int,
        id_bytes: bytes,
        handler: StreamHandler,
        *,
        window: int,
        send_limit: int,
        high_water: int,
    ) -> None:
        super().__init__(stream_id)
        self._owner = owner
        self._handler: StreamHandler = handler
        self.id_bytes = id_bytes
        self.send_half = SendHalf(send_limit, high_water)
        self.receive_half = ReceiveHalf(window)
        self._stop_to_report: int | None = None

    def attach(self, handler: StreamHandler) -> None:
        """Set the handler of a stream that the peer opened."""
        self._handler = handler

    # --- Stream ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray, fin: bool = False) -> bool:
        """See `Stream.write`."""
        half = self.send_half
        if not half.write(data, fin):
            return True
        if not data and not fin:
            return not half.above_high_water()
        if fin or half.sent < half.limit:
            owner = self._owner
            owner.sending[self] = None
            if not owner.poll_scheduled:
                owner.schedule_poll()
        if half.above_high_water():
            half.wants_writable = True
            return False
        return True

    def reset(self, error_code: int = 0) -> None:
        """See `Stream.reset`."""
        if self._abandon_sending(error_code):
            self.send_half.call_back()

    def acknowledged(self) -> bool:
        """See `Stream.acknowledged`."""
        return self.send_half.state is _DATA_RECVD

    def when_sent(self, callback: Callable[[], None]) -> None:
        """See `Stream.when_sent`."""
        if self.send_half.when_sent(callback):
            callback()

    def stop(self, error_code: int = 0) -> None:
        """See `Stream.stop`."""
        half = self.receive_half
        if not half.wanted:
            return
        self._owner.pieces_out_of_order -= half.pieces_out_of_order
        half.stop(error_code)
        if half.stop_pending:
            self._mark_control()
        if half.over and self.send_half.over:
            self._mark_ready()

    def pause_reading(self) -> None:
        """See `Stream.pause_reading`."""
        self.receive_half.paused = True

    def resume_reading(self) -> None:
        """See `Stream.resume_reading`."""
        half = self.receive_half
        if half.paused:
            half.paused = False
            if half.has_news():
                self._mark_ready()

    # --- for the engine: received frames -----------------------------------------------------------------------------

    def on_stream_frame(self, offset: int, data: bytes, fin: bool) -> None:
        """Process a STREAM frame. Raises `StreamError`."""
        half = self.receive_half
        before = half.pieces_out_of_order
        news = half.on_stream_frame(offset, data, fin)
        after = half.pieces_out_of_order
        if after != before:
            owner = self._owner
            owner.pieces_out_of_order += after - before
            if after > _MAX_STREAM_GAPS or owner.pieces_out_of_order > _MAX_CONNECTION_GAPS:
                raise StreamError(PROTOCOL_VIOLATION, "stream data too fragmented")
        if not news:
            return
        if half.state is _RECV:  # every chunk but the last
            if not half.paused:
                self._owner.ready[self] = None
        else:
            self._mark_received()

    def on_reset_stream(self, error_code: int, final_size: int) -> None:
        """Process a RESET_STREAM frame. Raises `StreamError`."""
        half = self.receive_half
        before = half.pieces_out_of_order
        news = half.on_reset_stream(error_code, final_size)
        self._owner.pieces_out_of_order += half.pieces_out_of_order - before
        if news:
            self._mark_received()

    def _mark_received(self) -> None:
        half = self.receive_half
        if half.over:
            if self.send_half.over:
                self._mark_ready()
        elif not half.paused or half.state is _RESET_RECVD:
            self._owner.ready[self] = None

    def on_stop_sending(self, error_code: int) -> None:
        """Process a STOP_SENDING frame: answer with RESET_STREAM of the same code (RFC 9000 section 3.5)."""
        if self._abandon_sending(error_code):
            self.send_half.stopped_by_peer = self._stop_to_report = error_code
            self._owner.ready[self] = None

    def on_max_stream_data(self, limit: int) -> None:
        """Process a MAX_STREAM_DATA frame; `limit` in bytes."""
        if self.send_half.on_max_stream_data(limit):
            self._owner.sending[self] = None

    # --- for the engine: filling packets -----------------------------------------------------------------------------

    def next_data(self, max_bytes: int, connection_credit: int) -> tuple[int, bytes, bool] | None:
        """See `SendHalf.next_data`."""
        half = self.send_half
        piece = half.next_data(max_bytes, connection_credit)
        if half.wants_writable and half.may_write_on():
            self._owner.ready[self] = None
        return piece

    def next_run(self, piece_bytes: int, most_pieces: int, connection_credit: int, with_rest: bool) -> int:
        """See `SendHalf.next_run`."""
        half = self.send_half
        size = half.next_run(piece_bytes, most_pieces, connection_credit, with_rest)
        if half.wants_writable and half.may_write_on():
            self._owner.ready[self] = None
        return size

    # --- for the engine: acknowledgement and loss --------------------------------------------------------------------

    def on_data_acked(self, start: int, stop: int, fin: bool) -> None:
        """A piece returned by `next_data` was acknowledged."""
        half = self.send_half
        half.on_data_acked(start, stop, fin)
        if half.state is _DATA_RECVD:
            self._mark_sent()

    def on_data_lost(self, start: int, stop: int, fin: bool) -> None:
        """A piece returned by `next_data` was lost: send it again."""
        if self.send_half.on_data_lost(start, stop, fin):
            self._owner.sending[self] = None

    def on_reset_acked(self) -> None:
        """RESET_STREAM was acknowledged."""
        self.send_half.on_reset_acked()
        self._mark_sent()

    def on_control_lost(self, *, reset: bool = False, stop: bool = False, limit: bool = False) -> None:
        """RESET_STREAM, STOP_SENDING or MAX_STREAM_DATA (`limit`) was lost: send it again if it is still needed."""
        if reset and not self.send_half.over:
            self.send_half.reset_pending = True
        elif not ((stop and self.receive_half.on_stop_lost()) or (limit and self.receive_half.on_limit_lost())):
            return
        self._owner.control[self] = None

    # --- for the engine: calling back --------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Call the handler for everything that happened since the last call; not called during packet processing."""
        sending, receiving = self.send_half, self.receive_half
        if not receiving.paused:
            data = receiving.take()
            if data is not None:
                if receiving.limit_pending:
                    self._owner.control[self] = None
                self._handler.on_data(data, receiving.state is _DATA_READ)
        if receiving.state is _RESET_RECVD:
            self._handler.on_reset(receiving.take_reset())
        if self._stop_to_report is not None:
            code, self._stop_to_report = self._stop_to_report, None
            self._handler.on_stop(code)
            sending.call_back()
        if sending.wants_writable and sending.may_write_on():
            sending.wants_writable = False
            if sending.final_size is None and not sending.abandoned:
                self._handler.on_writable()
        if sending.over:
            if sending.awaited:
                sending.call_back()
            if receiving.over:
                self._handler = NULL_HANDLER
                self._owner.release(self)

    def connection_lost(self, error: ConnectionClosedError) -> None:
        """Notify the handler that the connection has ended, and drop all state."""
        handler, self._handler = self._handler, NULL_HANDLER
        self._owner.pieces_out_of_order -= self.receive_half.pieces_out_of_order
        self.send_half.connection_lost()
        self.receive_half.connection_lost()
        handler.on_connection_lost(error)

    def refuse(self) -> None:
        """Refuse a stream of the peer: RESET_STREAM and STOP_SENDING, no more callbacks."""
        self.stop()
        self.reset()

    # -----------------------------------------------------------------------------------------------------------------

    def _abandon_sending(self, error_code: int) -> bool:
        if not self.send_half.abandon(error_code):
            return False
        self._owner.sending.pop(self, None)
        self._mark_control()
        return True

    def _mark_sent(self) -> None:
        if self.send_half.awaited or self.receive_half.over:
            self._owner.ready[self] = None

    def _mark_control(self) -> None:
        owner = self._owner
        owner.control[self] = None
        if not owner.poll_scheduled:
            owner.schedule_poll()

    def _mark_ready(self) -> None:
        owner = self._owner
        owner.ready[self] = None
        if not owner.poll_scheduled:
            owner.schedule_poll()
