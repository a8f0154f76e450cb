# ruff: noqa: SLF001 - this package uses private attributes of aioquic
"""Fast paths for ordinary packets: 1-RTT, on the only validated path, with STREAM and ACK frames.

Everything else is processed by aioquic's code on the same state: handshake, migration, path validation, key update, qlog and
closing. Loss detection and congestion control are aioquic's (RFC 9002).
"""

from collections.abc import Iterable
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer, BufferReadError  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import AEAD, CryptoContext, CryptoPair  # type: ignore[attr-defined]  # re-exported so
from aioquic.quic.packet import (
    NON_ACK_ELICITING_FRAME_TYPES,
    QuicErrorCode,
    QuicPacketType,
    QuicTransportParameters,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicDeliveryState
from cryptography.exceptions import InvalidTag

from tunnel_protocol.quic.aioquic_engine.bounded import MAX_ACK_FRAMES, FrameCountError
from tunnel_protocol.quic.aioquic_engine.keys import KeyPairWithPrevious
from tunnel_protocol.quic.aioquic_engine.streams import ACKED, Frame, StreamConnection, data_delivery
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.packet_space import Acknowledged, Handlers, PacketSpace, SentPacket
from tunnel_protocol.quic.packets import HEADER_BYTES, SMALLEST_PACKET_BYTES, Ack
from tunnel_protocol.quic.path_mtu import BASE_BYTES, PathMtu
from tunnel_protocol.quic.receive_half import StreamError

try:
    from tunnel_protocol.quic.packet_speedups import Keys, open_packet, read_ack, read_stream_frames, seal_packet
except ImportError:
    from tunnel_protocol.quic.packets import Keys, open_packet, read_ack, read_stream_frames, seal_packet

_NO_KEYS = Keys(lambda *_: b"", 0, lambda _: b"")
_ONE_RTT = tls.Epoch.ONE_RTT
_ACK, _STREAM = 0x02, 0x08
_CONNECTED = QuicConnectionState.CONNECTED
_OVERHEAD_BYTES = 1 + 2 + 16
"""Bytes of first byte, packet number and AEAD tag; the peer's connection id is added to this."""

KEY_UPDATE_PACKETS = 1 << 22
"""Packets per key before a key update: half of the confidentiality limit of AES-GCM (RFC 9001 section 6.6)."""

_BURST_PACKETS = 32
"""Packets that may be sent at once without regard to the pacing rate (RFC 9002 section 7.7)."""

_PACING_GRAIN_S = 0.002
"""Seconds: the resolution of event loop timers. What the pacing rate allows in this time may be sent at once."""


class OneRttConnection(StreamConnection):
    """A connection that uses the fast paths where possible."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path_mtu = PathMtu(self.settings.max_datagram_bytes)
        self._peer_max_udp_payload = 65_527
        self._idle_s = 0.0
        """The negotiated idle timeout in seconds; set when the handshake is confirmed."""
        self._packets_under_key = 0
        self._pace_tokens = 0.0
        self._pace_time = 0.0
        self._now = 0.0
        """Time of the caller's clock at the last call, in seconds."""
        self._opens_with = self._seals_with = _NO_KEYS
        self._opens_for: AEAD | None = None
        """The aioquic keys from which `_opens_with` was made; compared to detect a key update by either side."""
        self._seals_for: AEAD | None = None
        self._app_space: PacketSpace
        self._app_crypto: CryptoPair
        self._loss_by_aioquic = self._loss._on_packets_lost
        self._loss._on_packets_lost = self._on_packets_lost  # type: ignore[method-assign]

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        ack_after_bytes = self.settings.ack_every * BASE_BYTES
        self._app_space = PacketSpace(
            ack_after_bytes=ack_after_bytes,
            least_counted_bytes=ack_after_bytes // (8 * self.settings.ack_every),
            ack_delay_s=self._ack_delay,
        )
        self._spaces[_ONE_RTT] = self._app_space  # type: ignore[assignment]  # same attributes, see PacketSpace
        self._loss.spaces = list(self._spaces.values())
        self._app_crypto = self._cryptos[_ONE_RTT] = KeyPairWithPrevious(self._cryptos[_ONE_RTT])

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        self._idle_s = self._idle_timeout()

    def discard(self) -> None:
        """See `BoundedConnection.discard`."""
        super().discard()
        if hasattr(self, "_app_crypto"):  # not set if the first datagram held no valid packet
            del self._app_crypto
            self._app_space.sent_packets.clear()
        # `__init__` replaced this method by one that refers to this connection. A second call finds none.
        vars(self._loss).pop("_on_packets_lost", None)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _receive_fast(self, data: bytes, address: Address, now: float) -> bool:
        """Process an ordinary packet; False if aioquic must process it (or it is invalid)."""
        if (
            not self._handshake_confirmed
            or self._state is not _CONNECTED
            or self._close_pending
            or self._quic_logger is not None
            or data[1:HEADER_BYTES] != self.host_cid
            or len(data) < SMALLEST_PACKET_BYTES
        ):
            return False
        path = self._network_paths[0]
        if path.addr != address or not path.is_validated:
            return False
        crypto = self._app_crypto.recv
        if crypto.aead is not self._opens_for:
            self._opens_with, self._opens_for = _keys(crypto, "decrypt"), crypto.aead
        space = self._app_space
        try:
            opened = open_packet(data, self._opens_with, crypto.key_phase, space.expected_packet_number)
        except InvalidTag:
            return True
        if opened is None:
            return False
        number, payload = opened
        if not space.is_new(number):
            return True
        try:
            eliciting = self._read_frames(payload, path, now)
        except QuicConnectionError as error:
            self._logger.warning(error)
            self.close(error_code=error.error_code, frame_type=error.frame_type, reason_phrase=error.reason_phrase)
            self.quiescent = False
            return True
        if self._state is not _CONNECTED or self._close_pending:
            return True
        self._close_at = now + self._idle_s
        self._ack_eliciting_sent_since_receipt = False
        if space.on_packet_received(number, now, len(data) if eliciting else 0):
            self.quiescent = False
        return True

    def _read_frames(self, payload: bytes, path: QuicNetworkPath, now: float) -> bool:
        """Process the frames of a 1-RTT packet; True if the packet is ack-eliciting."""
        size = len(payload)
        if not size:
            raise QuicConnectionError(QuicErrorCode.PROTOCOL_VIOLATION, 0, "Packet contains no frames")
        frame_type = _STREAM
        buf: Buffer | None = None
        acks = 0
        try:
            at = read_stream_frames(payload, 0, self.streams)
            if at == size:
                return True
            eliciting = at > 0
            self.quiescent = False
            while at < size:
                if payload[at] == _ACK:
                    frame_type = _ACK
                    acks += 1
                    if acks > MAX_ACK_FRAMES:
                        raise FrameCountError(_ACK)
                    ack = read_ack(payload, at + 1)
                    self._acknowledge(ack, now)
                    at = ack.end
                else:
                    if buf is None:
                        buf = Buffer(data=payload)
                        self._frame_handlers.begin_packet(handshake=False)
                    buf.seek(at)
                    frame_type = buf.pull_uint_var()
                    self._read_other_frame(frame_type, buf, path, now)
                    eliciting = eliciting or frame_type not in NON_ACK_ELICITING_FRAME_TYPES
                    at = buf.tell()
                others_at, frame_type = at, _STREAM
                at = read_stream_frames(payload, at, self.streams)
                eliciting = eliciting or at > others_at
        except (BufferReadError, IndexError) as error:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "Failed to parse frame"
            ) from error
        except StreamError as error:
            raise QuicConnectionError(error.error_code, frame_type, error.reason) from error
        return eliciting

    def _read_other_frame(self, frame_type: int, buf: Buffer, path: QuicNetworkPath, now: float) -> None:
        try:
            # Every frame type is allowed in a 1-RTT packet (RFC 9000 table 3).
            handler, _ = self._frame_handlers[frame_type]
        except KeyError:
            raise QuicConnectionError(QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "Unknown frame type") from None
        context = QuicReceiveContext(
            epoch=_ONE_RTT,
            host_cid=self.host_cid,
            network_path=path,
            quic_logger_frames=None,
            time=now,
            version=None,
        )
        handler(context, frame_type, buf)

    # --- acknowledgements received -----------------------------------------------------------------------------------

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        if context.epoch is not _ONE_RTT or self._quic_logger is not None or not self._handshake_confirmed:
            at = buf.tell()
            if buf.pull_uint_var() >= self._packet_number:  # one counter for all packet spaces
                raise _never_sent()
            buf.seek(at)
            super()._handle_ack_frame(context, frame_type, buf)
            return
        try:
            at = buf.tell()
            ack = read_ack(buf.data_slice(at, buf.capacity), 0)
            buf.seek(at + ack.end)
        except IndexError as error:
            raise BufferReadError from error
        self._acknowledge(ack, context.time)
        if frame_type & 1:
            for _ in range(3):
                buf.pull_uint_var()

    def _acknowledge(self, ack: Ack, now: float) -> None:
        """Process an ACK frame of the application data space (RFC 9000 section 19.3)."""
        largest, delay, ranges, _ = ack
        if largest >= self._packet_number:
            raise _never_sent()
        if ranges[-1][0] < 0:
            raise QuicConnectionError(QuicErrorCode.FRAME_ENCODING_ERROR, _ACK, "Negative packet number")
        acked = self._app_space.acknowledged(largest, ranges)
        if acked.packets:
            self._on_acked(acked, (delay << self._remote_ack_delay_exponent) / 1_000_000, now)

    def _on_acked(self, acked: Acknowledged, delay_s: float, now: float) -> None:
        """Like aioquic's `on_ack_received`, without iterating over all packets in flight (RFC 9002 appendix A.7)."""
        loss, space, path_mtu = self._loss, self._app_space, self.path_mtu
        congestion = loss._cc
        # A congestion window that is underutilised must not grow (RFC 9002 section 7.8).
        used = congestion.bytes_in_flight * 2 >= congestion.congestion_window
        if not used:
            congestion.bytes_in_flight -= acked.flight_bytes
        for packet in acked.packets:
            if packet.in_flight:
                if used:
                    congestion.on_packet_acked(packet=packet, now=now)
                if packet.sent_bytes > BASE_BYTES:
                    path_mtu.large_acked()
            for handler, args in packet.delivery_handlers:
                if handler is data_delivery:
                    args[0].on_data_acked(args[1], args[2], args[3])
                else:
                    handler(ACKED, *args)
        if acked.largest_sent_at is not None:
            self._measure_rtt(now - acked.largest_sent_at, delay_s, now)
        loss._pto_count = 0
        oldest = next(iter(space.sent_packets), None)
        if oldest is not None and oldest < space.largest_acked_packet:
            loss._detect_loss(now=now, space=space)  # type: ignore[arg-type]  # same attributes, see PacketSpace
        else:
            space.loss_time = None

    def _measure_rtt(self, latest: float, delay_s: float, now: float) -> None:
        """Update the RTT estimate (RFC 9002 section 5.3), with aioquic's minimum of one millisecond."""
        loss = self._loss
        loss._rtt_latest = max(latest, 0.001)
        if loss._rtt_latest < loss._rtt_min:
            loss._rtt_min = loss._rtt_latest
        delay_s = min(delay_s, loss.max_ack_delay)
        if loss._rtt_latest > loss._rtt_min + delay_s:
            loss._rtt_latest -= delay_s
        if not loss._rtt_initialized:
            loss._rtt_first_sample_time = now
            loss._rtt_initialized = True
            loss._rtt_variance = latest / 2
            loss._rtt_smoothed = latest
        else:
            loss._rtt_variance += (abs(loss._rtt_smoothed - loss._rtt_latest) - loss._rtt_variance) / 4
            loss._rtt_smoothed += (loss._rtt_latest - loss._rtt_smoothed) / 8
        loss._cc.on_rtt_measurement(now=now, rtt=latest)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _ordinary(self) -> bool:
        """Whether only STREAM and ACK frames are to be sent, on the only validated path."""
        return (
            self._handshake_confirmed
            and self._state is _CONNECTED
            and self._quic_logger is None
            and self._network_paths[0].is_validated
            and (len(self._network_paths) == 1 or not self._other_paths_need_frames())
            and not (
                self._close_pending
                or self._probe_pending
                or self._ping_pending
                or self._cids_to_send
                or self._retire_connection_ids
                or self._handshake_done_pending
                or self._network_paths[0].remote_challenges
                or self._remote_preferred_address is not None
                or self._app_crypto._update_key_requested
            )
        )

    def _other_paths_need_frames(self) -> bool:
        """Whether another path of the peer needs frames, because it has migrated or is migrating (RFC 9000 section 9)."""
        return any(
            path.remote_challenges or not (path.is_validated or path.local_challenge_sent)
            for path in self._network_paths[1:]
        )

    def _poll_fast(self, now: float) -> list[tuple[bytes, Address]]:
        """Datagrams with the frames that streams have to send and with the ACK that is due."""
        space = self._app_space
        self._pacing_at = None
        ack_due = space.ack_due(now)
        has_frames = self._has_frames()
        datagrams: list[tuple[bytes, Address]] = []
        if not (ack_due or has_frames):
            return datagrams
        address = self._network_paths[0].addr
        congestion = self._loss._cc
        limit = self._max_datagram_size
        overhead = _OVERHEAD_BYTES + len(self._peer_cid.cid)
        while True:
            ack = self._ack_frame(space, now, limit - overhead) if space.ack_at is not None else b""
            frames: list[Frame] = []
            if has_frames:
                window = congestion.congestion_window - congestion.bytes_in_flight
                if window >= limit >> 1 and self._may_send(now):
                    self._take_frames(min(limit, window) - overhead - len(ack), frames)
            if frames:
                datagram = self._seal_frames(space, ack, frames, now)
                datagrams.append((datagram, address))
                if ack:
                    space.ack_sent()
                    ack_due = False
                has_frames = self._has_frames()
                if has_frames:
                    continue
            elif ack_due:
                datagrams.append((self._seal(ack), address))
                space.ack_sent()
            return datagrams

    def _seal_frames(self, space: PacketSpace, ack: bytes, frames: list[Frame], now: float) -> bytes:
        handlers: Handlers = [(frame[2], frame[3]) for frame in frames]
        if ack:
            handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
        number = self._packet_number
        datagram = self._seal(ack + b"".join([frame[1] for frame in frames]))
        self._track(space, _sent(number, now, len(datagram), handlers), now)
        self._pace_tokens -= len(datagram)
        return datagram

    def _track(self, space: PacketSpace, packet: SentPacket, now: float) -> None:
        """Like aioquic's `on_packet_sent`, for an ack-eliciting 1-RTT packet; packets with only an ACK are not tracked."""
        space.sent_packets[packet.packet_number] = packet
        space.ack_eliciting_in_flight += 1
        self._loss._time_of_last_sent_ack_eliciting_packet = now
        if packet.in_flight:
            self._loss._cc.on_packet_sent(packet=packet)  # type: ignore[arg-type]
        if not self._ack_eliciting_sent_since_receipt:
            # RFC 9000 section 10.1.
            self._close_at = now + self._idle_s
            self._ack_eliciting_sent_since_receipt = True

    def _seal(self, payload: bytes) -> bytes:
        """A protected 1-RTT packet with this payload (RFC 9001 section 5)."""
        pair = self._app_crypto
        send = pair.send
        number = self._packet_number
        self._packet_number = number + 1
        self._packets_under_key += 1
        if self._packets_under_key >= KEY_UPDATE_PACKETS:
            self._packets_under_key = 0
            self.request_key_update()
        first = 0x41 | (self._spin_bit << 5) | (pair.recv.key_phase << 2)
        if send.aead is not self._seals_for:
            self._seals_with, self._seals_for = _keys(send, "encrypt"), send.aead
        return seal_packet(first, self._peer_cid.cid, number, payload, self._seals_with)

    def _ack_frame(self, space: PacketSpace, now: float, max_bytes: int) -> bytes:
        if len(space.ack_queue) > 1 and self._packet_number % 8 == 0 and not self._ping_pending:
            # Send a PING with it: when the peer acknowledges this packet, old ranges can be dropped (RFC 9000 section 13.2.4).
            self._ping_pending.append(0)
        return space.ack_frame(now, max_bytes, self._local_ack_delay_exponent)

    def _write_ack_frame(self, *args: Any, **kwargs: Any) -> None:
        super()._write_ack_frame(*args, **kwargs)
        self._app_space.unacknowledged = 0

    def _may_send(self, now: float) -> bool:
        """Whether pacing (RFC 9002 section 7.7) allows sending now, at the resolution of timers; else sets `_pacing_at`."""
        loss = self._loss
        rate = 1.25 * loss._cc.congestion_window / max(loss._rtt_smoothed, 0.001)
        burst = max(_BURST_PACKETS * self._max_datagram_size, rate * _PACING_GRAIN_S)
        self._pace_tokens = min(burst, self._pace_tokens + (now - self._pace_time) * rate)
        self._pace_time = now
        if self._pace_tokens > 0:
            return True
        self._pacing_at = now + max(0.001, -self._pace_tokens / rate)
        return False

    def _timer(self) -> float:
        """Like aioquic's `get_timer`, for a confirmed handshake and a validated path: one packet number space is in use."""
        space, loss = self._app_space, self._loss
        at = self._close_at
        assert at is not None  # noqa: S101 - set while connected
        if space.ack_at is not None and space.ack_at < at:
            at = space.ack_at
        loss_at = space.loss_time
        if loss_at is None and space.ack_eliciting_in_flight:
            loss_at = loss._time_of_last_sent_ack_eliciting_packet + loss.get_probe_timeout() * (1 << loss._pto_count)
        self._loss_at = loss_at
        if loss_at is not None and loss_at < at:
            at = loss_at
        if self._pacing_at is not None and self._pacing_at < at:
            at = self._pacing_at
        return at

    # --- datagram size -----------------------------------------------------------------------------------------------

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        parameters: QuicTransportParameters = pull_quic_transport_parameters(Buffer(data=data))
        if parameters.max_udp_payload_size is not None:
            self._peer_max_udp_payload = parameters.max_udp_payload_size

    def _probe_path_at(self) -> float | None:
        """When to send the next datagram size probe; None if none can be sent."""
        if (
            self.path_mtu.probe_at is None
            or not self._handshake_confirmed
            or self._state is not _CONNECTED
            or self._close_pending
            or not self._network_paths[0].is_validated
            or self._app_crypto._update_key_requested
        ):
            return None
        return self.path_mtu.probe_at

    def _probe_path(self, now: float) -> tuple[bytes, Address]:
        """A PING padded to the probed size; its loss is not a sign of congestion (RFC 9000 section 14.4)."""
        size = self.path_mtu.next_probe()
        number = self._packet_number
        payload = b"\x01" + bytes(size - _OVERHEAD_BYTES - len(self._peer_cid.cid) - 1)
        datagram = self._seal(payload)
        packet = _sent(number, now, len(datagram), [(self._on_probe_delivery, (size,))], in_flight=False)
        self._track(self._app_space, packet, now)
        return datagram, self._network_paths[0].addr

    def _on_probe_delivery(self, delivery: QuicDeliveryState, size: int) -> None:
        if delivery is ACKED:
            self.path_mtu.probe_acked(size, self._now)
            self._use_datagram_size(self.path_mtu.current)
        else:
            self.path_mtu.probe_lost(size, self._now)

    def _on_packets_lost(self, *, packets: Iterable[Any], **kwargs: Any) -> None:
        """Called for every loss, to detect a path that no longer carries large datagrams."""
        lost = list(packets)
        self._loss_by_aioquic(packets=lost, **kwargs)
        for packet in lost:
            if packet.in_flight and packet.sent_bytes > BASE_BYTES and self.path_mtu.large_lost(self._now):
                self._use_datagram_size(BASE_BYTES)

    def _use_datagram_size(self, size: int) -> None:
        self._max_datagram_size = size
        self._loss._pacer._max_datagram_size = size
        congestion = self._loss._cc
        congestion._max_datagram_size = size  # type: ignore[attr-defined]  # reno and cubic both have it
        # The minimum congestion window is two datagrams (RFC 9002 section 7.2); a smaller one could block sending.
        congestion.congestion_window = max(congestion.congestion_window, 2 * size)


def _keys(crypto: CryptoContext, direction: str) -> Keys:
    """The functions of aioquic's keys as `quic/packets.py` needs them, without aioquic's wrappers."""
    aead, protection = crypto.aead, crypto.hp
    assert aead is not None  # noqa: S101 - the handshake is confirmed
    assert protection is not None  # noqa: S101
    mask = protection._mask if protection._is_chacha20 else protection._encryptor.update
    return Keys(getattr(aead._aead, direction), aead._iv, mask)


def _sent(number: int, now: float, size: int, handlers: Handlers, *, in_flight: bool = True) -> SentPacket:
    return SentPacket(
        number, now, size, handlers, in_flight=in_flight, epoch=_ONE_RTT, packet_type=QuicPacketType.ONE_RTT
    )


def _never_sent() -> QuicConnectionError:
    return QuicConnectionError(QuicErrorCode.PROTOCOL_VIOLATION, 2, "Acknowledgement of a packet never sent")
