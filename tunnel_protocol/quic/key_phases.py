"""The 1-RTT keys of both directions and their updates (RFC 9001 section 6)."""

from typing import Final

from cryptography.exceptions import InvalidTag

from tunnel_protocol.quic.packet_protection import PacketProtection
from tunnel_protocol.quic.packets import PacketKeys, unprotect_header
from tunnel_protocol.quic.transport_error import ErrorCode, TransportError

KEY_UPDATE_PACKETS: Final = 1 << 22
"""Packets per key before a key update: half of the confidentiality limit of AES-GCM (RFC 9001 section 6.6)."""

_INTEGRITY_LIMIT: Final = 1 << 36
"""Packets that fail authentication before the connection ends: the limit of ChaCha20-Poly1305, the lower one."""


class KeyPhases:
    """Keys that open and seal packets, with the receive keys before and after the current phase."""

    __slots__ = (
        "_first_opened",
        "_first_sealed",
        "_following",
        "_opening",
        "_previous",
        "_sealing",
        "failures",
        "opens",
        "phase",
        "sealed",
        "seals",
    )

    def __init__(self, receiving: PacketProtection, sending: PacketProtection) -> None:
        self._opening = receiving
        self._sealing = sending
        self.opens: PacketKeys = receiving.keys
        self.seals: PacketKeys = sending.keys
        self.phase = 0
        """The Key Phase bit of packets that are sent, and expected."""
        self._previous: PacketKeys | None = None
        """Receive keys before the last update, for packets that were reordered or sent before the peer's update."""
        self._following: PacketProtection | None = None
        """Receive keys after the current ones, once a packet seemed to need them."""
        self._first_opened: int | None = None
        """Number of the first packet received in the current phase."""
        self._first_sealed: int | None = 0
        """Number of the first packet sent in the current phase; None before it is sent."""
        self.sealed = 0
        """Packets sealed in the current phase."""
        self.failures = 0
        """Packets that no key has opened."""

    def update_due(self, largest_acked: int) -> bool:
        """Whether to update the keys now: they have sealed many packets, and the peer has acknowledged one of them."""
        return (
            self.sealed >= KEY_UPDATE_PACKETS and self._first_sealed is not None and largest_acked >= self._first_sealed
        )

    def update(self, next_number: int) -> None:
        """Begin the next key phase; `next_number` is the number of the next packet to send."""
        self._previous = self.opens
        self._opening = self._following or self._opening.following()
        self._following = None
        self._sealing = self._sealing.following()
        self.opens, self.seals = self._opening.keys, self._sealing.keys
        self.phase ^= 1
        self._first_opened = None
        self._first_sealed = next_number
        self.sealed = 0

    def opened(self, number: int) -> None:
        """The first packet of the current phase was opened."""
        self._first_opened = number

    @property
    def just_updated(self) -> bool:
        """Whether no packet of the current phase was opened yet."""
        return self._first_opened is None

    def not_opened(self) -> None:
        """A packet could not be authenticated. Raises `TransportError` at the integrity limit (RFC 9001 section 6.6)."""
        self.failures += 1
        if self.failures >= _INTEGRITY_LIMIT:
            raise TransportError(ErrorCode.AEAD_LIMIT_REACHED, 0, "Too many packets failed authentication")

    def open_unusual(self, data: bytes, expected: int, next_number: int) -> tuple[int, bytes] | None:
        """Open a packet of another key phase or with reserved bits, which `open_packet` has left.

        None if no key opens it. A packet of the following phase updates the keys of both directions. Raises `TransportError`.
        """
        first, number, header = unprotect_header(data, self.opens.mask, expected)
        payload = self._open_with_any(first, number, header, data, next_number)
        if payload is None:
            self.not_opened()
            return None
        if first & 0x18:
            raise TransportError(ErrorCode.PROTOCOL_VIOLATION, 0, "Reserved bits must be zero")
        return number, payload

    def _open_with_any(self, first: int, number: int, header: bytes, data: bytes, next_number: int) -> bytes | None:
        sealed = data[len(header) :]
        if (first >> 2) & 1 == self.phase:
            return _opened(self.opens, number, sealed, header)
        if self._previous is not None and (self._first_opened is None or number < self._first_opened):
            return _opened(self._previous, number, sealed, header)
        if self._following is None:
            self._following = self._opening.following()
        payload = _opened(self._following.keys, number, sealed, header)
        if payload is not None:
            self.update(next_number)
            self._first_opened = number
        return payload


def _opened(keys: PacketKeys, number: int, sealed: bytes, header: bytes) -> bytes | None:
    nonce = (keys.iv ^ number).to_bytes(12, "big")
    try:
        return keys.aead(nonce, sealed, header)
    except InvalidTag:
        return None
