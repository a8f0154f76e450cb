# ruff: noqa: SLF001 - this package uses private attributes of aioquic
"""aioquic's connection with bounds on handshake data and frames per packet, and an end that leaves no reference cycles."""

from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.connection import (
    QuicConnection,
    QuicConnectionError,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.crypto_stream import CryptoBufferError, CryptoStream
from tunnel_protocol.quic.varint import varint

HANDSHAKE_PACKET_FRAMES = Limit("quic.frames_in_a_handshake_packet", pieces=256)
"""Frames in an Initial or Handshake packet, a run of PADDING counted as one; some clients split a ClientHello on purpose."""

_MAX_FRAMES = HANDSHAKE_PACKET_FRAMES.pieces or 0


class FrameCountError(QuicConnectionError):
    """A packet holds more frames than allowed; the connection ends with PROTOCOL_VIOLATION."""

    def __init__(self, frame_type: int) -> None:
        super().__init__(QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "Too many frames in a packet")


class CountedFrames(dict[int, Any]):
    """aioquic's table of frame handlers; each lookup counts a frame, which covers every code path that dispatches frames."""

    __slots__ = ("_count",)

    def __init__(self, handlers: dict[int, Any]) -> None:
        super().__init__(handlers)
        self.begin_packet()

    def begin_packet(self) -> None:
        """Reset the count for the next packet."""
        self._count = 0

    def __getitem__(self, frame_type: int) -> Any:
        """Handler and allowed epochs of a frame type. Raises `FrameCountError`, and KeyError for an unknown type."""
        found = super().__getitem__(frame_type)
        self._count += 1
        if self._count > _MAX_FRAMES:
            raise FrameCountError(frame_type)
        return found


class BoundedConnection(QuicConnection):
    """aioquic's connection with bounded CRYPTO data and frames per packet, and with `discard`."""

    _frame_handlers: CountedFrames

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crypto_received: dict[tls.Epoch, CryptoStream] = {}
        self._frame_handlers = CountedFrames(self._QuicConnection__frame_handlers)  # type: ignore[has-type]
        self._QuicConnection__frame_handlers = self._frame_handlers

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._crypto_received = {
            epoch: CryptoStream(from_client=not self._is_client) for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE)
        }

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        self._frame_handlers.begin_packet()
        return super()._payload_received(context, plain, crypto_frame_required)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Reassemble CRYPTO frames in `CryptoStream`; aioquic gets complete TLS messages in order, and retransmissions."""
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
            # A client that retransmits has not received our answer: aioquic then sends it again, once.
            end = buf.tell()
            buf.seek(at)
            super()._handle_crypto_frame(context, frame_type, buf)
            buf.seek(end)

    def discard(self) -> None:
        """Break all reference cycles of this connection, which has ended, so that it is freed without the garbage collector.

        Attributes that are read after the end (addresses, names, error) are kept. Calling it again has no effect.
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
    """Replaces the callbacks of a connection that has ended."""
