"""The sending part of a QUIC stream (RFC 9000 sections 2.2, 3.1 and 4.1). Sans-I/O, without a connection.

Offsets: `_base` <= `sent` <= `written`. Bytes below `_base` are acknowledged, bytes from `sent` on have never been sent.

What was written is kept in the pieces in which it came, so that large ones are never copied; small ones are gathered.
"""

from bisect import bisect_right
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from tunnel_protocol.errors import StreamClosedError
from tunnel_protocol.quic.ranges import Ranges


class SendState(IntEnum):
    """The sending states of RFC 9000 section 3.1; a state never goes back."""

    READY = 0
    """Nothing has been written."""

    SEND = 1
    """Bytes have been written; they are sent or retransmitted."""

    DATA_SENT = 2
    """All bytes and the FIN have been sent at least once."""

    DATA_RECVD = 3
    """The peer has acknowledged all bytes and the FIN."""

    RESET_SENT = 4
    """RESET_STREAM is pending or sent, because of the writer or a STOP_SENDING of the peer."""

    RESET_RECVD = 5
    """The peer has acknowledged RESET_STREAM."""

    LOST = 6
    """The connection has ended (not a state of the RFC)."""


_LARGE_BYTES: Final = 16_384
"""Writes of this size are kept as they are; smaller ones are gathered up to it."""

# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11), and these run for every chunk.
_READY: Final = SendState.READY
_DATA_RECVD: Final = SendState.DATA_RECVD
_RESET_RECVD: Final = SendState.RESET_RECVD
_RESET_SENT: Final = SendState.RESET_SENT
_SEND: Final = SendState.SEND
_LOST: Final = SendState.LOST
_DATA_SENT: Final = SendState.DATA_SENT


class SendHalf:
    """The bytes of one stream that are not sent or not acknowledged."""

    __slots__ = (
        "_acked",
        "_base",
        "_fin_acked",
        "_high_water",
        "_lost",
        "_on_sent",
        "fin_pending",
        "final_size",
        "limit",
        "pieces",
        "reset_code",
        "reset_pending",
        "sent",
        "starts",
        "state",
        "stopped_by_peer",
        "wants_writable",
        "written",
    )

    def __init__(self, limit: int, high_water: int) -> None:
        self.state = _READY
        self.pieces: list[bytes | bytearray] = []
        """What was written and is not acknowledged, one piece after the other; the first may begin with acknowledged bytes."""
        self.starts: list[int] = []
        """The offset at which each piece begins."""
        self._base = 0
        self.sent = 0
        self.written = 0
        self.limit = limit
        """The peer's MAX_STREAM_DATA limit in bytes."""
        self.final_size: int | None = None
        """Set with the FIN; nothing can be written after it."""
        self._lost: Ranges | None = None
        self._acked: Ranges | None = None
        self.fin_pending = False
        self._fin_acked = False
        self.reset_pending = False
        self.reset_code = 0
        self.stopped_by_peer: int | None = None
        """Error code of the peer's STOP_SENDING if that reset this sending part, else None."""
        self._high_water = high_water
        self.wants_writable = False
        """Whether a `write` returned False and the writer waits for `on_writable`."""
        self._on_sent: list[Callable[[], None]] | None = None

    @property
    def over(self) -> bool:
        """Whether the peer has acknowledged all bytes and the FIN, or the RESET_STREAM."""
        return self.state is _DATA_RECVD or self.state is _RESET_RECVD

    @property
    def abandoned(self) -> bool:
        """Whether no more bytes are sent because of a reset or the end of the connection."""
        return self.state >= _RESET_SENT

    @property
    def unsent_bytes(self) -> int:
        """Bytes written and not yet sent for the first time."""
        return self.written - self.sent

    # --- from the writer ---------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray, fin: bool) -> bool:
        """Queue bytes; False if they are dropped. Raises `StreamClosedError` after a FIN or reset by the writer."""
        if self.final_size is not None or self.state > _SEND:
            if self.stopped_by_peer is not None or self.state is _LOST:
                return False
            raise StreamClosedError("stream is closed for sending")
        if data:
            self._keep(data)
            self.written += len(data)
            self.state = _SEND
        if fin:
            self.state = _SEND
            self.final_size = self.written
            self.fin_pending = True
        return True

    def _keep(self, data: bytes | bytearray) -> None:
        pieces = self.pieces
        if pieces and len(pieces[-1]) + len(data) <= _LARGE_BYTES:
            last = pieces[-1]
            if type(last) is bytearray:
                last += data
            else:
                pieces[-1] = bytearray(last) + data
        else:
            pieces.append(bytes(data))
            self.starts.append(self.written)

    def above_high_water(self) -> bool:
        """Whether the unsent bytes exceed the high-water mark, so that the writer should pause."""
        return self.unsent_bytes > self._high_water

    def may_write_on(self) -> bool:
        """Whether a waiting writer may continue: the unsent bytes are at most half of the high-water mark."""
        return self.wants_writable and self.written - self.sent <= self._high_water >> 1

    def abandon(self, error_code: int) -> bool:
        """Drop unacknowledged bytes and make RESET_STREAM pending; False if this part has ended or was reset."""
        if self.over or self.abandoned:
            return False
        self.state = _RESET_SENT
        self.reset_code = error_code
        self.reset_pending = True
        self.fin_pending = self._fin_acked = self.wants_writable = False
        self._drop_all()
        self.written = self._base = self.sent
        return True

    def when_sent(self, callback: Callable[[], None]) -> bool:
        """Store `callback` for the end of this sending part; True if it has ended, then the caller calls `callback` itself."""
        if self.over or self.state is _RESET_SENT:
            return True
        if self.state is not _LOST:
            if self._on_sent is None:
                self._on_sent = []
            self._on_sent.append(callback)
        return False

    @property
    def awaited(self) -> bool:
        """Whether callbacks of `when_sent` are stored."""
        return self._on_sent is not None

    def call_back(self) -> None:
        """Call the callbacks of `when_sent`."""
        callbacks, self._on_sent = self._on_sent, None
        for callback in callbacks or ():
            callback()

    # --- filling packets ---------------------------------------------------------------------------------------------

    def next_data(self, max_bytes: int, connection_credit: int) -> tuple[int, bytes, bool] | None:
        """The next piece to send: offset, at most `max_bytes` bytes, FIN; None if nothing can be sent now.

        Lost bytes are sent first. New bytes stay within the peer's stream limit and `connection_credit` bytes. A FIN without data
        needs no credit.
        """
        if self._lost is not None:
            start, stop = self._lost.take(max_bytes)
            if not self._lost.starts:
                self._lost = None
        else:
            start = self.sent
            stop = min(self.written, start + max_bytes, self.limit, start + connection_credit)
            if stop <= start:
                if self.fin_pending and start == self.written:
                    self._fin_sent()
                    return start, b"", True
                return None
            self.sent = stop
        fin = self.fin_pending and stop == self.written
        if fin:
            self._fin_sent()
        return start, self._cut(start, stop), fin

    def _cut(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        pieces = self.pieces
        index = self.locate(start)
        at = start - self.starts[index]
        piece = pieces[index]
        wanted = stop - start
        if at + wanted <= len(piece):
            return piece if wanted == len(piece) and type(piece) is bytes else bytes(piece[at : at + wanted])
        parts: list[bytes | bytearray] = []
        while wanted > 0:
            part = pieces[index][at : at + wanted]
            parts.append(part)
            wanted -= len(part)
            index += 1
            at = 0
        return b"".join(parts)

    def locate(self, offset: int) -> int:
        """The index of the piece that has the byte at `offset`."""
        return 0 if len(self.starts) == 1 else bisect_right(self.starts, offset) - 1

    def next_run(self, piece_bytes: int, most_pieces: int, connection_credit: int, with_rest: bool) -> int:
        """The next new bytes to send in packets of `piece_bytes`: how many; 0 if there are fewer than two, or lost bytes.

        All are in one of `pieces`, at most `most_pieces` times `piece_bytes` and `connection_credit`, from `sent` as it was before,
        and with the FIN if it is pending and they reach it (`state` tells). With `with_rest` a shorter last packet is included if
        it takes all that is left.
        """
        start = self.sent
        if self.written - start < 2 * piece_bytes or self._lost is not None:
            return 0
        index = self.locate(start)
        size = self.starts[index] + len(self.pieces[index]) - start
        space = min(size, self.limit - start, connection_credit)
        pieces = min(space // piece_bytes, most_pieces)
        if pieces < 2:
            return 0
        if not (with_rest and space == size == self.written - start and size <= most_pieces * piece_bytes):
            size = pieces * piece_bytes
        self.sent = start + size
        if self.fin_pending and self.sent == self.written:
            self._fin_sent()
        return size

    def _fin_sent(self) -> None:
        self.fin_pending = False
        self.state = _DATA_SENT

    def has_data(self) -> bool:
        """Whether `next_data` would return something, given connection credit."""
        return (
            self._lost is not None
            or (self.sent < self.written and self.sent < self.limit)
            or (self.fin_pending and self.sent == self.written)
        )

    def next_reset(self) -> tuple[int, int]:
        """Error code and final size of the pending RESET_STREAM, which is no longer pending afterwards."""
        self.reset_pending = False
        return self.reset_code, self.sent

    # --- what packets bring ------------------------------------------------------------------------------------------

    def on_max_stream_data(self, limit: int) -> bool:
        """Process MAX_STREAM_DATA; True if there is something to send within the new limit."""
        if limit <= self.limit:
            return False
        self.limit = limit
        return self.sent < self.written and self.state <= _SEND

    def on_data_acked(self, start: int, stop: int, fin: bool) -> None:
        """A piece returned by `next_data` was acknowledged."""
        if self.state > _DATA_SENT:
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
            self.state = _DATA_RECVD

    def on_data_lost(self, start: int, stop: int, fin: bool) -> bool:
        """A piece returned by `next_data` was lost: queue it again; False if it is no longer needed."""
        if self.state > _DATA_SENT:
            return False
        if stop > start:
            if self._lost is None:
                self._lost = Ranges()
            self._lost.add(start, stop)
        if fin:
            self.fin_pending = True
        return True

    def on_reset_acked(self) -> None:
        """RESET_STREAM was acknowledged."""
        if self.state is _RESET_SENT:
            self.state = _RESET_RECVD

    def connection_lost(self) -> None:
        """The connection has ended: nothing more is sent, no callback is made. An acknowledged end stays acknowledged."""
        if not self.over:
            self.state = _LOST
        self._on_sent = None
        self._drop_all()

    def _drop_front(self, stop: int) -> None:
        self._base = stop
        starts, pieces = self.starts, self.pieces
        count = 0
        while count < len(starts) and starts[count] + len(pieces[count]) <= stop:
            count += 1
        if count:
            del starts[:count], pieces[:count]

    def _drop_all(self) -> None:
        self.pieces.clear()
        self.starts.clear()
        self._lost = self._acked = None
