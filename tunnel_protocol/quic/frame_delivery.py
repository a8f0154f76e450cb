"""What follows from the acknowledgement or the loss of a packet, for each of its frames (RFC 9000 section 13.3)."""

from tunnel_protocol.quic.connection_frames import ConnectionFrames
from tunnel_protocol.quic.path_mtu import BASE_BYTES, PathMtu
from tunnel_protocol.quic.paths import Paths
from tunnel_protocol.quic.received_packets import ReceivedPackets
from tunnel_protocol.quic.sent_packet import (
    ACK,
    MAX_STREAMS,
    MTU_PROBE,
    PATH_CHALLENGE,
    RESET_STREAM,
    STOP_SENDING,
    STREAM,
    STREAMS_BLOCKED,
    SentFrame,
    SentPacket,
)
from tunnel_protocol.quic.stream import BidirectionalStream
from tunnel_protocol.quic.stream_table import StreamTable


class FrameDelivery:
    """Passes the fate of frames on to what has sent them."""

    __slots__ = ("_connection_frames", "_mtu", "_paths", "_received", "_table")

    def __init__(
        self,
        table: StreamTable,
        received: ReceivedPackets,
        connection_frames: ConnectionFrames,
        paths: Paths,
        mtu: PathMtu,
    ) -> None:
        self._table = table
        self._received = received
        self._connection_frames = connection_frames
        self._paths = paths
        self._mtu = mtu

    def on_acked(self, packets: list[SentPacket], now: float) -> None:
        """The peer has acknowledged these packets."""
        large = False
        stream: BidirectionalStream | None = None
        start = stop = 0
        for packet in packets:
            if packet.size > BASE_BYTES and packet.in_flight:
                large = True
            if packet.stream is None:
                for frame in packet.frames:
                    self._frame_acked(frame, now)
            elif packet.stream is stream and packet.start == stop and not packet.fin:
                stop = packet.stop  # the packets of a run are acknowledged together as a rule
            else:
                if stream is not None:
                    stream.on_data_acked(start, stop, False)
                stream, start, stop = packet.stream, packet.start, packet.stop
                if packet.fin:
                    stream.on_data_acked(start, stop, True)
                    stream = None
        if stream is not None:
            stream.on_data_acked(start, stop, False)
        if large:
            self._mtu.large_acked()

    def _frame_acked(self, frame: SentFrame, now: float) -> None:
        stream = frame.stream
        if stream is None:
            if frame.kind == ACK:
                self._received.on_ack_acked(frame.start)
            elif frame.kind == MTU_PROBE:
                self._mtu.probe_acked(frame.start, now)
        elif frame.kind == STREAM:
            stream.on_data_acked(frame.start, frame.stop, frame.fin)
        elif frame.kind == RESET_STREAM:
            stream.on_reset_acked()

    def on_lost(self, packets: list[SentPacket], now: float) -> None:
        """These packets count as lost."""
        for packet in packets:
            if packet.size > BASE_BYTES and packet.in_flight:
                self._mtu.large_lost(now)
            self.send_again(packet, now)

    def send_again(self, packet: SentPacket, now: float) -> None:
        """Have the frames of a packet sent again as far as they are still needed; the packet has none afterwards."""
        if packet.stream is not None:
            packet.stream.on_data_lost(packet.start, packet.stop, packet.fin)
            packet.stream = None
        frames, packet.frames = packet.frames, []
        for frame in frames:
            stream = frame.stream
            if stream is None:
                self._lost_of_connection(frame, now)
            elif frame.kind == STREAM:
                stream.on_data_lost(frame.start, frame.stop, frame.fin)
            elif frame.kind == RESET_STREAM:
                stream.on_control_lost(reset=True)
            elif frame.kind == STOP_SENDING:
                stream.on_control_lost(stop=True)
            else:  # MAX_STREAM_DATA
                stream.on_control_lost(limit=True)

    def _lost_of_connection(self, frame: SentFrame, now: float) -> None:
        if frame.kind == MTU_PROBE:
            self._mtu.probe_lost(frame.start, now)
        elif frame.kind == MAX_STREAMS:
            self._table.on_max_streams_lost()
        elif frame.kind == STREAMS_BLOCKED:
            self._table.on_streams_blocked_lost(frame.start)
        elif frame.kind == PATH_CHALLENGE:
            active = self._paths.active
            if not active.is_validated:
                # RFC 9000 section 8.2.1: with new data.
                active.challenge_due = True
                self._paths.busy = True
        else:
            self._connection_frames.on_lost(frame)
