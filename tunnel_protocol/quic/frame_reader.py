"""Reads the frames of a 1-RTT packet and applies them to the parts of the connection (RFC 9000 sections 12.4 and 19)."""

from typing import Final

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.connection_callbacks import ConnectionCallbacks
from tunnel_protocol.quic.connection_ids import LocalConnectionIds, PeerConnectionIds
from tunnel_protocol.quic.packets import Ack
from tunnel_protocol.quic.paths import Path, Paths
from tunnel_protocol.quic.receive_half import StreamError
from tunnel_protocol.quic.stream_table import PACKET_FRAMES, StreamTable
from tunnel_protocol.quic.transport_error import ErrorCode, TransportError
from tunnel_protocol.quic.varint import pull_varint

try:
    from tunnel_protocol.quic.packet_speedups import read_ack, read_stream_frames
except ImportError:
    from tunnel_protocol.quic.packets import read_ack, read_stream_frames

CONNECTION_FRAMES: Final = Limit("quic.connection_frames_in_a_packet", pieces=64)
"""Connection-related frames in a 1-RTT packet (PING, paths, connection ids, limits, CRYPTO); about ten are usual."""

ACK_FRAMES: Final = Limit("quic.ack_frames_in_a_packet", pieces=8)
"""ACK frames in a 1-RTT packet. One is enough; processing each takes time in proportion to the packets in flight."""

TICKET_BYTES: Final = Limit("quic.tls_bytes_after_the_handshake", bytes=65_536)
"""Bytes of session tickets, which are not used, that a server may send."""

_MAX_COST: Final = PACKET_FRAMES.pieces or 0
_ACK_COST: Final = _MAX_COST // (ACK_FRAMES.pieces or 1)
_CONNECTION_COST: Final = _MAX_COST // (CONNECTION_FRAMES.pieces or 1)
_MAX_TICKET_BYTES: Final = TICKET_BYTES.bytes or 0
_LARGEST_OFFSET: Final = (1 << 62) - 1
_MOST_STREAMS: Final = 1 << 60
_RESET_TOKEN_BYTES: Final = 16


class PeerClose:
    """A CONNECTION_CLOSE frame of the peer (RFC 9000 section 19.19)."""

    __slots__ = ("error_code", "reason")

    def __init__(self, error_code: int, reason: str) -> None:
        self.error_code = error_code
        self.reason = reason


class FrameReader:
    """Reads packets; `probing`, `handshake_done` and `peer_close` tell what the last one held."""

    __slots__ = (
        "_connection",
        "_cost",
        "_is_client",
        "_local_cids",
        "_paths",
        "_peer_cids",
        "_table",
        "handshake_done",
        "peer_close",
        "probing",
    )

    def __init__(
        self,
        is_client: bool,
        table: StreamTable,
        local_cids: LocalConnectionIds,
        peer_cids: PeerConnectionIds,
        paths: Paths,
        connection: ConnectionCallbacks,
    ) -> None:
        self._is_client = is_client
        self._table = table
        self._local_cids = local_cids
        self._peer_cids = peer_cids
        self._paths = paths
        self._connection = connection
        self._cost = 0
        self.probing = False
        """Whether there were only frames that probe a path (RFC 9000 section 9.1)."""
        self.handshake_done = False
        self.peer_close: PeerClose | None = None

    def close(self) -> None:
        """Release the connection, which has ended."""
        self._connection = ConnectionCallbacks()

    def read(self, payload: bytes, path: Path, used_cid: bytes, now: float) -> bool:
        """Process the frames of a packet that came on `path`, addressed to `used_cid`; True if it is ack-eliciting.

        Raises `TransportError`.
        """
        size = len(payload)
        streams = self._table.streams
        frame_type = 0x08
        try:
            at = read_stream_frames(payload, 0, streams)
            if at == size:
                if not size:
                    raise TransportError(ErrorCode.PROTOCOL_VIOLATION, 0, "Packet contains no frames")
                self.probing = False
                return True
            eliciting = at > 0
            self.probing = not eliciting
            self._cost = 0
            while at < size:
                frame_type = payload[at]
                if frame_type == 0x02:
                    ack = read_ack(payload, at + 1)
                    at = ack[3]
                    self._on_ack(ack, now)
                elif 0x08 <= frame_type <= 0x0F:
                    eliciting = True
                    self.probing = False
                    at = self._read_stream(frame_type, payload, at + 1)
                else:
                    if frame_type != 0x00 and frame_type != 0x03 and not 0x1C <= frame_type <= 0x1D:
                        eliciting = True
                    at = self._read_other(frame_type, payload, at + 1, path, used_cid, now)
                others_at = at
                frame_type = 0x08
                at = read_stream_frames(payload, at, streams)
                if at > others_at:
                    eliciting = True
                    self.probing = False
        except IndexError as error:
            raise TransportError(ErrorCode.FRAME_ENCODING_ERROR, frame_type, "Failed to parse frame") from error
        except StreamError as stream_error:
            raise TransportError(stream_error.error_code, frame_type, stream_error.reason) from stream_error
        return eliciting

    def _count(self, cost: int, frame_type: int) -> None:
        self._cost += cost
        if self._cost > _MAX_COST:
            raise TransportError(ErrorCode.PROTOCOL_VIOLATION, frame_type, "Too many frames in a packet")

    def _on_ack(self, ack: Ack, now: float) -> None:
        self._count(_ACK_COST, 0x02)
        self.probing = False
        self._connection.on_ack_frame(ack, now)

    def _read_other(self, frame_type: int, payload: bytes, at: int, path: Path, used_cid: bytes, now: float) -> int:
        """Process any frame but STREAM and ACK without counts; returns where it ends."""
        if frame_type in (0x04, 0x05, 0x11, 0x15):
            self._count(1, frame_type)
            self.probing = False
            return self._read_about_stream(frame_type, payload, at)
        if frame_type == 0x03:
            ack = read_ack(payload, at)
            at = ack[3]
            for _ in range(3):
                _, at = pull_varint(payload, at)  # ECN counts: packets are sent without ECN
            self._on_ack(ack, now)
            return at
        self._count(_CONNECTION_COST, frame_type)
        if frame_type == 0x00:
            size = len(payload)
            while at < size and not payload[at]:
                at += 1
            return at
        if frame_type in (0x18, 0x1A, 0x1B):
            return self._read_probing(frame_type, payload, at, path)
        self.probing = False
        if frame_type == 0x01:
            return at
        if frame_type in (0x06, 0x07):
            return self._read_of_server(frame_type, payload, at)
        if 0x10 <= frame_type <= 0x17:
            return self._read_limit(frame_type, payload, at)
        return self._read_rare(frame_type, payload, at, used_cid)

    def _read_probing(self, frame_type: int, payload: bytes, at: int, path: Path) -> int:
        """NEW_CONNECTION_ID, PATH_CHALLENGE or PATH_RESPONSE."""
        if frame_type == 0x18:
            return self._read_new_connection_id(payload, at)
        data = payload[at : at + 8]
        if len(data) < 8:
            raise IndexError("path data is cut short")
        if frame_type == 0x1A:
            path.respond(data)
            self._paths.busy = True
        else:
            self._paths.validate(data)
        return at + 8

    def _read_rare(self, frame_type: int, payload: bytes, at: int, used_cid: bytes) -> int:
        """RETIRE_CONNECTION_ID, CONNECTION_CLOSE, HANDSHAKE_DONE, or a frame that does not exist."""
        if frame_type == 0x19:
            number, at = pull_varint(payload, at)
            retired = self._local_cids.retire(number, used_cid)
            if retired is not None:
                self._connection.on_local_id_retired(retired)
            return at
        if frame_type in (0x1C, 0x1D):
            return self._read_close(frame_type, payload, at)
        if frame_type == 0x1E:
            if not self._is_client:
                raise TransportError(
                    ErrorCode.PROTOCOL_VIOLATION, frame_type, "Clients must not send HANDSHAKE_DONE frames"
                )
            self.handshake_done = True
            return at
        raise TransportError(ErrorCode.FRAME_ENCODING_ERROR, frame_type, "Unknown frame type")

    def _read_stream(self, frame_type: int, payload: bytes, at: int) -> int:
        """A STREAM frame that `read_stream_frames` has left: of a stream that is new, or over, or a frame cut short."""
        self._count(1, frame_type)
        stream_id, at = pull_varint(payload, at)
        offset = 0
        if frame_type & 4:
            offset, at = pull_varint(payload, at)
        end = len(payload)
        if frame_type & 2:
            length, at = pull_varint(payload, at)
            end = at + length
        if end > len(payload):
            raise IndexError("stream data is cut short")
        if offset + end - at > _LARGEST_OFFSET:
            raise TransportError(ErrorCode.FRAME_ENCODING_ERROR, frame_type, "offset + length cannot exceed 2^62 - 1")
        stream = self._table.find(frame_type, stream_id)
        if stream is not None:
            stream.on_stream_frame(offset, payload[at:end], frame_type & 1 == 1)
        return end

    def _read_about_stream(self, frame_type: int, payload: bytes, at: int) -> int:
        """RESET_STREAM, STOP_SENDING, MAX_STREAM_DATA or STREAM_DATA_BLOCKED."""
        table = self._table
        stream_id, at = pull_varint(payload, at)
        value, at = pull_varint(payload, at)
        if frame_type in (0x04, 0x15):
            table.check_can_receive(frame_type, stream_id)
        else:
            table.check_can_send(frame_type, stream_id)
        final_size = 0
        if frame_type == 0x04:
            final_size, at = pull_varint(payload, at)
        stream = table.find(frame_type, stream_id)
        if stream is None:
            return at
        if frame_type == 0x04:
            stream.on_reset_stream(value, final_size)
        elif frame_type == 0x05:
            stream.on_stop_sending(value)
        elif frame_type == 0x11:
            stream.on_max_stream_data(value)
        return at

    def _read_limit(self, frame_type: int, payload: bytes, at: int) -> int:
        """MAX_DATA, MAX_STREAMS, or one of the frames by which the peer says that it is blocked."""
        value, at = pull_varint(payload, at)
        if frame_type == 0x10:
            self._table.on_max_data(value)
        elif frame_type != 0x14:
            if value > _MOST_STREAMS:
                raise TransportError(ErrorCode.FRAME_ENCODING_ERROR, frame_type, "Maximum Streams cannot exceed 2^60")
            if frame_type == 0x12:
                self._table.on_max_streams(value)
        return at

    def _read_of_server(self, frame_type: int, payload: bytes, at: int) -> int:
        """CRYPTO (a session ticket) or NEW_TOKEN, neither of which is used."""
        if not self._is_client:
            if frame_type == 0x06:
                raise TransportError(ErrorCode.UNEXPECTED_MESSAGE, frame_type, "TLS message after the handshake")
            raise TransportError(ErrorCode.PROTOCOL_VIOLATION, frame_type, "Clients must not send NEW_TOKEN frames")
        offset = 0
        if frame_type == 0x06:
            offset, at = pull_varint(payload, at)
        length, at = pull_varint(payload, at)
        if at + length > len(payload):
            raise IndexError("data is cut short")
        if offset + length > _MAX_TICKET_BYTES:
            raise TransportError(ErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "Too much data after the handshake")
        return at + length

    def _read_new_connection_id(self, payload: bytes, at: int) -> int:
        number, at = pull_varint(payload, at)
        retire_prior_to, at = pull_varint(payload, at)
        end = at + 1 + payload[at] + _RESET_TOKEN_BYTES
        if end > len(payload):
            raise IndexError("connection id is cut short")
        below = self._peer_cids.on_new(
            number, retire_prior_to, payload[at + 1 : end - _RESET_TOKEN_BYTES], payload[end - _RESET_TOKEN_BYTES : end]
        )
        self._paths.retire_below(below)
        self._peer_cids.check()
        return end

    def _read_close(self, frame_type: int, payload: bytes, at: int) -> int:
        error_code, at = pull_varint(payload, at)
        if frame_type == 0x1C:
            _, at = pull_varint(payload, at)
        length, at = pull_varint(payload, at)
        if at + length > len(payload):
            raise IndexError("reason is cut short")
        self.peer_close = PeerClose(error_code, payload[at : at + length].decode("utf-8", "replace"))
        return at + length
