"""Sends a body of one repeated letter in chunks, as fast as the stream's back-pressure allows."""

from typing import Protocol

from tunnel_protocol.quic.stream_interface import Stream


class _Encoder(Protocol):
    def encode_body(self, data: bytes) -> bytes: ...

    def encode_end(self) -> bytes: ...


class BodySender:
    """One body on one stream, ended with FIN; the stream's `on_writable` calls `go_on`."""

    __slots__ = ("_chunk_bytes", "_encoder", "_left", "_letter", "_stream")

    def __init__(self, stream: Stream, encoder: _Encoder, letter: bytes, size_bytes: int, chunk_bytes: int) -> None:
        self._stream = stream
        self._encoder = encoder
        self._letter = letter
        self._left = size_bytes
        self._chunk_bytes = chunk_bytes

    def start(self, head: bytes) -> None:
        """Send the head, and the body until the stream's send buffer is full."""
        if self._left:
            self._stream.write(head)
            self.go_on()
        else:
            self._stream.write(head + self._encoder.encode_end(), fin=True)

    def go_on(self) -> None:
        """Continue sending: the stream is writable again."""
        piece = self._letter * min(self._chunk_bytes, self._left)
        while self._left > len(piece):
            self._left -= len(piece)
            if not self._stream.write(self._encoder.encode_body(piece)):
                return
        if self._left:
            last = self._encoder.encode_body(self._letter * self._left)
            self._left = 0
            self._stream.write(last + self._encoder.encode_end(), fin=True)
