"""Reassembles TLS handshake messages from the CRYPTO frames of one packet number space, within bounds (RFC 9000 section 7.5).

TLS gets complete messages only. What a peer sends before it is authenticated is bounded in bytes, in frames and in the length
that a message announces, which bounds what the router buffers, copies and parses.
"""

from typing import Final

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.reassembly import Reassembly

CRYPTO_BUFFER: Final = Limit("quic.crypto_buffer", bytes=65_536, pieces=64)
"""Handshake bytes held until the gap before them is filled; RFC 9000 section 7.5 requires at least 4,096."""

CRYPTO_FRAMES: Final = Limit("quic.crypto_frames", pieces=512)
"""CRYPTO frames received per TLS message, retransmissions included."""

CLIENT_MESSAGE: Final = Limit("quic.tls_message_of_client", bytes=16_384)
"""Longest TLS message a client may announce, in bytes; a ClientHello with post-quantum key shares has about 2 KiB."""

SERVER_MESSAGE: Final = Limit("quic.tls_message_of_server", bytes=65_536)
"""Longest TLS message a server may announce, in bytes; its certificate chain is the longest."""

_HEADER_BYTES: Final = 4
"""Bytes of the type and length that start a TLS handshake message (RFC 8446 section 4)."""

_MAX_BYTES: Final = CRYPTO_BUFFER.bytes or 0
_MAX_PIECES: Final = CRYPTO_BUFFER.pieces or 0
_MAX_FRAMES: Final = CRYPTO_FRAMES.pieces or 0
_MAX_CLIENT_MESSAGE: Final = CLIENT_MESSAGE.bytes or 0
_MAX_SERVER_MESSAGE: Final = SERVER_MESSAGE.bytes or 0


class CryptoBufferError(Exception):
    """A bound of this module was exceeded; the connection ends with CRYPTO_BUFFER_EXCEEDED (RFC 9000 section 20.1)."""


class CryptoStream:
    """The receiving half of one CRYPTO stream."""

    __slots__ = ("_frames", "_longest", "_message", "_pieces", "handed_over", "received")

    def __init__(self, *, from_client: bool) -> None:
        self._longest = _MAX_CLIENT_MESSAGE if from_client else _MAX_SERVER_MESSAGE
        self._frames = 0
        self._message = bytearray()
        self._pieces: Reassembly | None = None
        self.received = 0
        """All bytes below this offset have been received."""
        self.handed_over = 0
        """All bytes below this offset have been returned to TLS."""

    def receive(self, offset: int, data: bytes) -> bytes:
        """Process a CRYPTO frame; returns the TLS messages that it completes, often none. Raises `CryptoBufferError`."""
        self._frames += 1
        if self._frames > _MAX_FRAMES:
            raise CryptoBufferError("too many CRYPTO frames")
        end = offset + len(data)
        if end <= self.received:
            return b""
        if end > self.received + _MAX_BYTES:
            raise CryptoBufferError("CRYPTO data too far ahead")
        if offset > self.received or self._pieces is not None:
            self._take_out_of_order(offset, data)
        else:
            self._message += data[self.received - offset :]
            self.received = end
        return self._whole_messages()

    def held_bytes(self) -> int:
        """Received bytes that have not been returned, in order or not."""
        return len(self._message) + (0 if self._pieces is None else self._pieces.size)

    def _take_out_of_order(self, offset: int, data: bytes) -> None:
        if offset < self.received:
            data = data[self.received - offset :]
            offset = self.received
        pieces = self._pieces
        if pieces is None:
            pieces = self._pieces = Reassembly()
        pieces.add(offset, data)
        while (block := pieces.take(self.received)) is not None:
            self._message += block
            self.received += len(block)
        if len(pieces) > _MAX_PIECES:
            raise CryptoBufferError("CRYPTO data too fragmented")
        if not len(pieces):
            self._pieces = None

    def _whole_messages(self) -> bytes:
        message = self._message
        size = 0
        while len(message) >= size + _HEADER_BYTES:
            length = _HEADER_BYTES + int.from_bytes(message[size + 1 : size + _HEADER_BYTES], "big")
            if length > self._longest:
                raise CryptoBufferError("TLS message too long")
            if len(message) < size + length:
                break
            size += length
        if not size:
            return b""
        self._frames = 0
        whole = bytes(message[:size])
        del message[:size]
        self.handed_over += size
        return whole
