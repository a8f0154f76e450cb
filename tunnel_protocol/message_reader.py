"""Splits a stream of concatenated messages into messages; the bytes may arrive in pieces of any size. Sans-I/O.

The buffer is bounded: an incomplete message is kept up to `max_message_bytes`, and no memory is reserved for announced
bytes. The content of a larger canonical body message is passed on in pieces as it arrives. See docs/protocol.md,
"Messages".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr

from tunnel_protocol.capnp import Body, Headers, Trailers, canonical_body_size, cut_bodies, decode_message
from tunnel_protocol.capnp_layouts import BODY_PREFIX_BYTES
from tunnel_protocol.capnp_reader import WORD_BYTES, body_words, table_bytes
from tunnel_protocol.errors import ProtocolError

MAX_WORDS: Final = 134_217_728
WHOLE_BODY_BYTES: Final = 64 * 1024
"""Body messages up to this size in bytes are delivered whole, so that their boundaries are kept."""
MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""Largest message in bytes that is kept until it is complete: heads, and bodies in a non-canonical encoding."""


@mypyc_attr(allow_interpreted_subclasses=True)
class MessageReader(ABC):
    """Reads one direction of a request stream; `on_message` is called for each message, in order."""

    __slots__ = ("_closed", "_held", "_large_left", "_max", "_needed", "_padding_left", "on_body")

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max = max_message_bytes
        self._held = bytearray()
        self._needed = 0
        self._large_left = 0
        self._padding_left = 0
        self._closed = False
        self.on_body: Callable[[bytes], None] | None = None
        """Fast path for non-empty content of body messages; if it is None, all messages are passed to `on_message`.
        None after `close`."""

    @abstractmethod
    def on_message(self, message: Headers | Body | Trailers) -> None:
        """One message, or one piece of a large body message. May call `close`, may raise `ProtocolError`."""

    def held_bytes(self) -> int:
        """Buffered bytes of an incomplete message."""
        return len(self._held)

    def close(self) -> None:
        """Ignore all further messages."""
        self._closed = True
        self._held.clear()
        self._large_left = self._padding_left = 0
        self.on_body = None

    def feed(self, data: bytes) -> None:
        """Process the next bytes. Raises `ProtocolError`; the messages before the error have been reported."""
        if self._large_left or self._padding_left:
            data = self._continue_large_body(data)
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return
            data = bytes(self._held)
            self._held.clear()
        size = len(data)
        offset = 0
        while offset < size and not self._closed:
            offset = cut_bodies(self, data, offset)  # the fast path for response chunks
            if offset < size and not self._closed:
                offset = self._next(data, offset, size)

    def finish(self) -> None:
        """The stream has ended. Raises `ProtocolError` unless it ended between two messages."""
        if self._held or self._large_left or self._padding_left:
            raise ProtocolError("end of stream inside a message")

    def _next(self, data: bytes, offset: int, size: int) -> int:
        """Report or buffer the message that starts at `offset`; returns the offset after it."""
        have = size - offset
        length = self._length(data, offset, have)
        if length <= have:
            self.on_message(decode_message(data[offset : offset + length]))
            return offset + length
        if have >= BODY_PREFIX_BYTES:
            content = canonical_body_size(data, offset)
            if content > min(WHOLE_BODY_BYTES, self._max):
                self._large_left = content
                self._padding_left = -content & (WORD_BYTES - 1)
                self._continue_large_body(data[offset + BODY_PREFIX_BYTES :])
                return size
        self._held += data[offset:]
        self._needed = length
        return size

    def _length(self, data: bytes, offset: int, have: int) -> int:
        """Length of the message at `offset`; if `have` bytes are not enough to know, the length needed to know more."""
        if have < WORD_BYTES:
            return WORD_BYTES
        if data[offset] | data[offset + 1] | data[offset + 2] | data[offset + 3]:
            table = table_bytes(data, offset)
            if have < table:
                return table
            words = body_words(data, offset)
        else:  # one segment, as everybody writes: read without a call
            table = WORD_BYTES
            words = data[offset + 4] | data[offset + 5] << 8 | data[offset + 6] << 16 | data[offset + 7] << 24
        if words > MAX_WORDS:
            raise ProtocolError(f"Message has {words} words, which is too large")
        length = table + words * WORD_BYTES
        if length > self._max:
            if have < BODY_PREFIX_BYTES:
                return BODY_PREFIX_BYTES
            if canonical_body_size(data, offset) < 0:
                raise ProtocolError(f"message of {length} bytes exceeds the limit of {self._max}")
        return length

    def _continue_large_body(self, data: bytes) -> bytes:
        """Report the bytes of `data` that belong to a large body; returns the rest."""
        piece = data[: self._large_left]
        self._large_left -= len(piece)
        rest = data[len(piece) :]
        if piece:
            self.on_message(Body(piece))
        if self._large_left:
            return b""
        padding = min(self._padding_left, len(rest))
        self._padding_left -= padding
        return rest[padding:]
