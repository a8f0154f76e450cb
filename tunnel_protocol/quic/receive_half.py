"""The receiving part of a QUIC stream (RFC 9000 sections 2.2, 3.2 and 4.1). Sans-I/O, without a connection.

Offsets: `taken` (by the handler) <= `received` (without gaps) <= `highest`. Flow control credit is granted only for taken bytes,
so the window bounds the memory, including bytes received out of order.
"""

from enum import IntEnum
from typing import Final

from tunnel_protocol.quic.reassembly import Reassembly

FLOW_CONTROL_ERROR: Final = 0x3
FINAL_SIZE_ERROR: Final = 0x6
PROTOCOL_VIOLATION: Final = 0xA


class StreamError(Exception):
    """A peer violated the protocol on a stream; ends the connection with `error_code` (RFC 9000 section 20.1)."""

    def __init__(self, error_code: int, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        self.reason = reason


class ReceiveState(IntEnum):
    """The receiving states of RFC 9000 section 3.2; a state never goes back."""

    RECV = 0
    """Receiving; the final size is not known."""

    SIZE_KNOWN = 1
    """The FIN was received, but not all bytes before it."""

    DATA_RECVD = 2
    """All bytes were received; the handler has not taken them all."""

    DATA_READ = 3
    """The handler has taken all bytes, or has stopped the stream."""

    RESET_RECVD = 4
    """RESET_STREAM was received; the handler was not notified yet."""

    RESET_READ = 5
    """The handler was notified of the reset, or has stopped the stream."""

    LOST = 6
    """The connection has ended (not a state of the RFC)."""


# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11), and these run for every chunk.
_RECV: Final = ReceiveState.RECV
_DATA_READ: Final = ReceiveState.DATA_READ
_RESET_READ: Final = ReceiveState.RESET_READ
_LOST: Final = ReceiveState.LOST
_DATA_RECVD: Final = ReceiveState.DATA_RECVD
_RESET_RECVD: Final = ReceiveState.RESET_RECVD
_SIZE_KNOWN: Final = ReceiveState.SIZE_KNOWN


class ReceiveHalf:
    """Received bytes of one stream that the handler has not taken."""

    __slots__ = (
        "_inbox",
        "_out_of_order",
        "_taken",
        "_window",
        "final_size",
        "highest",
        "limit",
        "limit_pending",
        "paused",
        "pieces_out_of_order",
        "received",
        "reset_code",
        "state",
        "stop_code",
        "stop_pending",
    )

    def __init__(self, window: int) -> None:
        self.state = _RECV
        self._inbox: bytes | bytearray = b""
        self._out_of_order: Reassembly | None = None
        self.pieces_out_of_order = 0
        """Number of blocks received out of order."""
        self._taken = 0
        self.received = 0
        self.highest = 0
        self.final_size: int | None = None
        self._window = window
        self.limit = window
        """Our MAX_STREAM_DATA limit in bytes."""
        self.limit_pending = False
        self.paused = False
        self.reset_code = 0
        self.stop_code: int | None = None
        """Error code of our STOP_SENDING; bytes received after it are counted and dropped."""
        self.stop_pending = False

    @property
    def over(self) -> bool:
        """Whether the receiving part has ended and the handler has taken the end or the reset, or has stopped the stream."""
        return self.state is _DATA_READ or self.state is _RESET_READ

    @property
    def wanted(self) -> bool:
        """Whether the handler still expects data, FIN or a reset."""
        return self.stop_code is None and not self.over and self.state is not _LOST

    @property
    def held_bytes(self) -> int:
        """Received bytes that the handler has not taken, in order or not."""
        return len(self._inbox) + (0 if self._out_of_order is None else self._out_of_order.size)

    # --- from the handler --------------------------------------------------------------------------------------------

    def stop(self, error_code: int) -> None:
        """Drop all received and later bytes; make STOP_SENDING pending unless the peer has ended its sending part."""
        self._inbox = b""
        self._drop_out_of_order()
        self.limit_pending = False
        self.stop_code = error_code
        if self.state is _DATA_RECVD:
            self.state = _DATA_READ  # all of it has arrived and was not wanted: nothing to tell the peer
        elif self.state is _RESET_RECVD:
            self.state = _RESET_READ
        else:
            self.stop_pending = True
            if self.state is _SIZE_KNOWN:
                self.state = _DATA_READ

    def has_news(self) -> bool:
        """Whether `take` or `take_reset` has something for a handler that is not paused."""
        return self.wanted and (len(self._inbox) > 0 or self.state is _DATA_RECVD)

    def take(self) -> bytes | None:
        """Bytes for the handler; None if there are none. Grants flow control credit for them.

        If they are the last bytes, which may be none, `state` is DATA_READ afterwards.
        """
        inbox = self._inbox
        fin = self.state is _DATA_RECVD
        if not inbox and not fin:
            return None
        self._inbox = b""
        self._taken = self.received
        if fin:
            self.state = _DATA_READ
        elif self.final_size is None and self.limit - self._taken <= self._window >> 1:
            self.limit = self._taken + self._window
            self.limit_pending = True
        return inbox if type(inbox) is bytes else bytes(inbox)

    def take_reset(self) -> int:
        """The error code of the peer's RESET_STREAM; drops bytes that were not taken."""
        self._inbox = b""
        self.state = _RESET_READ
        return self.reset_code

    # --- filling packets ---------------------------------------------------------------------------------------------

    def next_stop(self) -> int:
        """Error code of the pending STOP_SENDING, which is no longer pending afterwards."""
        self.stop_pending = False
        return self.stop_code or 0

    def next_limit(self) -> int:
        """Limit of the pending MAX_STREAM_DATA, which is no longer pending afterwards."""
        self.limit_pending = False
        return self.limit

    def on_stop_lost(self) -> bool:
        """STOP_SENDING was lost: make it pending again; False if it is no longer needed."""
        self.stop_pending = self.final_size is None
        return self.stop_pending

    def on_limit_lost(self) -> bool:
        """MAX_STREAM_DATA was lost: make it pending again; False if it is no longer needed."""
        self.limit_pending = self.wanted and self.final_size is None
        return self.limit_pending

    # --- what packets bring ------------------------------------------------------------------------------------------

    def on_stream_frame(self, offset: int, data: bytes, fin: bool) -> bool:
        """Process a STREAM frame; True if there is something new for the handler, paused or not. Raises `StreamError`."""
        end = offset + len(data)
        if end > self.highest:
            self._raise_highest(end)
        if fin:
            self._set_final_size(end)
        # The first comparison is the cheaper one, and decides for all chunks but the last.
        if self.state is not _RECV and self.state > _DATA_RECVD:
            return False
        if self.stop_code is not None:
            if self.final_size is None:
                return False
            self._end_discarding(_DATA_READ)
            return True
        if offset == self.received and self._out_of_order is None:
            if data:
                self.received = end
                if self._inbox:
                    self._append(data)
                else:
                    self._inbox = data
            elif not fin:
                return False
        elif not self._take_out_of_order(offset, data, end):
            return False
        if self.final_size is not None and self.received == self.final_size:
            self.state = _DATA_RECVD
        return True

    def on_reset_stream(self, error_code: int, final_size: int) -> bool:
        """Process a RESET_STREAM frame; True if there is something new for the handler. Raises `StreamError`."""
        if final_size > self.limit:
            raise StreamError(FLOW_CONTROL_ERROR, "over stream data limit")
        self._set_final_size(final_size)
        self.highest = final_size
        if self.state >= _DATA_RECVD:
            return False
        self._drop_out_of_order()
        if self.stop_code is not None:
            self._end_discarding(_RESET_READ)
        else:
            self.reset_code = error_code
            self.state = _RESET_RECVD
        return True

    def connection_lost(self) -> None:
        """The connection has ended: drop all bytes."""
        self.state = _LOST
        self._inbox = b""
        self._drop_out_of_order()

    def _drop_out_of_order(self) -> None:
        self._out_of_order = None
        self.pieces_out_of_order = 0

    def _end_discarding(self, state: ReceiveState) -> None:
        self.stop_pending = False
        self.state = state

    def _set_final_size(self, size: int) -> None:
        if self.final_size is None:
            if size < self.highest:
                raise StreamError(FINAL_SIZE_ERROR, "final size below received data")
            self.final_size = size
            if self.state is _RECV:
                self.state = _SIZE_KNOWN
        elif size != self.final_size:
            raise StreamError(FINAL_SIZE_ERROR, "final size changed")

    def _raise_highest(self, end: int) -> None:
        if end > self.limit:
            raise StreamError(FLOW_CONTROL_ERROR, "over stream data limit")
        if self.final_size is not None and end > self.final_size:
            raise StreamError(FINAL_SIZE_ERROR, "data beyond final size")
        self.highest = end

    def _append(self, data: bytes | bytearray) -> None:
        if type(self._inbox) is not bytearray:
            self._inbox = bytearray(self._inbox)
        self._inbox += data

    def _take_out_of_order(self, offset: int, data: bytes, end: int) -> bool:
        """Store data received out of order, or partly received before; True if the handler has something new."""
        if end <= self.received:
            return end == self.final_size == self.received
        if offset < self.received:
            data = data[self.received - offset :]
            offset = self.received
        pieces = self._out_of_order
        if pieces is None:
            pieces = self._out_of_order = Reassembly()
        pieces.add(offset, data)
        reached = self.received
        while (block := pieces.take(reached)) is not None:
            reached += len(block)
            if self._inbox:
                self._append(block)
            else:
                self._inbox = bytes(block)
        self.pieces_out_of_order = len(pieces)
        if not self.pieces_out_of_order:
            self._out_of_order = None
        if reached == self.received:
            return False
        self.received = reached
        return True
