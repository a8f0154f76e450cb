# mypy: disable-error-code="attr-defined"
# ruff: noqa: SLF001 - the file that knows the private side of aioquic
"""aioquic's connection, made to visit only streams with something to do, and to grant credit when we say so.

The only file that touches private attributes of aioquic; `pyproject.toml` pins the exact version, and
`tests/unit/test_aioquic_private_api.py` fails when one of them moves. What changes against the library:

- sending: streams with data, a reset or a stop to send are kept in an ordered set; nothing walks all streams (RFC 9000
  leaves scheduling to the sender, section 2.3);
- receiving: MAX_STREAM_DATA follows consumption (section 4.1), not arrival, and windows never grow by themselves;
- acknowledgements wait a little longer within section 13.2, and not at all after reordering or many packets;
- packets on the established path take a short way in; everything unusual takes the library's;
- path MTU is probed from 1,200 bytes upwards (RFC 8899) and falls back when the path seems to swallow large packets.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState, QuicReceiveContext
from aioquic.quic.crypto import CryptoError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from tunnel_protocol.quic.settings import QuicSettings

AIOQUIC_VERSION = "1.7.2"
CONNECTION_ID_BYTES = 8
UNLIMITED_DATA = (1 << 62) - 1
"""No connection-level receive limit (as the reference): memory is bounded per stream and by the number of streams."""

_ONE_RTT = tls.Epoch.ONE_RTT
_MIN_STREAM_FRAME_BYTES = 16
_MTU_PROBES = 3
_BLACK_HOLE_PTOS = 3
_RESERVED_BITS = 0x18


class PeerClosed(events.QuicEvent):
    """The peer's CONNECTION_CLOSE arrived; the library itself reports it only after the draining period."""

    def __init__(self, error_code: int, reason: str) -> None:
        self.error_code = error_code
        self.reason = reason


class StreamCreditGrown(events.QuicEvent):
    """MAX_STREAMS arrived."""


class SenderChanged(events.QuicEvent):
    """A stream's sending side drained below its low-water mark, or is over."""

    def __init__(self, stream: QuicStream) -> None:
        self.stream = stream


class _Sender(QuicStreamSender):
    """Tells the connection when there is something to do for its stream."""

    connection: "TunnelQuicConnection"
    stream: QuicStream
    watched_below = -1
    """Report when fewer unsent bytes than this are left; -1 = nobody waits."""

    def write(self, data: bytes, end_stream: bool = False) -> None:
        super().write(data, end_stream)
        self.connection.dirty[self.stream] = None

    def reset(self, error_code: int) -> None:
        super().reset(error_code)
        if self.reset_pending:
            # Nothing of it will be sent again: free it now, the peer's acknowledgement may take its time.
            self._buffer.clear()
            self._pending = RangeSet()
            self._pending_eof = False
            self.connection.dirty[self.stream] = None

    def on_data_delivery(self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool) -> None:
        super().on_data_delivery(delivery, start, stop, fin)
        if self.is_finished:
            self.connection.side_finished(self.stream)
        elif not self.buffer_is_empty:
            self.connection.dirty[self.stream] = None

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_reset_delivery(delivery)
        if self.is_finished:
            self.connection.side_finished(self.stream)
        else:
            self.connection.dirty[self.stream] = None


class _Receiver(QuicStreamReceiver):
    """Tells the connection when its stream needs a STOP_SENDING."""

    connection: "TunnelQuicConnection"
    stream: QuicStream

    def stop(self, error_code: int = QuicErrorCode.NO_ERROR) -> None:
        super().stop(error_code)
        self.connection.dirty[self.stream] = None

    def on_stop_sending_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_stop_sending_delivery(delivery)
        if self.stop_pending:
            self.connection.dirty[self.stream] = None


class _StreamAdoption(list):  # type: ignore[type-arg]
    """Stands where the library queues every stream it creates, and takes each one over instead of keeping it."""

    def __init__(self, adopt: Callable[[QuicStream], None]) -> None:
        super().__init__()
        self._adopt = adopt

    def append(self, stream: QuicStream) -> None:
        self._adopt(stream)


class TunnelQuicConnection(QuicConnection):
    """One connection; `received` holds what is to be told, in order, and is drained by the engine.

    In-order bytes of a stream stand in it as plain tuples (stream, data, fin), because there is one per chunk.
    """

    def __init__(self, configuration: QuicConfiguration, settings: QuicSettings, **options: Any) -> None:
        self.dirty: dict[QuicStream, None] = {}
        self.blocked: dict[QuicStream, None] = {}
        self._grants: dict[QuicStream, None] = {}
        self._finished: list[QuicStream] = []
        self.open_stream_count = 0
        self.server_name: str | None = configuration.server_name
        super().__init__(configuration=configuration, **options)
        self.received: deque[Any] = self._events
        self._streams_queue = _StreamAdoption(self._adopt)
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = settings.max_streams_bidi
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 100
        self._window = settings.stream_window_bytes
        self._lazy_ack_delay = settings.ack_delay_ms / 1000
        self._ack_every = settings.ack_every
        self._packets_to_ack = 0
        self._mtu_target = settings.max_datagram_bytes
        self._mtu_probes_left = _MTU_PROBES if settings.max_datagram_bytes > SMALLEST_MAX_DATAGRAM_SIZE else 0
        self._short_way = False
        self._context = QuicReceiveContext(_ONE_RTT, b"", None, None, 0.0, None)  # type: ignore[arg-type]

    # --- what the engine reads and asks ----------------------------------------------------------------------------

    @property
    def stream_credit(self) -> int:
        """Bidirectional streams that can be opened now."""
        return max(0, self._remote_max_streams_bidi - self._local_next_stream_id_bidi // 4)

    @property
    def smoothed_rtt(self) -> float:
        """Seconds."""
        return self._loss._rtt_smoothed

    @property
    def consecutive_ptos(self) -> int:
        """Probe timeouts since the last acknowledgement."""
        return self._loss._pto_count

    @property
    def is_closing(self) -> bool:
        """Whether a CONNECTION_CLOSE was sent, received or is about to be."""
        return self._close_event is not None

    def streams(self) -> list[QuicStream]:
        """All streams whose state is not released."""
        return list(self._streams.values())

    def find_stream(self, stream_id: int) -> QuicStream | None:
        """A stream whose state is not released."""
        return self._streams.get(stream_id)

    def new_stream(self) -> QuicStream:
        """Open the next bidirectional stream; the caller has looked at `stream_credit`."""
        return self._get_or_create_stream_for_send(self._local_next_stream_id_bidi)

    def unsent_bytes(self, stream: QuicStream) -> int:
        """Bytes written and not yet sent once."""
        sender = stream.sender
        if sender._reset_error_code is not None:
            return 0
        unsent: int = sender._buffer_stop - sender.highest_offset
        return unsent

    def sending_side_over(self, stream: QuicStream) -> bool:
        """Whether the sending side needs nothing more: acknowledged in full, or reset."""
        return bool(stream.sender.is_finished or stream.sender._reset_error_code is not None)

    def acknowledged(self, stream: QuicStream) -> bool:
        """Whether the peer has acknowledged everything including FIN."""
        return bool(stream.sender.is_finished and stream.sender._reset_error_code is None)

    def watch_sender(self, stream: QuicStream, below: int) -> None:
        """Report `SenderChanged` once fewer than `below` unsent bytes are left (0: once the side is over)."""
        stream.sender.watched_below = below

    def grant(self, stream: QuicStream, limit: int) -> None:
        """Let the peer send up to offset `limit` on this stream."""
        if limit > stream.max_stream_data_local and not stream.receiver.is_finished:
            stream.max_stream_data_local = limit
            self._grants[stream] = None

    def give_up(self, reason: str) -> None:
        """End at once without a word: the peer is not there."""
        if self._close_event is None:
            self._close_event = events.ConnectionTerminated(
                error_code=QuicErrorCode.INTERNAL_ERROR, frame_type=QuicFrameType.PADDING, reason_phrase=reason
            )
        self._close_end()

    def release(self) -> None:
        """Drop every reference between streams and connection; nothing is sent or received any more."""
        self.dirty.clear()
        self.blocked.clear()
        self._grants.clear()
        self._finished.clear()
        self._streams.clear()

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if not self._is_client:
            handle_hello = self.tls._server_handle_hello

            def note_name_and_handle(input_buf: Buffer, *rest: Buffer) -> None:
                start = input_buf.tell()
                self.server_name = tls.pull_client_hello(input_buf).server_name
                input_buf.seek(start)
                handle_hello(input_buf, *rest)

            self.tls._server_handle_hello = note_name_and_handle

    # --- streams ---------------------------------------------------------------------------------------------------

    def _adopt(self, stream: QuicStream) -> None:
        stream.sender.__class__ = _Sender
        stream.receiver.__class__ = _Receiver
        stream.sender.connection = stream.receiver.connection = self
        stream.sender.stream = stream.receiver.stream = stream
        stream.face = None
        self.open_stream_count += 1

    def side_finished(self, stream: QuicStream) -> None:
        """One side of a stream is over; its state goes when the other one is over, too."""
        if stream.sender.is_finished:
            stream.sender._buffer.clear()
            if stream.sender.watched_below >= 0:
                stream.sender.watched_below = -1
                self.received.append(SenderChanged(stream))
        if stream.is_finished:
            self._finished.append(stream)

    def _discard_finished(self) -> None:
        for stream in self._finished:
            if self._streams.pop(stream.stream_id, None) is None:
                continue
            self.open_stream_count -= 1
            self.dirty.pop(stream, None)
            self.blocked.pop(stream, None)
            self._grants.pop(stream, None)
            if (stream.stream_id & 1) == (1 if self._is_client else 0):
                # Let the peer open a new stream for each one that closes (RFC 9000 section 4.6).
                self._stream_limit(stream.stream_id).value += 1
        self._finished.clear()

    # --- receiving -------------------------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """The short way: one 1-RTT packet to our current id on the validated path; else the library's way."""
        if (
            not self._short_way
            or data[0] & 0x80
            or data[1:9] != self.host_cid
            or self._network_paths[0].addr != addr
            or self._close_event is not None
        ):
            largest = self._spaces[_ONE_RTT].largest_received_packet if self._spaces else -1
            super().receive_datagram(data, addr, now)
            if self._spaces and self._spaces[_ONE_RTT].largest_received_packet != largest:
                self._note_packet(self._spaces[_ONE_RTT], now)
            self._consider_short_way()
            return
        space = self._spaces[_ONE_RTT]
        try:
            header, payload, number = self._cryptos[_ONE_RTT].decrypt_packet(data, 9, space.expected_packet_number)
        except CryptoError:
            return
        if number in space.received_packets:
            return
        if header[0] & _RESERVED_BITS:
            self.close(QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "Reserved bits must be zero")
            return
        in_order = number == space.largest_received_packet + 1
        if number >= space.expected_packet_number:
            space.expected_packet_number = number + 1
        context = self._context
        context.time = now
        try:
            ack_eliciting, _ = self._payload_received(context, payload)
        except Exception as error:
            if not hasattr(error, "error_code"):
                raise
            self.close(error.error_code, getattr(error, "frame_type", None), getattr(error, "reason_phrase", ""))
            return
        if self._close_event is not None:
            return
        self._close_at = now + self._idle_timeout()
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        queue = space.ack_queue
        queue.add(number)
        space.received_packets.add(number)
        if len(queue) > 32:
            queue.shift()
        if ack_eliciting:
            self._packets_to_ack += 1
            if not in_order or self._packets_to_ack >= self._ack_every:
                space.ack_at = now  # RFC 9000 section 13.2.1: reordering is reported at once
            elif space.ack_at is None:
                space.ack_at = now + self._lazy_ack_delay

    def _consider_short_way(self) -> None:
        """From the confirmed handshake on, unless packets are logged."""
        if self._handshake_confirmed and self._quic_logger is None and self._state is QuicConnectionState.CONNECTED:
            path = self._network_paths[0]
            self._short_way = path.is_validated and len(self._network_paths) == 1
            self._context.network_path = path
            self._context.host_cid = self.host_cid
            self._context.version = self._version
            self._ack_delay = self._lazy_ack_delay
        else:
            self._short_way = False

    def _note_packet(self, space: Any, now: float) -> None:
        self._packets_to_ack += 1
        if self._packets_to_ack >= self._ack_every and space.ack_at is not None:
            space.ack_at = now

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """In-order data of a known stream is reported without intermediate objects; the rest is the library's."""
        start = buf.tell()
        stream = self._streams.get(buf.pull_uint_var())
        if stream is not None and self._quic_logger is None:
            offset = buf.pull_uint_var() if frame_type & 4 else 0
            length = buf.pull_uint_var() if frame_type & 2 else buf.capacity - buf.tell()
            receiver = stream.receiver
            end = offset + length
            if (
                offset == receiver._buffer_start
                and length
                and not receiver._buffer
                and receiver._final_size is None
                and not receiver.is_finished
                and end >= receiver.highest_offset
                and end <= stream.max_stream_data_local
            ):
                data = buf.pull_bytes(length)
                self._local_max_data.used += end - receiver.highest_offset
                receiver.highest_offset = receiver._buffer_start = end
                fin = frame_type & 1
                if fin:
                    receiver._final_size = end
                    receiver.is_finished = True
                    if stream.sender.is_finished:
                        self._finished.append(stream)
                self.received.append((stream, data, bool(fin)))
                return
        buf.seek(start)
        super()._handle_stream_frame(context, frame_type, buf)
        if stream is not None and stream.is_finished:
            self._finished.append(stream)

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_reset_stream_frame(context, frame_type, buf)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receiver._buffer.clear()
            stream.receiver.stop_pending = False
            if stream.is_finished:
                self._finished.append(stream)

    def _handle_max_streams_bidi_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        before = self._remote_max_streams_bidi
        super()._handle_max_streams_bidi_frame(context, frame_type, buf)
        if self._remote_max_streams_bidi > before:
            self.received.append(StreamCreditGrown())

    def _handle_max_stream_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_max_stream_data_frame(context, frame_type, buf)
        stream = self._streams.get(stream_id)
        if stream is not None and stream in self.blocked:
            del self.blocked[stream]
            self.dirty[stream] = None

    def _handle_max_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        super()._handle_max_data_frame(context, frame_type, buf)
        self.dirty.update(self.blocked)
        self.blocked.clear()

    def _handle_connection_close_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        first = self._close_event is None
        super()._handle_connection_close_frame(context, frame_type, buf)
        if first and self._close_event is not None:
            self.received.append(PeerClosed(self._close_event.error_code, self._close_event.reason_phrase))

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery != QuicDeliveryState.ACKED and stream.stream_id in self._streams:
            self._grants[stream] = None

    # --- sending ---------------------------------------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """Nothing is built while there is nothing to say."""
        if self._short_way and not self._close_pending and not self._something_to_send(now):
            self._pacing_at = None
            return []
        datagrams: list[tuple[bytes, Any]] = super().datagrams_to_send(now)
        if self._mtu_probes_left and self._short_way and self._close_event is None:
            datagrams += self._mtu_probe(now)
        return datagrams

    def _something_to_send(self, now: float) -> bool:
        space = self._spaces[_ONE_RTT]
        path = self._network_paths[0]
        streams, uni = self._local_max_streams_bidi, self._local_max_streams_uni
        return bool(
            self.dirty
            or self._grants
            or self._finished
            or (space.ack_at is not None and space.ack_at <= now)
            or self._ping_pending
            or self._probe_pending
            or self._mtu_probes_left
            or self._retire_connection_ids
            or self._datagrams_pending
            or path.remote_challenges
            or not path.is_validated
            or len(self._network_paths) > 1
            or self._handshake_done_pending
            or streams.value - streams.sent > streams.sent - streams.used
            or uni.value - uni.sent > uni.sent - uni.used
            or not self._crypto_streams[_ONE_RTT].sender.buffer_is_empty
            or any(not connection_id.was_sent for connection_id in self._host_cids)
        )

    def _write_application(self, builder: QuicPacketBuilder, network_path: Any, now: float) -> None:
        crypto = self._cryptos[_ONE_RTT]
        if not crypto.send.is_valid():
            return
        if self._finished:
            self._discard_finished()
        space = self._spaces[_ONE_RTT]
        crypto_sender = self._crypto_streams[_ONE_RTT].sender
        while True:
            acking = space.ack_at is not None and space.ack_at <= now
            if not acking:
                self._pacing_at = self._loss._pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    break
            builder.start_packet(QuicPacketType.ONE_RTT, crypto)
            if acking:
                self._write_ack_frame(builder=builder, space=space, now=now)
                self._packets_to_ack = 0
            if self._handshake_complete:
                self._write_connection_frames(builder, network_path, space, now)
            self._write_grants(builder, space)
            if self._ping_pending:
                self._write_ping_frame(builder, self._ping_pending)
                self._ping_pending.clear()
            if self._probe_pending:
                self._write_ping_frame(builder, comment="probe")
                self._probe_pending = False
            if not crypto_sender.buffer_is_empty:
                self._write_crypto_frame(builder=builder, space=space, stream=self._crypto_streams[_ONE_RTT])
            self._write_streams(builder, space)
            if builder.packet_is_empty:
                break
            self._loss._pacer.update_after_send(now=now)
            if not self.dirty and not self._grants and crypto_sender.buffer_is_empty:
                break

    def _write_connection_frames(self, builder: QuicPacketBuilder, path: Any, space: Any, now: float) -> None:
        """Frames about the connection and its paths, as the library orders them."""
        if not (path.is_validated or path.local_challenge_sent):
            self._write_path_challenge_frame(builder=builder, network_path=path)
            if path.validation_deadline is None:
                # RFC 9000 section 8.2.4: three times the larger PTO of the current and of a new path.
                patience = max(self._loss.get_probe_timeout(), 2 * self._configuration.initial_rtt)
                path.validation_deadline = now + 3 * patience
        if self._handshake_done_pending:
            self._write_handshake_done_frame(builder=builder)
            self._handshake_done_pending = False
        while path.remote_challenges:
            self._write_path_response_frame(builder=builder, challenge=path.remote_challenges[0])
            path.remote_challenges.popleft()
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                self._write_new_connection_id_frame(builder=builder, connection_id=connection_id)
        while self._retire_connection_ids:
            self._write_retire_connection_id_frame(builder=builder, sequence_number=self._retire_connection_ids[0])
            self._retire_connection_ids.pop(0)
        self._write_connection_limits(builder=builder, space=space)

    def _write_grants(self, builder: QuicPacketBuilder, space: Any) -> None:
        while self._grants:
            stream = next(iter(self._grants))
            if not stream.receiver.is_finished:
                self._write_stream_limits(builder=builder, space=space, stream=stream)
            del self._grants[stream]

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: Any, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        # What was consumed is below half of the limit's double, so the library adds nothing of its own to the limit.
        highest, stream.receiver.highest_offset = stream.receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            stream.receiver.highest_offset = highest

    def _write_streams(self, builder: QuicPacketBuilder, space: Any) -> None:
        """Fill the packet from the streams with something to send; a served stream goes to the end of the line."""
        dirty = self.dirty
        for _ in range(len(dirty)):
            if not dirty:
                return
            stream = next(iter(dirty))
            try:
                if not self._write_stream(builder, space, stream):
                    return
            except QuicPacketBuilderStop:
                return

    def _write_stream(self, builder: QuicPacketBuilder, space: Any, stream: QuicStream) -> bool:
        """Write what fits; False if the packet (or the congestion window) is full."""
        sender, receiver = stream.sender, stream.receiver
        if receiver.stop_pending:
            if receiver.is_finished:
                receiver.stop_pending = False
            else:
                self._write_stop_sending_frame(builder=builder, stream=stream)
        if sender.reset_pending:
            self._write_reset_stream_frame(builder=builder, stream=stream)
        if sender._reset_error_code is not None or sender.buffer_is_empty:
            del self.dirty[stream]
            return True
        if builder.remaining_flight_space < _MIN_STREAM_FRAME_BYTES:
            return False
        allowed = min(
            sender.highest_offset + self._remote_max_data - self._remote_max_data_used, stream.max_stream_data_remote
        )
        before = builder.remaining_flight_space
        self._remote_max_data_used += self._write_stream_frame(
            builder=builder, space=space, stream=stream, max_offset=allowed
        )
        if not len(sender._pending) and not sender._pending_eof:
            sender.buffer_is_empty = True
            del self.dirty[stream]
        elif builder.remaining_flight_space == before:
            # Nothing went out although there was room: the peer's window is used up.
            del self.dirty[stream]
            self.blocked[stream] = None
        else:
            del self.dirty[stream]
            self.dirty[stream] = None
        if sender.watched_below > 0 and self.unsent_bytes(stream) < sender.watched_below:
            sender.watched_below = -1
            self.received.append(SenderChanged(stream))
        return True

    # --- path MTU --------------------------------------------------------------------------------------------------

    def _mtu_probe(self, now: float) -> list[tuple[bytes, Any]]:
        """One padded PING of the target size, a few times until one is acknowledged."""
        room = self._loss.congestion_window - self._loss.bytes_in_flight
        if self._max_datagram_size >= self._mtu_target or room < self._mtu_target:
            if self._max_datagram_size >= self._mtu_target:
                self._mtu_probes_left = 0
            return []
        self._mtu_probes_left -= 1
        pending, self._mtu_probes_left = self._mtu_probes_left, 0  # the next one only when this one is lost
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=self._mtu_target,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=self._version,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[_ONE_RTT])
        buf = builder.start_frame(QuicFrameType.PING, handler=self._on_mtu_probe_delivery, handler_args=(pending,))
        buf.push_bytes(bytes(builder.remaining_buffer_space))
        return list(
            self._flush_builder(
                builder=builder, network_path=self._network_paths[0], peer_cid=self._peer_cid.cid, now=now
            )
        )

    def _on_mtu_probe_delivery(self, delivery: QuicDeliveryState, probes_left: int) -> None:
        if delivery == QuicDeliveryState.ACKED:
            self._max_datagram_size = self._mtu_target
        else:
            self._mtu_probes_left = probes_left

    def handle_timer(self, now: float) -> None:
        """The library's timers, and the fall-back when large packets seem to vanish (RFC 8899 section 4.3)."""
        super().handle_timer(now)
        if self._loss._pto_count >= _BLACK_HOLE_PTOS and self._max_datagram_size > SMALLEST_MAX_DATAGRAM_SIZE:
            self._max_datagram_size = SMALLEST_MAX_DATAGRAM_SIZE
            self._mtu_probes_left = 0
