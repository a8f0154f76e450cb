"""The handshake of a reverse tunnel, router's and worker's side, as state machines over bytes. Sans-I/O.

The worker sends its id and token in one message on its first stream; the router answers with one message on the same
stream. See docs/protocol.md, "Reverse handshake".
"""

from typing import Final, NamedTuple

from tunnel_protocol.capnp import (
    HandshakeAck,
    decode_handshake,
    decode_handshake_ack,
    encode_handshake,
    encode_handshake_ack,
)
from tunnel_protocol.capnp_reader import WORD_BYTES, body_words, table_bytes
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.limit import Limit

HANDSHAKE_MESSAGE: Final = Limit("tunnels.handshake_message", bytes=64 * 1024)
MAX_HANDSHAKE_BYTES: Final = HANDSHAKE_MESSAGE.bytes or 0
"""Largest handshake message in bytes; a token of tens of kilobytes fits."""


class WorkerHello(NamedTuple):
    """The content of a worker's handshake: its id and its token (None: no token, which differs from an empty one)."""

    inference_server_id: str
    token: str | None


class _OneMessage:
    """Collects the single message of one direction, of at most `max_bytes` bytes."""

    def __init__(self, what: str, max_bytes: int) -> None:
        self._what = what
        self._max = max_bytes
        self._buffer = bytearray()
        self.complete = False

    def receive(self, data: bytes, fin: bool) -> bytes | None:
        """The message when it is complete; None before, and for all bytes after it. Raises `ProtocolError`."""
        if self.complete:
            return None
        self._buffer += data
        needed = self._needed()
        if needed > self._max:
            raise ProtocolError(f"{self._what} message of {needed} bytes exceeds the limit of {self._max}")
        if len(self._buffer) >= needed:
            self.complete = True
            message = bytes(self._buffer[:needed])
            self._buffer.clear()
            return message
        if fin:
            raise ProtocolError(f"expected {self._what} message, got {'part of one' if self._buffer else 'none'}")
        return None

    def _needed(self) -> int:
        if len(self._buffer) < WORD_BYTES:
            return WORD_BYTES
        table = table_bytes(self._buffer)
        if len(self._buffer) < table:
            return table
        return table + body_words(self._buffer) * WORD_BYTES


class RouterHandshake:
    """The router's side: decodes the hello, encodes the answer."""

    def __init__(self, max_bytes: int = MAX_HANDSHAKE_BYTES) -> None:
        self._message = _OneMessage("handshake", max_bytes)

    def receive(self, data: bytes, fin: bool) -> WorkerHello | None:
        """The hello as soon as its message is complete, without waiting for FIN; else None. Raises `ProtocolError`."""
        message = self._message.receive(data, fin)
        return None if message is None else WorkerHello(*decode_handshake(message))

    def accept(self) -> bytes:
        """The bytes of the answer that accepts the tunnel; FIN follows."""
        return encode_handshake_ack(True)

    def refuse(self, reason: str) -> bytes:
        """The bytes of the answer that refuses the tunnel; FIN follows."""
        return encode_handshake_ack(False, reason)


class WorkerHandshake:
    """The worker's side: encodes the hello, decodes the answer."""

    def __init__(self, max_bytes: int = MAX_HANDSHAKE_BYTES) -> None:
        self._message = _OneMessage("handshake ack", max_bytes)

    def hello(self, inference_server_id: str, token: str | None) -> bytes:
        """The bytes of the worker's only message; FIN follows."""
        return encode_handshake(inference_server_id, token)

    def receive(self, data: bytes, fin: bool) -> HandshakeAck | None:
        """The router's answer when it is complete, else None. Raises `ProtocolError`."""
        message = self._message.receive(data, fin)
        return None if message is None else decode_handshake_ack(message)
