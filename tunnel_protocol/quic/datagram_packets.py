"""Splits a datagram into its long header packets and the 1-RTT packet behind them (RFC 9000 section 12.2). No cryptography."""

from typing import Final

from tunnel_protocol.quic.varint import pull_varint

_INITIAL, _RETRY = 0, 3
_MAX_CID_BYTES: Final = 20


def split_datagram(data: bytes) -> tuple[bytes, bytes]:
    """The leading long header packets, and the short header packet that follows them; either may be empty.

    What cannot be read counts to the long header packets, whose reader drops it.
    """
    at = 0
    try:
        while at < len(data) and data[at] & 0x80:
            at = _end_of_packet(data, at)
    except IndexError:
        return data, b""
    if at < len(data) and data[at] & 0x40:
        return data[:at], data[at:]
    return data, b""


def _end_of_packet(data: bytes, at: int) -> int:
    """Where the long header packet at `at` ends. Raises IndexError if it is cut short or has no length."""
    kind = (data[at] >> 4) & 3
    if kind == _RETRY or data[at + 1 : at + 5] != b"\x00\x00\x00\x01":
        raise IndexError("packet has no length")
    at += 5
    for _ in range(2):
        size = data[at]
        if size > _MAX_CID_BYTES:
            raise IndexError("connection id is too long")
        at += 1 + size
    if kind == _INITIAL:
        token_bytes, at = pull_varint(data, at)
        at += token_bytes
    length, at = pull_varint(data, at)
    if at + length > len(data):
        raise IndexError("packet is cut short")
    return at + length
