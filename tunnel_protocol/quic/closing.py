"""The CONNECTION_CLOSE frame (RFC 9000 section 19.19)."""

from typing import Final

from tunnel_protocol.quic.varint import varint

MAX_REASON_BYTES: Final = 1_000
"""Bytes of a reason phrase that are sent: a packet with it fits into the smallest datagram."""


def close_frame(error_code: int, frame_type: int | None, reason: str) -> bytes:
    """A CONNECTION_CLOSE frame: of an application if `frame_type` is None, else of the transport, 0 for no frame."""
    phrase = reason.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore").encode()
    head = b"\x1d" + varint(error_code) if frame_type is None else b"\x1c" + varint(error_code) + varint(frame_type)
    return head + varint(len(phrase)) + phrase
