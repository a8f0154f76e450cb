# ruff: noqa: SLF001 - this package uses private attributes of aioquic
"""aioquic's connection with the streams of `quic/stream.py`: building a packet visits only streams that have something to send.

Replaced are the parts of aioquic that iterate over all streams, buffer without bound or grant credit on arrival. TLS, packet
protection, loss recovery, connection ids, paths and closing are aioquic's.
"""

from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic.buffer import UINT_VAR_MAX, Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionId,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType, QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder

from tunnel_protocol.quic.aioquic_engine.bounded import PACKET_FRAMES, BoundedConnection
from tunnel_protocol.quic.packets import varint
from tunnel_protocol.quic.ranges import Ranges
from tunnel_protocol.quic.receive_half import StreamError
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream import NULL_HANDLER, BidirectionalStream
from tunnel_protocol.quic.stream_interface import StreamHandler

try:
    from tunnel_protocol.quic.packet_speedups import stream_frame
except ImportError:
    from tunnel_protocol.quic.packets import stream_frame

Frame = tuple[int, bytes, Callable[..., None], tuple[Any, ...]]
"""Frame type, encoded frame, and the function to call, with its arguments, when the frame was acknowledged or lost."""

ACKED = QuicDeliveryState.ACKED

_ONE_RTT = tls.Epoch.ONE_RTT
_SMALLEST_STREAM_FRAME = 24
"""Minimum free bytes in a packet for another STREAM frame, whose header takes up to 19 bytes."""

_MAX_CONTROL_FRAMES = (PACKET_FRAMES.pieces or 0) // 2
"""After this many frames in a packet no other stream adds control frames (up to three each), because peers limit frames too."""


def data_delivery(delivery: QuicDeliveryState, stream: BidirectionalStream, start: int, stop: int, fin: bool) -> None:
    """A packet with a STREAM frame was acknowledged or lost."""
    if delivery is ACKED:
        stream.on_data_acked(start, stop, fin)
    else:
        stream.on_data_lost(start, stop, fin)


def reset_delivery(delivery: QuicDeliveryState, stream: BidirectionalStream) -> None:
    """A packet with RESET_STREAM was acknowledged or lost."""
    if delivery is ACKED:
        stream.on_reset_acked()
    else:
        stream.on_control_lost(reset=True)


def stop_delivery(delivery: QuicDeliveryState, stream: BidirectionalStream) -> None:
    """A packet with STOP_SENDING was acknowledged or lost."""
    if delivery is not ACKED:
        stream.on_control_lost(stop=True)


def limit_delivery(delivery: QuicDeliveryState, stream: BidirectionalStream) -> None:
    """A packet with MAX_STREAM_DATA was acknowledged or lost."""
    if delivery is not ACKED:
        stream.on_control_lost(limit=True)


class StreamConnection(BoundedConnection):
    """Implements `StreamCallbacks`; reads and writes stream-related frames."""

    def __init__(
        self,
        settings: QuicSettings,
        configuration: QuicConfiguration,
        original_destination_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration, original_destination_connection_id=original_destination_connection_id
        )
        self.settings = settings
        self.streams: dict[int, BidirectionalStream] = {}
        self.sending: dict[BidirectionalStream, None] = {}
        self.control: dict[BidirectionalStream, None] = {}
        self.ready: dict[BidirectionalStream, None] = {}
        self.poll_scheduled = False
        self.pieces_out_of_order = 0
        self.quiescent = False
        """True if the last `poll` left nothing to send and only stream data arrived since: no deadline has become earlier."""
        self._connection_blocked: dict[BidirectionalStream, None] = {}
        """Streams that have bytes to send but no connection-level credit."""
        self._unaccepted: list[BidirectionalStream] = []
        """Streams the peer opened that were not yet passed to the owner."""
        self._unseen = Ranges()
        """Numbers (from 1) of the peer's streams that are open because of a higher-numbered one, without a frame so far."""
        self._credit_raised = False
        self._blocked_at: int | None = None
        """The stream limit for which STREAMS_BLOCKED is to be sent; None if it is not."""
        self._blocked_reported: int | None = None
        """The limit of the last STREAMS_BLOCKED; it is sent once per limit."""
        self._cids_to_send = False
        self._ack_delay = settings.ack_delay_ms / 1000
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = settings.max_streams_bidi
        # raw-quic uses no unidirectional streams: grant none.
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0

    # --- streams -----------------------------------------------------------------------------------------------------

    @property
    def free_streams(self) -> int:
        """Streams that can be opened without further credit."""
        return max(0, self._remote_max_streams_bidi - (self._local_next_stream_id_bidi >> 2))

    def open_stream(self, handler: StreamHandler) -> BidirectionalStream | None:
        """Open a bidirectional stream; None without credit."""
        stream_id = self._local_next_stream_id_bidi
        limit = self._remote_max_streams_bidi
        if stream_id >> 2 >= limit:
            if self._blocked_reported != limit:
                self._blocked_reported = self._blocked_at = limit
                self.quiescent = False
                if not self.poll_scheduled:
                    self.schedule_poll()
            return None
        self._local_next_stream_id_bidi = stream_id + 4
        return self._create_stream(stream_id, handler, self._remote_max_stream_data_bidi_remote)

    def release(self, stream: BidirectionalStream) -> None:
        """Remove a stream; if the peer opened it, the peer may open another one (RFC 9000 section 4.6)."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self.sending.pop(stream, None)
        self.control.pop(stream, None)
        self._connection_blocked.pop(stream, None)
        if (stream.stream_id & 1) == self._is_client:
            self._local_max_streams_bidi.value += 1
            self.quiescent = False

    def schedule_poll(self) -> None:
        """See `StreamCallbacks`; the subclass `AioquicEngine` implements it."""

    def _create_stream(self, stream_id: int, handler: StreamHandler, send_limit: int) -> BidirectionalStream:
        settings = self.settings
        stream = self.streams[stream_id] = BidirectionalStream(
            self,
            stream_id,
            varint(stream_id),
            handler,
            window=settings.stream_window_bytes,
            send_limit=send_limit,
            high_water=settings.send_buffer_bytes,
        )
        return stream

    def _find_stream(self, frame_type: int, stream_id: int) -> BidirectionalStream | None:
        """The stream a frame refers to, created if the peer may open it; None if it has ended and was removed."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            return stream
        if (stream_id & 1) != self._is_client:  # ours
            if not stream_id & 2 and stream_id < self._local_next_stream_id_bidi:
                return None
            raise QuicConnectionError(QuicErrorCode.STREAM_STATE_ERROR, frame_type, "Stream was never opened")
        limit = self._local_max_streams_uni if stream_id & 2 else self._local_max_streams_bidi
        count = (stream_id >> 2) + 1
        if count <= limit.used:
            # A stream that was only opened by a frame for a higher-numbered stream has no state until a frame for it arrives.
            return self._create_peer_stream(stream_id) if self._unseen.discard(count) else None
        if count > limit.value:
            raise QuicConnectionError(QuicErrorCode.STREAM_LIMIT_ERROR, frame_type, "Too many streams open")
        # A stream opens all lower-numbered ones of its kind (RFC 9000 section 2.1).
        if not limit.used and count > 1:
            # The owner may expect the peer's first stream first (the handshake): pass it on before the others.
            self._create_peer_stream(stream_id & 3)
            limit.used = 1
        if count > limit.used + 1:
            self._unseen.add(limit.used + 1, count)
        limit.used = count
        return self._create_peer_stream(stream_id)

    def _create_peer_stream(self, stream_id: int) -> BidirectionalStream:
        stream = self._create_stream(stream_id, NULL_HANDLER, self._remote_max_stream_data_bidi_local)
        self._unaccepted.append(stream)
        return stream

    # --- frames in ---------------------------------------------------------------------------------------------------

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id = buf.pull_uint_var()
        offset = buf.pull_uint_var() if frame_type & 4 else 0
        length = buf.pull_uint_var() if frame_type & 2 else buf.capacity - buf.tell()
        if offset + length > UINT_VAR_MAX:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "offset + length cannot exceed 2^62 - 1"
            )
        data = buf.pull_bytes(length)
        if context.quic_logger_frames is not None and self._quic_logger is not None:
            context.quic_logger_frames.append(
                self._quic_logger.encode_stream_frame(
                    QuicStreamFrame(data=data, fin=bool(frame_type & 1), offset=offset), stream_id=stream_id
                )
            )
        stream = self._find_stream(frame_type, stream_id)
        if stream is not None:
            try:
                stream.on_stream_frame(offset, data, bool(frame_type & 1))
            except StreamError as error:
                raise QuicConnectionError(error.error_code, frame_type, error.reason) from error

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id = buf.pull_uint_var()
        error_code = buf.pull_uint_var()
        final_size = buf.pull_uint_var()
        if context.quic_logger_frames is not None and self._quic_logger is not None:
            context.quic_logger_frames.append(
                self._quic_logger.encode_reset_stream_frame(
                    error_code=error_code, final_size=final_size, stream_id=stream_id
                )
            )
        stream = self._find_stream(frame_type, stream_id)
        if stream is not None:
            try:
                stream.on_reset_stream(error_code, final_size)
            except StreamError as error:
                raise QuicConnectionError(error.error_code, frame_type, error.reason) from error

    def _handle_stop_sending_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id = buf.pull_uint_var()
        error_code = buf.pull_uint_var()
        if context.quic_logger_frames is not None and self._quic_logger is not None:
            context.quic_logger_frames.append(
                self._quic_logger.encode_stop_sending_frame(error_code=error_code, stream_id=stream_id)
            )
        self._assert_stream_can_send(frame_type, stream_id)
        stream = self._find_stream(frame_type, stream_id)
        if stream is not None:
            stream.on_stop_sending(error_code)

    def _handle_max_stream_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id = buf.pull_uint_var()
        limit = buf.pull_uint_var()
        if context.quic_logger_frames is not None and self._quic_logger is not None:
            context.quic_logger_frames.append(
                self._quic_logger.encode_max_stream_data_frame(maximum=limit, stream_id=stream_id)
            )
        self._assert_stream_can_send(frame_type, stream_id)
        stream = self._find_stream(frame_type, stream_id)
        if stream is not None:
            stream.on_max_stream_data(limit)

    def _handle_stream_data_blocked_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id = buf.pull_uint_var()
        limit = buf.pull_uint_var()
        if context.quic_logger_frames is not None and self._quic_logger is not None:
            context.quic_logger_frames.append(
                self._quic_logger.encode_stream_data_blocked_frame(limit=limit, stream_id=stream_id)
            )
        self._assert_stream_can_receive(frame_type, stream_id)
        self._find_stream(frame_type, stream_id)

    def _handle_max_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        super()._handle_max_data_frame(context, frame_type, buf)
        if self._connection_blocked and self._remote_max_data > self._remote_max_data_used:
            self.sending.update(self._connection_blocked)
            self._connection_blocked.clear()

    def _unblock_streams(self, is_unidirectional: bool) -> None:
        if not is_unidirectional:
            self._credit_raised = True
            self._blocked_at = None

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._cids_to_send = True

    def _on_new_connection_id_delivery(self, delivery: QuicDeliveryState, connection_id: QuicConnectionId) -> None:
        super()._on_new_connection_id_delivery(delivery, connection_id)
        self._cids_to_send = self._cids_to_send or delivery is not ACKED

    def _on_blocked_delivery(self, delivery: QuicDeliveryState, limit: int) -> None:
        if delivery is not ACKED and limit == self._remote_max_streams_bidi:
            self._blocked_at = limit

    # --- frames out --------------------------------------------------------------------------------------------------

    def _max_streams_due(self) -> bool:
        """Whether to send MAX_STREAMS: fewer streams are left to the peer than the new limit would add."""
        limit = self._local_max_streams_bidi
        return limit.value != limit.sent and limit.sent - limit.used < limit.value - limit.sent

    def _has_frames(self) -> bool:
        return bool(self.sending or self.control or self._blocked_at is not None) or self._max_streams_due()

    def _take_frames(self, budget: int, frames: list[Frame]) -> int:
        """Append the frames that streams have to send and that fit in `budget` bytes; returns the remaining budget."""
        if budget < _SMALLEST_STREAM_FRAME:
            return budget
        if self._max_streams_due():
            limit = self._local_max_streams_bidi
            limit.sent = limit.value
            frame = b"\x12" + varint(limit.value)
            frames.append((QuicFrameType.MAX_STREAMS_BIDI, frame, self._on_connection_limit_delivery, (limit,)))
            budget -= len(frame)
        if self._blocked_at is not None:
            frame = b"\x16" + varint(self._blocked_at)
            frames.append((QuicFrameType.STREAMS_BLOCKED_BIDI, frame, self._on_blocked_delivery, (self._blocked_at,)))
            self._blocked_at = None
            budget -= len(frame)
        control = self.control
        while control and budget >= 3 * _SMALLEST_STREAM_FRAME and len(frames) < _MAX_CONTROL_FRAMES:
            stream = next(iter(control))
            del control[stream]
            budget -= self._take_control_frames(stream, frames)
        sending = self.sending
        while sending and budget >= _SMALLEST_STREAM_FRAME:
            stream = next(iter(sending))
            del sending[stream]
            half = stream.send_half
            before = half.sent
            offset_bytes = 8 if before >= 0x40000000 else 4 if before >= 0x4000 else 2
            piece = stream.next_data(
                budget - 3 - len(stream.id_bytes) - offset_bytes, self._remote_max_data - self._remote_max_data_used
            )
            if piece is None:
                if half.has_data():
                    self._connection_blocked[stream] = None
                continue
            offset, data, fin = piece
            self._remote_max_data_used += half.sent - before
            stop = offset + len(data)
            frame = stream_frame(stream.id_bytes, offset, data, fin)
            frames.append((frame[0], frame, data_delivery, (stream, offset, stop, fin)))
            budget -= len(frame)
            if half.has_data():
                # Append it at the end: each stream sends one piece per round.
                sending[stream] = None
        return budget

    def _take_control_frames(self, stream: BidirectionalStream, frames: list[Frame]) -> int:
        size = 0
        if stream.receive_half.stop_pending:
            frame = b"\x05" + stream.id_bytes + varint(stream.receive_half.next_stop())
            frames.append((QuicFrameType.STOP_SENDING, frame, stop_delivery, (stream,)))
            size += len(frame)
        if stream.send_half.reset_pending:
            error_code, final_size = stream.send_half.next_reset()
            frame = b"\x04" + stream.id_bytes + varint(error_code) + varint(final_size)
            frames.append((QuicFrameType.RESET_STREAM, frame, reset_delivery, (stream,)))
            size += len(frame)
        if stream.receive_half.limit_pending:
            frame = b"\x11" + stream.id_bytes + varint(stream.receive_half.next_limit())
            frames.append((QuicFrameType.MAX_STREAM_DATA, frame, limit_delivery, (stream,)))
            size += len(frame)
        return size

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        """Write packets with every kind of frame, with qlog; `one_rtt.py` has the fast path for ordinary packets.

        There are no CRYPTO frames after the handshake, because no session tickets are sent.
        """
        crypto = self._cryptos[_ONE_RTT]
        if not crypto.send.is_valid():
            return
        space = self._spaces[_ONE_RTT]
        while True:
            if space.ack_at is None or space.ack_at > now:
                self._pacing_at = self._loss._pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    return
            builder.start_packet(QuicPacketType.ONE_RTT, crypto)
            if space.ack_at is not None and (space.ack_at <= now or self._has_frames()):
                self._write_ack_frame(builder=builder, space=space, now=now)
            if self._handshake_complete:
                self._write_connection_frames(builder, network_path, now)
            self._write_probes(builder)
            if self._handshake_complete:
                self._write_stream_frames(builder)
            if builder.packet_is_empty:
                return
            self._loss._pacer.update_after_send(now=now)

    def _write_probes(self, builder: QuicPacketBuilder) -> None:
        if self._ping_pending:
            self._write_ping_frame(builder, self._ping_pending)
            self._ping_pending.clear()
        if self._probe_pending:
            self._write_ping_frame(builder, comment="probe")
            self._probe_pending = False

    def _write_stream_frames(self, builder: QuicPacketBuilder) -> None:
        frames: list[Frame] = []
        self._take_frames(min(builder.remaining_flight_space, builder.remaining_buffer_space), frames)
        for frame_type, frame, handler, args in frames:
            builder.start_frame(frame_type, len(frame), handler, args).push_bytes(frame[1:])
            if self._quic_logger is not None and builder.quic_logger_frames is not None:
                builder.quic_logger_frames.append(_described(frame_type, args))

    def _write_connection_frames(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        """Frames about paths and connection ids, as aioquic writes them."""
        if not (network_path.is_validated or network_path.local_challenge_sent):
            self._write_path_challenge_frame(builder=builder, network_path=network_path)
            if network_path.validation_deadline is None:
                # RFC 9000 section 8.2.4.
                network_path.validation_deadline = now + 3 * max(
                    self._loss.get_probe_timeout(), 2 * self._configuration.initial_rtt
                )
        if self._handshake_done_pending:
            self._write_handshake_done_frame(builder=builder)
            self._handshake_done_pending = False
        while network_path.remote_challenges:
            self._write_path_response_frame(builder=builder, challenge=network_path.remote_challenges[0])
            network_path.remote_challenges.popleft()
        if self._cids_to_send:
            for connection_id in self._host_cids:
                if not connection_id.was_sent:
                    self._write_new_connection_id_frame(builder=builder, connection_id=connection_id)
            self._cids_to_send = False
        for sequence_number in self._retire_connection_ids[:]:
            self._write_retire_connection_id_frame(builder=builder, sequence_number=sequence_number)
            self._retire_connection_ids.pop(0)


def _described(frame_type: int, args: tuple[Any, ...]) -> dict[str, Any]:
    """A frame sent by this module, as qlog describes it."""
    name = QuicFrameType(frame_type & 0xF8 if 8 <= frame_type <= 15 else frame_type).name.lower()
    if name.endswith("_bidi"):
        return {"frame_type": name.removesuffix("_bidi"), "stream_type": "bidirectional"}
    described: dict[str, Any] = {"frame_type": name.removesuffix("_base"), "stream_id": args[0].stream_id}
    if len(args) == 4:
        described.update(offset=args[1], length=args[2] - args[1], fin=args[3])
    return described
