"""Reads what of a QUIC packet is readable to everybody: long headers, and Initial packets of clients. Sans-I/O.

The keys of Initial packets are derived from the connection id in their header (RFC 9001 section 5.2), so they keep nothing
secret and prove nothing but that the packet is whole.
"""

import hmac
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.packets import packet_number
from tunnel_protocol.quic.varint import pull_varint

FRAMES = Limit("kubernetes_router.frames_in_an_initial_packet", pieces=256)
"""Frames read of one Initial packet, a run of PADDING counted as one."""

VERSION_1: Final = 1
_INITIAL_SALT: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
"""Salt of QUIC version 1, a public constant of RFC 9001 section 5.2."""
_INITIAL, _RETRY = 0, 3
_MAX_CID_BYTES = 20
_SAMPLE_AT, _SAMPLE_BYTES, _TAG_BYTES, _NONCE_BYTES = 4, 16, 16, 12
_PADDING_RUN: Final = re.compile(rb"\x00+")


class FirstFlightError(Exception):
    """The first datagrams of a client cannot be read. `reason` is for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LongHeader(NamedTuple):
    """The version-independent fields of a long header (RFC 8999 section 5.1)."""

    version: int
    """0 in a Version Negotiation packet."""
    destination_cid: bytes
    source_cid: bytes
    end: int
    """Position of the first byte behind them."""

    @classmethod
    def parse(cls, data: bytes, at: int = 0) -> "LongHeader | None":
        """The long header that begins at `at`; None if there is none, it is truncated, or an id has more than 20 bytes."""
        if len(data) < at + 7 or not data[at] & 0x80:
            return None
        source_at = at + 6 + data[at + 5]
        if data[at + 5] > _MAX_CID_BYTES or len(data) <= source_at or data[source_at] > _MAX_CID_BYTES:
            return None
        end = source_at + 1 + data[source_at]
        if end > len(data):
            return None
        version = int.from_bytes(data[at + 1 : at + 5], "big")
        return cls(version, data[at + 6 : source_at], data[source_at + 1 : end], end)


def _expand_label(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1 with an empty context, for up to 32 bytes."""
    info = b"".join((size.to_bytes(2, "big"), bytes([6 + len(label)]), b"tls13 ", label, b"\x00\x01"))
    return hmac.digest(secret, info, "sha256")[:size]


class ClientInitialKeys:
    """Removes the protection of a client's Initial packets of QUIC version 1."""

    __slots__ = ("_aead", "_iv", "_mask", "connection_id")

    def __init__(self, connection_id: bytes) -> None:
        """`connection_id` is the destination id of the client's first packet, or of the first one after a Retry."""
        self.connection_id = connection_id
        initial = hmac.digest(_INITIAL_SALT, connection_id, "sha256")
        secret = _expand_label(initial, b"client in", 32)
        self._aead = AESGCM(_expand_label(secret, b"quic key", 16))
        self._iv = int.from_bytes(_expand_label(secret, b"quic iv", _NONCE_BYTES), "big")
        # Header protection is defined as one block of AES-ECB (RFC 9001 section 5.4.3).
        protection = algorithms.AES(_expand_label(secret, b"quic hp", 16))
        self._mask = Cipher(protection, modes.ECB()).encryptor()  # noqa: S305

    def open(self, packet: bytes, number_at: int, expected: int) -> tuple[int, bytes] | None:
        """Number and payload of a packet whose number is at `number_at`; None if it is truncated or does not decrypt."""
        sample_at = number_at + _SAMPLE_AT
        if len(packet) < sample_at + _SAMPLE_BYTES:
            return None
        mask = self._mask.update(packet[sample_at : sample_at + _SAMPLE_BYTES])
        first = packet[0] ^ (mask[0] & 0x0F)
        size = (first & 3) + 1
        payload_at = number_at + size
        truncated = int.from_bytes(packet[number_at:payload_at], "big") ^ int.from_bytes(mask[1 : 1 + size], "big")
        number = packet_number(truncated, size, expected)
        header = b"".join((bytes([first]), packet[1:number_at], truncated.to_bytes(size, "big")))
        nonce = (self._iv ^ number).to_bytes(_NONCE_BYTES, "big")
        try:
            return number, self._aead.decrypt(nonce, packet[payload_at:], header)
        except InvalidTag:
            return None


def initial_packets(data: bytes, connection_id: bytes) -> Iterator[tuple[bytes, int]]:
    """The Initial packets in a datagram with this destination id, and the position of the number in each.

    Packets of other types are skipped. What follows a packet that is no long header of QUIC version 1, or is truncated, is
    ignored, as RFC 9000 section 12.2 has it for coalesced packets.
    """
    at = 0
    while at < len(data):
        header = LongHeader.parse(data, at)
        kind = data[at] >> 4 & 3
        if header is None or header.version != VERSION_1 or header.destination_cid != connection_id or kind == _RETRY:
            return
        try:
            position = header.end
            if kind == _INITIAL:
                token_bytes, position = pull_varint(data, position)
                position += token_bytes
            size, number_at = pull_varint(data, position)
        except IndexError:
            return
        end = number_at + size
        if end > len(data):
            return
        if kind == _INITIAL:
            yield data[at:end], number_at - at
        at = end


def crypto_frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and content of the CRYPTO frames of an Initial packet. Raises `FirstFlightError` for other frames than it may have."""
    at, frames, size = 0, 0, len(payload)
    try:
        while at < size:
            frames += 1
            if frames > (FRAMES.pieces or 0):
                raise FirstFlightError("too many frames in an Initial packet")
            kind = payload[at]
            if kind == 0x00:
                run = _PADDING_RUN.match(payload, at)
                at = size if run is None else run.end()
            elif kind == 0x01:  # PING
                at += 1
            elif kind == 0x06:
                offset, at = pull_varint(payload, at + 1)
                length, at = pull_varint(payload, at)
                if at + length > size:
                    raise FirstFlightError("truncated CRYPTO frame")
                yield offset, payload[at : at + length]
                at += length
            elif kind in (0x02, 0x03):
                at = _behind_ack(payload, at)
            elif kind == 0x1C:
                raise FirstFlightError("closed by the client")
            else:
                raise FirstFlightError("a frame that Initial packets do not have")
    except IndexError:
        raise FirstFlightError("truncated frame") from None


def _behind_ack(payload: bytes, at: int) -> int:
    """The position behind the ACK frame at `at`. Raises IndexError if it is truncated."""
    kind = payload[at]
    _largest, at = pull_varint(payload, at + 1)
    _delay, at = pull_varint(payload, at)
    ranges, at = pull_varint(payload, at)
    _first, at = pull_varint(payload, at)
    for _ in range(2 * ranges + (3 if kind == 0x03 else 0)):  # ends at the end of the payload at the latest
        _, at = pull_varint(payload, at)
    return at
