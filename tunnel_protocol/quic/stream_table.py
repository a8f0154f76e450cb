"""The streams of a connection: their limits, credit and frames (RFC 9000 sections 2, 3 and 4).

The three work sets hold streams with something to do, so that building a packet visits no other stream.
"""

from typing import Final

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.connection_callbacks import ConnectionCallbacks
from tunnel_protocol.quic.ranges import Ranges
from tunnel_protocol.quic.send_half import SendState
from tunnel_protocol.quic.sent_packet import (
    MAX_STREAM_DATA,
    MAX_STREAMS,
    RESET_STREAM,
    STOP_SENDING,
    STREAM,
    STREAMS_BLOCKED,
    SentFrame,
)
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream import NULL_HANDLER, BidirectionalStream, StreamCallbacks
from tunnel_protocol.quic.stream_interface import StreamHandler
from tunnel_protocol.quic.transport_error import ErrorCode, TransportError
from tunnel_protocol.quic.varint import varint

try:
    from tunnel_protocol.quic.packet_speedups import stream_frame
except ImportError:
    from tunnel_protocol.quic.packets import stream_frame

PACKET_FRAMES: Final = Limit("quic.frames_in_a_packet", pieces=1_024)
"""Stream-related frames in a 1-RTT packet: a peer may renew the credit of very many streams, or reset them, at once."""

SMALLEST_STREAM_FRAME: Final = 24
"""Minimum free bytes in a packet for another STREAM frame, whose header takes up to 19 bytes."""

_DATA_SENT: Final = SendState.DATA_SENT
_MAX_CONTROL_FRAMES: Final = (PACKET_FRAMES.pieces or 0) // 2
"""After this many frames in a packet no other stream adds control frames (up to three each), because peers limit frames too."""


RUN_FRAME_BYTES: Final = 9
"""Bytes of a STREAM frame in a run besides stream id and data: the type, and an offset of constant size."""

_TURN_PACKETS: Final = 64
"""Packets that all streams with bytes to send may fill before the first one has its turn again."""

_LEAST_TURN_PACKETS: Final = 8
"""Packets that one stream may fill before the next one has its turn, even if very many have bytes to send."""


class StreamRun:
    """New bytes of one stream that fill packets which hold nothing else."""

    __slots__ = ("fin", "piece_bytes", "start", "stop", "stream")

    def __init__(self, stream: BidirectionalStream, start: int, stop: int, piece_bytes: int, fin: bool) -> None:
        self.stream = stream
        self.start = start
        self.stop = stop
        self.piece_bytes = piece_bytes
        """Bytes in each packet; the last may have fewer."""
        self.fin = fin


class PeerLimits:
    """What the peer's transport parameters allow us (RFC 9000 section 18.2). Sizes in bytes."""

    __slots__ = ("max_data", "max_streams_bidi", "stream_data_bidi_local", "stream_data_bidi_remote")

    def __init__(
        self, max_data: int, max_streams_bidi: int, stream_data_bidi_local: int, stream_data_bidi_remote: int
    ) -> None:
        self.max_data = max_data
        self.max_streams_bidi = max_streams_bidi
        self.stream_data_bidi_local = stream_data_bidi_local
        """For streams that the peer opens."""
        self.stream_data_bidi_remote = stream_data_bidi_remote
        """For streams that we open."""


class StreamTable(StreamCallbacks):
    """All streams of one connection."""

    __slots__ = (
        "_blocked_at",
        "_blocked_reported",
        "_connection",
        "_high_water",
        "_is_client",
        "_next_id",
        "_peer_used",
        "_stream_limit",
        "_stream_limit_sent",
        "_turn",
        "_turn_left",
        "_unseen",
        "_window",
        "closed",
        "connection_blocked",
        "credit_raised",
        "data_sent",
        "peer",
        "streams",
        "unaccepted",
    )

    def __init__(
        self, is_client: bool, settings: QuicSettings, peer: PeerLimits, connection: ConnectionCallbacks
    ) -> None:
        super().__init__()
        self._is_client = is_client
        self._window = settings.stream_window_bytes
        self._high_water = settings.send_buffer_bytes
        self._connection = connection
        self.peer = peer
        self.closed = False
        self.streams: dict[int, BidirectionalStream] = {}
        self.connection_blocked: dict[BidirectionalStream, None] = {}
        """Streams that have bytes to send but no connection-level credit."""
        self.unaccepted: list[BidirectionalStream] = []
        """Streams the peer opened that were not yet passed to the owner."""
        self.credit_raised = False
        """Whether the peer allows more streams than when this was last reset."""
        self.data_sent = 0
        """Bytes of all streams that count against the peer's MAX_DATA."""
        self._turn = -1
        """Id of the stream that filled the last run: it is first in `sending` while `_turn_left` packets of its turn are left."""
        self._turn_left = 0
        self._next_id = 0 if is_client else 1
        self._stream_limit = self._stream_limit_sent = settings.max_streams_bidi
        """Streams the peer may open, and the limit it was told."""
        self._peer_used = 0
        """Number of the peer's streams that are, or were, open."""
        self._unseen = Ranges()
        """Numbers (from 1) of the peer's streams that are open because of a higher-numbered one, without a frame so far."""
        self._blocked_at: int | None = None
        """The stream limit for which STREAMS_BLOCKED is to be sent; None if it is not."""
        self._blocked_reported: int | None = None
        """The limit of the last STREAMS_BLOCKED; it is sent once per limit."""

    # --- from the user -----------------------------------------------------------------------------------------------

    @property
    def free_streams(self) -> int:
        """Streams that can be opened without further credit."""
        return max(0, self.peer.max_streams_bidi - (self._next_id >> 2))

    def open(self, handler: StreamHandler) -> BidirectionalStream | None:
        """Open a bidirectional stream; None without credit, which the peer is told."""
        stream_id = self._next_id
        limit = self.peer.max_streams_bidi
        if stream_id >> 2 >= limit:
            if self._blocked_reported != limit:
                self._blocked_reported = self._blocked_at = limit
                self.schedule_poll()
            return None
        self._next_id = stream_id + 4
        return self._create(stream_id, handler, self.peer.stream_data_bidi_remote)

    def schedule_poll(self) -> None:
        """See `StreamCallbacks`."""
        if not self.poll_scheduled:
            self._connection.schedule_poll()

    def release(self, stream: BidirectionalStream) -> None:
        """Remove a stream; if the peer opened it, the peer may open another one (RFC 9000 section 4.6)."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        for work in (self.sending, self.control, self.connection_blocked):
            if stream in work:
                del work[stream]
        if (stream.stream_id & 1) == self._is_client:
            self._stream_limit += 1
            if self._limit_due():
                self.schedule_poll()

    def close(self) -> list[BidirectionalStream]:
        """The connection has ended: returns the streams, which are removed."""
        streams = list(self.streams.values())
        self.streams.clear()
        for work in (self.sending, self.control, self.ready, self.connection_blocked):
            work.clear()
        self.unaccepted.clear()
        self._connection = ConnectionCallbacks()
        return streams

    # --- frames in ---------------------------------------------------------------------------------------------------

    def find(self, frame_type: int, stream_id: int) -> BidirectionalStream | None:
        """The stream a frame refers to, created if the peer may open it; None if it has ended and was removed.

        Raises `TransportError`.
        """
        stream = self.streams.get(stream_id)
        if stream is not None:
            return stream
        if (stream_id & 1) != self._is_client:  # ours
            if not stream_id & 2 and stream_id < self._next_id:
                return None
            raise TransportError(ErrorCode.STREAM_STATE_ERROR, frame_type, "Stream was never opened")
        count = (stream_id >> 2) + 1
        if stream_id & 2:
            # raw-quic and what is spoken over it use no unidirectional streams: none are granted.
            raise TransportError(ErrorCode.STREAM_LIMIT_ERROR, frame_type, "Too many streams open")
        if count <= self._peer_used:
            # A stream that was only opened by a frame for a higher-numbered stream has no state until a frame for it arrives.
            return self._create_of_peer(stream_id) if self._unseen.discard(count) else None
        if count > self._stream_limit:
            raise TransportError(ErrorCode.STREAM_LIMIT_ERROR, frame_type, "Too many streams open")
        # A stream opens all lower-numbered ones of its kind (RFC 9000 section 2.1).
        if not self._peer_used and count > 1:
            # The owner may expect the peer's first stream first (the handshake): pass it on before the others.
            self._create_of_peer(stream_id & 3)
            self._peer_used = 1
        if count > self._peer_used + 1:
            self._unseen.add(self._peer_used + 1, count)
        self._peer_used = count
        return self._create_of_peer(stream_id)

    def check_can_send(self, frame_type: int, stream_id: int) -> None:
        """Raise `TransportError` if the frame is about our sending part of a stream that has none (RFC 9000 section 19.5)."""
        if stream_id & 2 and (stream_id & 1) == self._is_client:
            raise TransportError(ErrorCode.STREAM_STATE_ERROR, frame_type, "Stream is receive-only")

    def check_can_receive(self, frame_type: int, stream_id: int) -> None:
        """Raise `TransportError` if the frame is about our receiving part of a stream that has none."""
        if stream_id & 2 and (stream_id & 1) != self._is_client:
            raise TransportError(ErrorCode.STREAM_STATE_ERROR, frame_type, "Stream is send-only")

    def on_max_data(self, limit: int) -> None:
        """Process MAX_DATA; `limit` in bytes."""
        if limit > self.peer.max_data:
            self.peer.max_data = limit
            self.sending.update(self.connection_blocked)
            self.connection_blocked.clear()

    def on_max_streams(self, limit: int) -> None:
        """Process MAX_STREAMS for bidirectional streams."""
        if limit > self.peer.max_streams_bidi:
            self.peer.max_streams_bidi = limit
            self.credit_raised = True
            self._blocked_at = None

    def on_streams_blocked_lost(self, limit: int) -> None:
        """STREAMS_BLOCKED was lost: send it again if it still holds."""
        if limit == self.peer.max_streams_bidi:
            self._blocked_at = limit

    def on_max_streams_lost(self) -> None:
        """MAX_STREAMS was lost: send the limit again, with what was granted since."""
        self._stream_limit_sent = 0

    # --- frames out --------------------------------------------------------------------------------------------------

    def _limit_due(self) -> bool:
        """Whether to send MAX_STREAMS: fewer streams are left to the peer than the new limit would add."""
        sent = self._stream_limit_sent
        return sent != self._stream_limit and sent - self._peer_used < self._stream_limit - sent

    def has_frames(self) -> bool:
        """Whether `take_frames` has something to take, given connection credit."""
        return len(self.sending) > 0 or len(self.control) > 0 or self._blocked_at is not None or self._limit_due()

    def take_frames(self, budget: int, frames: list[SentFrame], parts: list[bytes]) -> int:
        """Append frames that fit in `budget` bytes, and their encoding to `parts`; returns the remaining budget."""
        if budget < SMALLEST_STREAM_FRAME:
            return budget
        if self._blocked_at is not None or self._stream_limit != self._stream_limit_sent:
            budget = self._take_limit_frames(budget, frames, parts)
        control = self.control
        while control and budget >= 3 * SMALLEST_STREAM_FRAME and len(frames) < _MAX_CONTROL_FRAMES:
            stream = next(iter(control))
            del control[stream]
            budget = _take_control_frames(stream, budget, frames, parts)
        sending = self.sending
        while sending and budget >= SMALLEST_STREAM_FRAME:
            stream = next(iter(sending))
            half = stream.send_half
            before = half.sent
            offset_bytes = 8 if before >= 0x40000000 else 4 if before >= 0x4000 else 2
            piece = stream.next_data(
                budget - 3 - len(stream.id_bytes) - offset_bytes, self.peer.max_data - self.data_sent
            )
            if piece is None:
                del sending[stream]
                if half.has_data():
                    self.connection_blocked[stream] = None
                continue
            offset, data, fin = piece
            self.data_sent += half.sent - before
            frame = stream_frame(stream.id_bytes, offset, data, fin)
            frames.append(SentFrame(STREAM, stream, offset, offset + len(data), fin))
            parts.append(frame)
            budget -= len(frame)
            if not half.has_data():
                del sending[stream]
            elif stream.stream_id == self._turn and self._turn_left > 1:
                self._turn_left -= 1  # a run was cut short by the window: its turn goes on
            else:
                del sending[stream]
                sending[stream] = None
        return budget

    def take_run(self, space: int, most_packets: int) -> StreamRun | None:
        """New bytes of the next stream for several packets of `space` bytes; None if `take_frames` has to fill the next one."""
        sending = self.sending
        if len(sending) == 0 or len(self.control) > 0 or self._blocked_at is not None or self._limit_due():
            return None
        stream = next(iter(sending))
        half = stream.send_half
        start = half.sent
        piece_bytes = space - RUN_FRAME_BYTES - len(stream.id_bytes)
        alone = len(sending) == 1
        if alone or stream.stream_id != self._turn:
            self._turn = stream.stream_id
            self._turn_left = max(_TURN_PACKETS // len(sending), _LEAST_TURN_PACKETS)
        size = stream.next_run(
            piece_bytes, min(most_packets, self._turn_left), self.peer.max_data - self.data_sent, alone
        )
        if size == 0:
            return None
        self.data_sent += size
        self._turn_left -= size // piece_bytes
        has_data = half.has_data()
        if self._turn_left <= 0 or not has_data:
            del sending[stream]
            if has_data:
                sending[stream] = None
        return StreamRun(
            stream, start, start + size, piece_bytes, half.state is _DATA_SENT and half.sent == half.final_size
        )

    def _take_limit_frames(self, budget: int, frames: list[SentFrame], parts: list[bytes]) -> int:
        if self._limit_due():
            limit = self._stream_limit_sent = self._stream_limit
            frame = b"\x12" + varint(limit)
            frames.append(SentFrame(MAX_STREAMS, None, limit))
            parts.append(frame)
            budget -= len(frame)
        if self._blocked_at is not None:
            frame = b"\x16" + varint(self._blocked_at)
            frames.append(SentFrame(STREAMS_BLOCKED, None, self._blocked_at))
            parts.append(frame)
            self._blocked_at = None
            budget -= len(frame)
        return budget

    # -----------------------------------------------------------------------------------------------------------------

    def _create(self, stream_id: int, handler: StreamHandler, send_limit: int) -> BidirectionalStream:
        stream = self.streams[stream_id] = BidirectionalStream(
            self,
            stream_id,
            varint(stream_id),
            handler,
            window=self._window,
            send_limit=send_limit,
            high_water=self._high_water,
        )
        return stream

    def _create_of_peer(self, stream_id: int) -> BidirectionalStream:
        stream = self._create(stream_id, NULL_HANDLER, self.peer.stream_data_bidi_local)
        self.unaccepted.append(stream)
        return stream


def _take_control_frames(stream: BidirectionalStream, budget: int, frames: list[SentFrame], parts: list[bytes]) -> int:
    if stream.receive_half.stop_pending:
        frame = b"\x05" + stream.id_bytes + varint(stream.receive_half.next_stop())
        frames.append(SentFrame(STOP_SENDING, stream))
        parts.append(frame)
        budget -= len(frame)
    if stream.send_half.reset_pending:
        error_code, final_size = stream.send_half.next_reset()
        frame = b"\x04" + stream.id_bytes + varint(error_code) + varint(final_size)
        frames.append(SentFrame(RESET_STREAM, stream))
        parts.append(frame)
        budget -= len(frame)
    if stream.receive_half.limit_pending:
        frame = b"\x11" + stream.id_bytes + varint(stream.receive_half.next_limit())
        frames.append(SentFrame(MAX_STREAM_DATA, stream))
        parts.append(frame)
        budget -= len(frame)
    return budget
