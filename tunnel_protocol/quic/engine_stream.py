"""One QUIC stream, both halves, as state machines without any library (RFC 9000 sections 2, 3 and 4.1).

The engine calls the `frame_*` and `on_*` methods for what packets bring and the `next_*` methods to fill packets; the
owner of the stream calls the methods of `Stream`. Two things are bounded here: received bytes by the window (credit is
granted only for what the handler has taken, gaps included), and unsent bytes by the high-water mark the writer heeds.

Marks: a stream puts itself into `sending` (it has bytes or FIN to send and the peer's limit allows some), `control`
(RESET_STREAM, STOP_SENDING or MAX_STREAM_DATA to send) and `ready` (something for the handler) of its owner, so that an
engine visits only streams with something to do.
"""

from collections.abc import Callable
from typing import Protocol

from tunnel_protocol.errors import ConnectionClosedError, StreamClosedError
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.ranges import Ranges
from tunnel_protocol.quic.reassembly import Reassembly
from tunnel_protocol.quic.stream import StreamHandler

STREAM_GAPS = Limit("quic.stream_gaps", pieces=1_024)
"""Pieces received out of order on one stream, beyond which a peer is not unlucky but hostile (RFC 9000 section 21.7)."""

CONNECTION_GAPS = Limit("quic.connection_gaps", pieces=2_048)
"""The same over all streams of a connection."""

_MAX_STREAM_GAPS = STREAM_GAPS.pieces or 0
_MAX_CONNECTION_GAPS = CONNECTION_GAPS.pieces or 0


class StreamError(Exception):
    """A peer broke the rules of a stream; ends the connection with a transport error (RFC 9000 section 20.1)."""

    def __init__(self, error_code: int, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        self.reason = reason


FLOW_CONTROL_ERROR = 0x3
FINAL_SIZE_ERROR = 0x6
PROTOCOL_VIOLATION = 0xA


class StreamOwner(Protocol):
    """The connection as its streams see it. The three sets keep the order in which streams entered them."""

    sending: "dict[EngineStream, None]"
    control: "dict[EngineStream, None]"
    ready: "dict[EngineStream, None]"
    awake: bool
    pieces_out_of_order: int
    """What all streams hold that was received out of order, in pieces."""

    def wake(self) -> None:
        """Have the connection polled soon; called only while `awake` is false."""

    def release(self, stream: "EngineStream") -> None:
        """Both halves have ended and the handler knows: forget the stream."""


class _Nobody:
    """The handler of a stream whose owner has turned away."""

    __slots__ = ()

    def on_data(self, data: bytes, fin: bool) -> None: ...

    def on_reset(self, error_code: int) -> None: ...

    def on_stop(self, error_code: int) -> None: ...

    def on_writable(self) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None: ...


NOBODY = _Nobody()

_OPEN, _FIN_WRITTEN, _RESET, _STOPPED, _LOST = range(5)


class EngineStream:
    """Implements `Stream`; see there for what callers may expect."""

    __slots__ = (
        "_acked",
        "_base",
        "_buffer",
        "_fin_acked",
        "_handler",
        "_high_water",
        "_inbox",
        "_lost",
        "_on_sent",
        "_out_of_order",
        "_owner",
        "_paused",
        "_receiving_over",
        "_reset_code",
        "_reset_received",
        "_sending_over",
        "_stop_code",
        "_stop_received",
        "_taken",
        "_wants_writable",
        "_window",
        "_write_state",
        "fin_pending",
        "final_size",
        "highest",
        "id_bytes",
        "limit_pending",
        "receive_limit",
        "received",
        "reset_pending",
        "send_limit",
        "sent",
        "stop_pending",
        "stream_id",
        "written",
    )

    def __init__(
        self,
        owner: StreamOwner,
        stream_id: int,
        id_bytes: bytes,
        handler: StreamHandler,
        *,
        window: int,
        send_limit: int,
        high_water: int,
    ) -> None:
        self._owner = owner
        self._handler: StreamHandler = handler
        self.stream_id = stream_id
        self.id_bytes = id_bytes
        # Sending: offsets are `base` <= `sent` <= `written`; the buffer holds what lies between `base` and `written`.
        self._buffer: bytes | bytearray = b""
        self._base = 0
        self.sent = 0
        self.written = 0
        self.send_limit = send_limit
        self._lost: Ranges | None = None
        self._acked: Ranges | None = None
        self.fin_pending = False
        self._fin_acked = False
        self._write_state = _OPEN
        self._reset_code = 0
        self.reset_pending = False
        self._sending_over = False
        self._high_water = high_water
        self._wants_writable = False
        self._on_sent: list[Callable[[], None]] | None = None
        # Receiving: offsets are `taken` (by the handler) <= `received` (without gaps) <= `highest`.
        self._inbox: bytes | bytearray = b""
        self._out_of_order: Reassembly | None = None
        self._taken = 0
        self.received = 0
        self.highest = 0
        self.final_size: int | None = None
        self._window = window
        self.receive_limit = window
        self.limit_pending = False
        self._paused = False
        self._reset_received: int | None = None
        self._stop_received: int | None = None
        self._stop_code = 0
        self.stop_pending = False
        self._receiving_over = False

    def attach(self, handler: StreamHandler) -> None:
        """Hand the stream to its handler (streams the peer opened)."""
        self._handler = handler

    # --- Stream: sending ---------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray, fin: bool = False) -> bool:
        """See `Stream.write`."""
        if self._write_state:
            if self._write_state in (_STOPPED, _LOST):
                return True
            raise StreamClosedError(f"stream {self.stream_id} is closed for sending")
        if data:
            if self._base == self.written:
                self._buffer = bytes(data)
            elif type(self._buffer) is bytearray:
                self._buffer += data
            else:
                self._buffer = bytearray(self._buffer)
                self._buffer += data
            self.written += len(data)
        elif not fin:
            return self.written - self.sent <= self._high_water
        if fin:
            self._write_state = _FIN_WRITTEN
            self.fin_pending = True
        owner = self._owner
        if fin or self.sent < self.send_limit:
            owner.sending[self] = None
            if not owner.awake:
                owner.wake()
        if self.written - self.sent > self._high_water:
            self._wants_writable = True
            return False
        return True

    def reset(self, error_code: int = 0) -> None:
        """See `Stream.reset`."""
        if self._sending_over or self._write_state > _FIN_WRITTEN:
            return
        self._write_state = _RESET
        self._abandon_sending(error_code)
        self._sent_is_over()

    def unsent_bytes(self) -> int:
        """See `Stream.unsent_bytes`."""
        return self.written - self.sent

    def acknowledged(self) -> bool:
        """See `Stream.acknowledged`."""
        return self._sending_over and self._fin_acked

    def when_sent(self, callback: Callable[[], None]) -> None:
        """See `Stream.when_sent`."""
        if self._write_state in (_RESET, _STOPPED) or self._sending_over:
            callback()
        elif self._write_state != _LOST:
            if self._on_sent is None:
                self._on_sent = []
            self._on_sent.append(callback)

    # --- Stream: receiving -------------------------------------------------------------------------------------------

    def stop(self, error_code: int = 0) -> None:
        """See `Stream.stop`."""
        if self._receiving_over:
            return
        self._inbox = b""
        self._drop_out_of_order()
        self.limit_pending = False
        if self._reset_received is not None or (self.final_size is not None and self.received == self.final_size):
            # All of it has arrived and was not wanted: nothing to tell the peer.
            self._end_receiving()
            return
        self._receiving_over = True
        self._stop_code = error_code
        self.stop_pending = True
        self._mark_control()

    def pause_reading(self) -> None:
        """See `Stream.pause_reading`."""
        self._paused = True

    def resume_reading(self) -> None:
        """See `Stream.resume_reading`."""
        if not self._paused:
            return
        self._paused = False
        if not self._receiving_over and (self._inbox or self.final_size == self.received):
            self._mark_ready()

    # --- for the engine: packets bring -------------------------------------------------------------------------------

    def frame_data(self, offset: int, data: bytes, fin: bool) -> None:
        """A STREAM frame. Raises `StreamError`."""
        end = offset + len(data)
        if end > self.highest:
            self._raise_highest(end)
        if fin:
            self._set_final_size(end)
        if self._receiving_over or self._reset_received is not None:
            if self._receiving_over and self.final_size is not None:
                self._end_receiving()
            return
        if offset == self.received and self._out_of_order is None:
            if data:
                self.received = end
                if self._inbox:
                    self._append(data)
                else:
                    self._inbox = data
            elif not fin:
                return
        elif not self._take_out_of_order(offset, data, end):
            return
        if not self._paused:
            self._owner.ready[self] = None

    def frame_reset(self, error_code: int, final_size: int) -> None:
        """A RESET_STREAM frame. Raises `StreamError`."""
        if final_size > self.receive_limit:
            raise StreamError(FLOW_CONTROL_ERROR, "over stream data limit")
        complete = self.received == self.final_size
        self._set_final_size(final_size)
        self.highest = final_size
        if self._receiving_over:
            self._end_receiving()
        elif self._reset_received is None and not complete:
            self._reset_received = error_code
            self._drop_out_of_order()
            self._owner.ready[self] = None

    def frame_stop(self, error_code: int) -> None:
        """A STOP_SENDING frame: answered with RESET_STREAM of the same code (RFC 9000 section 3.5)."""
        if self._sending_over or self._write_state > _FIN_WRITTEN:
            return
        self._write_state = _STOPPED
        self._abandon_sending(error_code)
        self._stop_received = error_code
        self._owner.ready[self] = None

    def frame_limit(self, limit: int) -> None:
        """A MAX_STREAM_DATA frame."""
        if limit > self.send_limit:
            self.send_limit = limit
            if self.sent < self.written and self._write_state <= _FIN_WRITTEN:
                self._owner.sending[self] = None

    # --- for the engine: filling packets -----------------------------------------------------------------------------

    def next_data(self, room: int, connection_room: int) -> tuple[int, bytes, bool] | None:
        """The next piece to send: offset, at most `room` bytes, FIN; None if there is none for now.

        Lost bytes go first. New bytes stay within the peer's limits. A FIN alone needs no room.
        """
        buffer, base = self._buffer, self._base
        if self._lost is not None:
            start, stop = self._lost.take(room)
            if not self._lost.starts:
                self._lost = None
        else:
            start = self.sent
            stop = min(self.written, start + room, self.send_limit, start + connection_room)
            if stop <= start:
                if self.fin_pending and start == self.written:
                    self.fin_pending = False
                    return start, b"", True
                return None
            self.sent = stop
            if self._wants_writable and self.written - stop <= self._high_water >> 1:
                self._owner.ready[self] = None
        if start == base and stop - base == len(buffer) and type(buffer) is bytes:
            piece = buffer
        else:
            piece = bytes(buffer[start - base : stop - base])
        fin = self.fin_pending and stop == self.written
        if fin:
            self.fin_pending = False
        return start, piece, fin

    def has_data(self) -> bool:
        """Whether `next_data` has something, given room."""
        return (
            self._lost is not None
            or (self.sent < self.written and self.sent < self.send_limit)
            or (self.fin_pending and self.sent == self.written)
        )

    def next_reset(self) -> tuple[int, int]:
        """Error code and final size of the RESET_STREAM that is pending."""
        self.reset_pending = False
        return self._reset_code, self.sent

    def next_stop(self) -> int:
        """Error code of the STOP_SENDING that is pending."""
        self.stop_pending = False
        return self._stop_code

    def next_limit(self) -> int:
        """The MAX_STREAM_DATA that is pending."""
        self.limit_pending = False
        return self.receive_limit

    # --- for the engine: fate of what was sent -----------------------------------------------------------------------

    def on_data_acked(self, start: int, stop: int, fin: bool) -> None:
        """A piece of `next_data` has arrived."""
        if self._write_state > _FIN_WRITTEN:
            return
        if start == self._base:
            if self._acked is not None:
                stop = self._acked.reaches(stop)
                if not self._acked.starts:
                    self._acked = None
            self._drop_front(stop)
        elif stop > start:
            if self._acked is None:
                self._acked = Ranges()
            self._acked.add(start, stop)
        if fin:
            self._fin_acked = True
        if self._fin_acked and self._base == self.written:
            self._end_sending()

    def on_data_lost(self, start: int, stop: int, fin: bool) -> None:
        """A piece of `next_data` has to be sent again."""
        if self._write_state > _FIN_WRITTEN:
            return
        if stop > start:
            if self._lost is None:
                self._lost = Ranges()
            self._lost.add(start, stop)
        if fin:
            self.fin_pending = True
        self._owner.sending[self] = None

    def on_reset_acked(self) -> None:
        """RESET_STREAM has arrived."""
        self._end_sending()

    def on_control_lost(self, *, reset: bool = False, stop: bool = False, limit: bool = False) -> None:
        """A control frame has to be sent again if it still matters."""
        if reset and not self._sending_over:
            self.reset_pending = True
        elif stop and self.final_size is None:
            self.stop_pending = True
        elif limit and not self._receiving_over and self.final_size is None:
            self.limit_pending = True
        else:
            return
        self._owner.control[self] = None

    # --- for the engine: calling back --------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Call the handler for everything that happened; runs outside packet processing."""
        inbox = self._inbox
        if not self._receiving_over and not self._paused:
            fin = self.received == self.final_size and self._reset_received is None
            if inbox or fin:
                self._inbox = b""
                self._taken = self.received
                if fin:
                    # Before the call, so that the handler may look at (and stop) a stream that is over.
                    self._receiving_over = True
                elif self.final_size is None and self.receive_limit - self._taken <= self._window >> 1:
                    self.receive_limit = self._taken + self._window
                    self.limit_pending = True
                    self._owner.control[self] = None
                self._handler.on_data(inbox if type(inbox) is bytes else bytes(inbox), fin)
        if self._reset_received is not None and not self._receiving_over:
            self._inbox = b""
            self._receiving_over = True
            self._handler.on_reset(self._reset_received)
        if self._stop_received is not None:
            code, self._stop_received = self._stop_received, None
            self._wants_writable = False
            self._handler.on_stop(code)
            self._sent_is_over()
        if self._wants_writable and self.written - self.sent <= self._high_water >> 1:
            self._wants_writable = False
            if self._write_state == _OPEN:
                self._handler.on_writable()
        if self._sending_over and self._on_sent is not None:
            self._sent_is_over()
        if self._sending_over and self._receiving_over and self.final_size is not None:
            self._finish()

    def connection_lost(self, error: ConnectionClosedError) -> None:
        """Tell the handler, for the last time, and let everything go."""
        handler, self._handler = self._handler, NOBODY
        self._write_state = _LOST
        self._receiving_over = True
        self._on_sent = None
        self._drop_buffers()
        handler.on_connection_lost(error)

    def refuse(self) -> None:
        """Nobody wants this stream of the peer."""
        self.stop()
        self.reset()

    # -----------------------------------------------------------------------------------------------------------------

    def _abandon_sending(self, error_code: int) -> None:
        self._reset_code = error_code
        self.reset_pending = True
        self.fin_pending = self._fin_acked = self._wants_writable = False
        self._buffer = b""
        self._lost = self._acked = None
        self.written = self._base = self.sent
        self._owner.sending.pop(self, None)
        self._mark_control()

    def _drop_front(self, stop: int) -> None:
        base = self._base
        if stop - base >= len(self._buffer):
            self._buffer = b""
        elif type(self._buffer) is bytearray:
            del self._buffer[: stop - base]
        else:
            # Once, not with every acknowledgement: the front of a bytearray is cheap to cut off, that of bytes is not.
            self._buffer = bytearray(self._buffer[stop - base :])
        self._base = stop

    def _end_sending(self) -> None:
        self._sending_over = True
        if self._on_sent is not None or (self._receiving_over and self.final_size is not None):
            self._owner.ready[self] = None

    def _end_receiving(self) -> None:
        """The peer's half has ended and nobody is waiting for it."""
        self._receiving_over = True
        self.stop_pending = False
        if self._sending_over:
            self._mark_ready()

    def _sent_is_over(self) -> None:
        callbacks, self._on_sent = self._on_sent, None
        for callback in callbacks or ():
            callback()

    def _finish(self) -> None:
        self._handler = NOBODY
        self._owner.release(self)

    def _drop_buffers(self) -> None:
        self._buffer = self._inbox = b""
        self._lost = self._acked = None
        self._drop_out_of_order()

    def _mark_control(self) -> None:
        owner = self._owner
        owner.control[self] = None
        if not owner.awake:
            owner.wake()

    def _mark_ready(self) -> None:
        owner = self._owner
        owner.ready[self] = None
        if not owner.awake:
            owner.wake()

    def _set_final_size(self, size: int) -> None:
        if self.final_size is None:
            if size < self.highest:
                raise StreamError(FINAL_SIZE_ERROR, "final size below received data")
            self.final_size = size
        elif size != self.final_size:
            raise StreamError(FINAL_SIZE_ERROR, "final size changed")

    def _raise_highest(self, end: int) -> None:
        if end > self.receive_limit:
            raise StreamError(FLOW_CONTROL_ERROR, "over stream data limit")
        if self.final_size is not None and end > self.final_size:
            raise StreamError(FINAL_SIZE_ERROR, "data beyond final size")
        self.highest = end

    def _append(self, data: bytes | bytearray) -> None:
        if type(self._inbox) is not bytearray:
            self._inbox = bytearray(self._inbox)
        self._inbox += data

    def _take_out_of_order(self, offset: int, data: bytes, end: int) -> bool:
        """Keep data that is not next in line (or partly known); True if the handler has something new."""
        if end <= self.received:
            return end == self.final_size == self.received
        if offset < self.received:
            data = data[self.received - offset :]
            offset = self.received
        pieces = self._out_of_order
        if pieces is None:
            pieces = self._out_of_order = Reassembly()
        before = len(pieces)
        pieces.add(offset, data)
        reached = self.received
        while (block := pieces.take(reached)) is not None:
            reached += len(block)
            if self._inbox:
                self._append(block)
            else:
                self._inbox = bytes(block)
        self._owner.pieces_out_of_order += len(pieces) - before
        if len(pieces) > _MAX_STREAM_GAPS or self._owner.pieces_out_of_order > _MAX_CONNECTION_GAPS:
            raise StreamError(PROTOCOL_VIOLATION, "stream data too fragmented")
        if not len(pieces):
            self._out_of_order = None
        if reached == self.received:
            return False
        self.received = reached
        return True

    def _drop_out_of_order(self) -> None:
        if self._out_of_order is not None:
            self._owner.pieces_out_of_order -= len(self._out_of_order)
            self._out_of_order = None

    def held_bytes(self) -> int:
        """Received bytes that the handler has not taken, in order or not."""
        return len(self._inbox) + (0 if self._out_of_order is None else self._out_of_order.size)
