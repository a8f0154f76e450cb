"""Cuts a stream of concatenated messages into messages, whatever pieces the bytes arrive in. Sans-I/O.

What is held back is bounded: a message that is not complete yet is buffered only up to `max_message_bytes`; the content of
a larger canonical body message is handed on in pieces as it arrives. See docs/protocol.md, "Messages".
"""

from collections.abc import Callable

from tunnel_protocol.capnp import BODY_PREFIX_BYTES, Body, Headers, Trailers, canonical_body_size, decode_message
from tunnel_protocol.capnp_reader import WORD_BYTES, body_words, table_bytes
from tunnel_protocol.errors import ProtocolError

MAX_WORDS = 134_217_728
WHOLE_BODY_BYTES = 64 * 1024
"""Body messages up to this size are delivered whole, so that their boundaries survive."""
MAX_MESSAGE_BYTES = 1024 * 1024
"""The largest message that is buffered whole: heads, and bodies in an unusual encoding."""


class MessageReader:
    """Reads one direction of a request stream; calls `on_message` for each message, in order."""

    __slots__ = ("_body_left", "_buffer", "_max", "_needed", "_on_message", "_padding_left")

    def __init__(
        self, on_message: Callable[[Headers | Body | Trailers], None], max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self._on_message = on_message
        self._max = max_message_bytes
        self._buffer = bytearray()
        self._needed = WORD_BYTES
        self._body_left = 0
        self._padding_left = 0

    def buffered_bytes(self) -> int:
        """Bytes of an incomplete message that are held back."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `ProtocolError`; messages before the fault have been reported."""
        if self._body_left or self._padding_left:
            data = self._continue_large_body(data)
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        offset = 0
        size = len(data)
        while offset < size:
            end = self._message_end(data, offset, size)
            if end > size:
                self._needed = end - offset
                self._buffer += data[offset:]
                return
            if end > 0:
                message = data if offset == 0 and end == size else data[offset:end]
                offset = end
                self._on_message(decode_message(message))
            else:
                offset = self._start_large_body(data, offset)

    def finish(self) -> None:
        """The stream ended. Raises `ProtocolError` unless it ended between two messages."""
        if self._buffer or self._body_left or self._padding_left:
            raise ProtocolError("end of stream inside a message")

    def _message_end(self, data: bytes, offset: int, size: int) -> int:
        """Offset behind the message at `offset`, beyond `size` if more bytes are needed, 0 for a large body."""
        have = size - offset
        if have < WORD_BYTES:
            return offset + WORD_BYTES
        if data[offset : offset + 4] == b"\0\0\0\0":
            words = int.from_bytes(data[offset + 4 : offset + 8], "little")
            table = WORD_BYTES
        else:
            table = table_bytes(data, offset)
            if have < table:
                return offset + table
            words = body_words(data, offset)
        if words > MAX_WORDS:
            raise ProtocolError(f"Message has {words} words, which is too large")
        length = table + words * WORD_BYTES
        if length <= have and length <= self._max:
            return offset + length
        if length > WHOLE_BODY_BYTES:
            if have < BODY_PREFIX_BYTES:
                return offset + BODY_PREFIX_BYTES
            if canonical_body_size(data, offset) > WHOLE_BODY_BYTES:
                return 0
            if length > self._max:
                raise ProtocolError(f"message of {length} bytes exceeds the limit of {self._max}")
        return offset + length

    def _start_large_body(self, data: bytes, offset: int) -> int:
        content = canonical_body_size(data, offset)
        start = offset + BODY_PREFIX_BYTES
        piece = data[start : start + content]
        self._body_left = content - len(piece)
        self._padding_left = -content & (WORD_BYTES - 1)
        if piece:
            self._on_message(Body(piece))
        if self._body_left:
            return len(data)
        skipped = min(self._padding_left, len(data) - start - len(piece))
        self._padding_left -= skipped
        return start + len(piece) + skipped

    def _continue_large_body(self, data: bytes) -> bytes:
        piece = data[: self._body_left]
        self._body_left -= len(piece)
        if piece:
            self._on_message(Body(piece))
        if self._body_left:
            return b""
        skipped = min(self._padding_left, len(data) - len(piece))
        self._padding_left -= skipped
        return data[len(piece) + skipped :]
