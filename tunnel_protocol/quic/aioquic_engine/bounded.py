# ruff: noqa: SLF001 - this package is the one that knows the private side of aioquic
"""aioquic's connection with bounds on what strangers send in the handshake, and an end that leaves no cycle of references."""

from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.connection import (
    QuicConnection,
    QuicConnectionError,
    QuicConnectionId,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.packet_builder import QuicPacketBuilder

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.crypto_stream import CryptoBufferError, CryptoStream
from tunnel_protocol.quic.packets import varint

HANDSHAKE_PACKET_FRAMES = Limit("quic.frames_in_a_handshake_packet", pieces=256)
"""Frames other than PADDING in an Initial or Handshake packet: enough for a ClientHello that was cut up on purpose."""

PACKET_FRAMES = Limit("quic.frames_in_a_packet", pieces=1_024)
"""Frames about streams in a 1-RTT packet: a peer may renew the credit of very many streams, or cancel them, at once."""

CONNECTION_FRAMES = Limit("quic.connection_frames_in_a_packet", pieces=64)
"""Frames about the connection in a 1-RTT packet (PING, paths, connection ids, limits, CRYPTO): an honest peer has some ten to send."""

ACK_FRAMES = Limit("quic.ack_frames_in_a_packet", pieces=8)
"""ACK frames in a 1-RTT packet. One says it all; each costs a walk over what is in flight."""

_MAX_HANDSHAKE_FRAMES = HANDSHAKE_PACKET_FRAMES.pieces or 0
_MAX_FRAMES = PACKET_FRAMES.pieces or 0
MAX_ACK_FRAMES = ACK_FRAMES.pieces or 0
_COST = _MAX_FRAMES // (CONNECTION_FRAMES.pieces or 1)
"""Of a frame about the connection, where one about a stream costs 1 and a packet may cost `_MAX_FRAMES`."""

_COSTS = dict.fromkeys((0x04, 0x05, *range(0x08, 0x10), 0x11, 0x15), 1) | dict.fromkeys(
    (0x02, 0x03), _MAX_FRAMES // MAX_ACK_FRAMES
)
"""By frame type: of all others it is `_COST`."""
_ONE_RTT = tls.Epoch.ONE_RTT


_ALL_ALIKE: dict[int, int] = {}


class FrameCountError(QuicConnectionError):
    """A packet holds more frames than any honest peer puts into one."""

    def __init__(self, frame_type: int) -> None:
        super().__init__(QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "Too many frames in a packet")


class CountedFrames(dict[int, Any]):
    """aioquic's table of frame handlers; looking one up counts a frame.

    A count in the table serves every way a frame is dispatched and costs nothing for STREAM and ACK frames, which the
    short way does not look up.
    """

    __slots__ = ("_costs", "_count", "_most", "_other_cost")

    def __init__(self, handlers: dict[int, Any]) -> None:
        super().__init__(handlers)
        self.begin_packet(handshake=False)

    def begin_packet(self, *, handshake: bool) -> None:
        """The next frames are those of another packet."""
        self._count = 0
        if handshake:
            self._most, self._costs, self._other_cost = _MAX_HANDSHAKE_FRAMES, _ALL_ALIKE, 1
        else:
            self._most, self._costs, self._other_cost = _MAX_FRAMES, _COSTS, _COST

    def __getitem__(self, frame_type: int) -> Any:
        """The handler and the epochs. Raises `FrameCountError`, and KeyError for an unknown type."""
        found = super().__getitem__(frame_type)
        self._count += self._costs.get(frame_type, self._other_cost)
        if self._count > self._most:
            raise FrameCountError(frame_type)
        return found


class BoundedConnection(QuicConnection):
    """CRYPTO frames, frames per packet, and the end of a connection."""

    _frame_handlers: CountedFrames

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crypto_received: dict[tls.Epoch, CryptoStream] = {}
        self._last_cid_told = 0
        """The highest sequence number of a connection id of ours that the peer may know."""
        self._frame_handlers = CountedFrames(self._QuicConnection__frame_handlers)  # type: ignore[has-type]
        self._QuicConnection__frame_handlers = self._frame_handlers

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._crypto_received = {
            epoch: CryptoStream(from_client=not self._is_client)
            for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE, _ONE_RTT)
        }

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        self._frame_handlers.begin_packet(handshake=context.epoch is not _ONE_RTT)
        return super()._payload_received(context, plain, crypto_frame_required)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Gather CRYPTO frames in our own buffer; aioquic gets whole TLS messages in order, and repetitions."""
        at = buf.tell()
        offset = buf.pull_uint_var()
        length = buf.pull_uint_var()
        data = buf.pull_bytes(length)
        stream = self._crypto_received[context.epoch]
        repeated = offset + length <= stream.received
        messages_at = stream.handed_over
        try:
            messages = stream.receive(offset, data)
        except CryptoBufferError as error:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, str(error)) from None
        if messages:
            whole = Buffer(data=varint(messages_at) + varint(len(messages)) + messages)
            super()._handle_crypto_frame(context, frame_type, whole)
        elif repeated and offset + length <= stream.handed_over:
            # A client that repeats itself has not seen our answer: aioquic then sends it again, once.
            end = buf.tell()
            buf.seek(at)
            super()._handle_crypto_frame(context, frame_type, buf)
            buf.seek(end)

    def _write_new_connection_id_frame(self, builder: QuicPacketBuilder, connection_id: QuicConnectionId) -> None:
        super()._write_new_connection_id_frame(builder, connection_id)
        self._last_cid_told = max(self._last_cid_told, connection_id.sequence_number)

    def _handle_retire_connection_id_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Refuse ids that were made but never sent, else one packet has us make hundreds (RFC 9000 section 19.16)."""
        at = buf.tell()
        if buf.pull_uint_var() > self._last_cid_told:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "Cannot retire a connection ID that was never sent"
            )
        buf.seek(at)
        super()._handle_retire_connection_id_frame(context, frame_type, buf)

    def discard(self) -> None:
        """Cut every cycle of references through this connection, which has ended: it is then freed at once, without a collector.

        What is read of an ended connection (its addresses, names and error) stays. Calling it again changes nothing.
        """
        self._frame_handlers.clear()
        self._cryptos.clear()
        self._cryptos_initial.clear()
        self._crypto_streams.clear()
        self._crypto_buffers.clear()
        self._crypto_received.clear()
        for space in self._spaces.values():
            space.sent_packets.clear()
        self._loss._send_probe = _nothing
        self._streams.clear()
        if hasattr(self, "tls"):
            vars(self.tls).clear()  # our wrappers of its methods refer to it, and its callbacks to this connection
            del self.tls


def _nothing() -> None:
    """Stands in for a callback of a connection that has ended."""
