"""Encodes and decodes ordinary 1-RTT packets: packet protection, STREAM and ACK frames (RFC 9000, RFC 9001).

No state and no I/O. This is the Python version of `packet_speedups.pyx`, which is used instead if it was compiled; tests run
against both. Packets that are not ordinary are left to the caller.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from tunnel_protocol.quic.engine import CID_BYTES
from tunnel_protocol.quic.varint import pull_varint, varint

HEADER_BYTES = 1 + CID_BYTES
"""Bytes before the packet number of a packet sent to us: first byte and destination connection id."""

SAMPLE_AT, SAMPLE_BYTES = HEADER_BYTES + 4, 16
"""Position of the ciphertext sample for header protection (RFC 9001 section 5.4.2)."""

SMALLEST_PACKET_BYTES = SAMPLE_AT + SAMPLE_BYTES
_NONCE_BYTES = 12


class Keys(NamedTuple):
    """Packet protection keys of one direction (RFC 9001 section 5)."""

    aead: Callable[[bytes, bytes, bytes], bytes]
    """Decrypts or encrypts (nonce, data, associated data). Raises the library's error if decryption fails."""
    iv: int
    mask: Callable[[bytes], bytes]
    """Computes the header protection masks of samples of 16 bytes; a mask takes the first 5 of 16 bytes (RFC 9001 section 5.4)."""

    into: Callable[[bytes, bytes, bytes, bytearray], int] | None = None
    """Encrypts as `aead` does, into the given buffer, which has exactly the size of the result; None for keys that decrypt."""


class PacketKeys(Protocol):
    """`Keys` of either form."""

    @property
    def aead(self) -> Callable[[bytes, bytes, bytes], bytes]:
        """See `Keys`."""

    @property
    def iv(self) -> int:
        """See `Keys`."""

    @property
    def mask(self) -> Callable[[bytes], bytes]:
        """See `Keys`."""

    @property
    def into(self) -> Callable[[bytes, bytes, bytes, bytearray], int] | None:
        """See `Keys`."""


class FrameTaker(Protocol):
    """A stream as the receiver of STREAM frames."""

    def on_stream_frame(self, offset: int, data: bytes, fin: bool) -> None:
        """Process the content of a STREAM frame: `data` at byte `offset` of the stream."""


Ack = tuple[int, int, list[tuple[int, int]], int]
"""An ACK frame without its ECN counts (RFC 9000 section 19.3).

The largest packet number; the ACK Delay as encoded, not yet multiplied by 2 ** ack_delay_exponent of the peer; the lowest and
highest packet number of each range, newest first (the frame is invalid if a lowest number is negative); and the position of the
next frame in the payload.
"""


def make_keys(
    aead: Callable[[bytes, bytes, bytes], bytes],
    iv: int,
    mask: Callable[[bytes], bytes],
    into: Callable[[bytes, bytes, bytes, bytearray], int] | None = None,
) -> PacketKeys:
    """Keys of this form."""
    return Keys(aead, iv, mask, into)


def packet_number(truncated: int, size: int, expected: int) -> int:
    """Decode a packet number of which the low `size` bytes were sent (RFC 9000 appendix A.3)."""
    window = 1 << (8 * size)
    candidate = (expected & -window) | truncated
    if candidate <= expected - window // 2 and candidate < (1 << 62) - window:
        return candidate + window
    if candidate > expected + window // 2 and candidate >= window:
        return candidate - window
    return candidate


def open_packet(data: bytes, keys: PacketKeys, key_phase: int, expected: int) -> tuple[int, bytes] | None:
    """Number and payload of a packet of at least `SMALLEST_PACKET_BYTES`; None for another key phase or set reserved bits.

    `expected` is the largest received packet number plus 1. Raises what `keys.aead` raises.
    """
    mask = keys.mask(data[SAMPLE_AT : SAMPLE_AT + SAMPLE_BYTES])
    first = data[0] ^ (mask[0] & 0x1F)
    if first & 0x18 or (first >> 2) & 1 != key_phase:
        return None
    size = (first & 3) + 1
    payload_at = HEADER_BYTES + size
    truncated = int.from_bytes(data[HEADER_BYTES:payload_at], "big") ^ int.from_bytes(mask[1 : 1 + size], "big")
    number = packet_number(truncated, size, expected)
    header = first.to_bytes(1, "big") + data[1:HEADER_BYTES] + truncated.to_bytes(size, "big")
    return number, keys.aead((keys.iv ^ number).to_bytes(_NONCE_BYTES, "big"), data[payload_at:], header)


def unprotect_header(data: bytes, mask_of: Callable[[bytes], bytes], expected: int) -> tuple[int, int, bytes]:
    """First byte, packet number and whole header of a packet, without header protection (RFC 9001 section 5.4).

    Nothing of it is authenticated yet. `data` must have `SMALLEST_PACKET_BYTES`.
    """
    mask = mask_of(data[SAMPLE_AT : SAMPLE_AT + SAMPLE_BYTES])
    first = data[0] ^ (mask[0] & 0x1F)
    size = (first & 3) + 1
    truncated = int.from_bytes(data[HEADER_BYTES : HEADER_BYTES + size], "big") ^ int.from_bytes(
        mask[1 : 1 + size], "big"
    )
    header = first.to_bytes(1, "big") + data[1:HEADER_BYTES] + truncated.to_bytes(size, "big")
    return first, packet_number(truncated, size, expected), header


def seal_packet(first: int, peer_cid: bytes, number: int, payload: bytes, keys: PacketKeys) -> bytes:
    """A protected packet with a 2-byte packet number. `first` is the first byte before header protection."""
    truncated = (number & 0xFFFF).to_bytes(2, "big")
    header = first.to_bytes(1, "big") + peer_cid + truncated
    sealed = keys.aead((keys.iv ^ number).to_bytes(_NONCE_BYTES, "big"), payload, header)
    mask = keys.mask(sealed[2:18])
    return b"".join(
        (
            (first ^ (mask[0] & 0x1F)).to_bytes(1, "big"),
            peer_cid,
            bytes((truncated[0] ^ mask[1], truncated[1] ^ mask[2])),
            sealed,
        )
    )


def read_stream_frames(payload: bytes, at: int, streams: Mapping[int, FrameTaker]) -> int:
    """Pass the STREAM frames from position `at` on to their streams; returns the position of the first other frame.

    A frame that is truncated or for an unknown stream counts as another frame. Raises what a stream raises.
    """
    size = len(payload)
    while at < size:
        kind = payload[at]
        if kind & 0xF8 != 0x08:
            return at
        try:
            stream_id, data_at = pull_varint(payload, at + 1)
            offset = 0
            if kind & 4:
                offset, data_at = pull_varint(payload, data_at)
            end = size
            if kind & 2:
                length, data_at = pull_varint(payload, data_at)
                end = data_at + length
        except IndexError:
            return at
        stream = streams.get(stream_id)
        if end > size or stream is None:
            return at
        stream.on_stream_frame(offset, payload[data_at:end], kind & 1 == 1)
        at = end
    return at


def read_ack(payload: bytes, at: int) -> Ack:
    """Decode the ACK frame whose type field ends before `at`. Raises IndexError if it is truncated."""
    largest, at = pull_varint(payload, at)
    delay, at = pull_varint(payload, at)
    more, at = pull_varint(payload, at)
    length, at = pull_varint(payload, at)
    low = largest - length
    ranges = [(low, largest)]
    while more and low >= 0:
        gap, at = pull_varint(payload, at)
        length, at = pull_varint(payload, at)
        high = low - gap - 2
        low = high - length
        ranges.append((low, high))
        more -= 1
    return largest, delay, ranges, at


def stream_frame(id_bytes: bytes, offset: int, data: bytes, fin: bool) -> bytes:
    """Encode a STREAM frame with length field; `data` must be shorter than 16 KiB (RFC 9000 section 19.8)."""
    length = (len(data) | 0x4000).to_bytes(2, "big")
    if offset:
        return b"".join((b"\x0f" if fin else b"\x0e", id_bytes, varint(offset), length, data))
    return b"".join((b"\x0b" if fin else b"\x0a", id_bytes, length, data))


def seal_run(
    first: int,
    peer_cid: bytes,
    number: int,
    id_bytes: bytes,
    offset: int,
    data: bytes | bytearray,
    start: int,
    stop: int,
    piece_bytes: int,
    fin: bool,
    keys: PacketKeys,
) -> bytes:
    """Protected packets, one after another in one buffer, that carry `data[start:stop]` in pieces of `piece_bytes` bytes.

    Each holds one STREAM frame without length field, which reaches to the end of the packet (RFC 9000 section 19.8). `number`,
    `offset` and `fin` are the packet number of the first packet, the stream offset of the first piece, and whether the stream
    ends with the last one, which may be shorter than the others. `keys` must be able to encrypt into a buffer.
    """
    packets: list[bytes] = []
    for at in range(start, stop, piece_bytes):
        piece = bytes(data[at : min(stop, at + piece_bytes)])
        frame = run_frame(id_bytes, offset + at - start, piece, fin and at + piece_bytes >= stop)
        packets.append(seal_packet(first, peer_cid, number + len(packets), frame, keys))
    return b"".join(packets)


def run_frame(id_bytes: bytes, offset: int, data: bytes, fin: bool) -> bytes:
    """A STREAM frame as `seal_run` writes it: the offset takes 8 bytes whatever it is, so that all packets are equally long."""
    return b"".join((b"\x0d" if fin else b"\x0c", id_bytes, (offset | 0xC000000000000000).to_bytes(8, "big"), data))
