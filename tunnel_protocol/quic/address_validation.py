"""Address validation with Retry, without any state per client (RFC 9000 section 8.1.2), and stateless resets (section 10.3).

Each function costs a few microseconds of symmetric cryptography, because any sender of a datagram can cause it to be called.
"""

import hmac
import os
import platform
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnel_protocol.quic.engine import CID_BYTES, Address
from tunnel_protocol.quic.tls import ServerTls
from tunnel_protocol.quic.varint import pull_varint

TOKEN_LIFE_S: Final = 15.0
"""Seconds that the token of a Retry is valid: long enough for a client to repeat its Initial packet a few times."""

_MAGIC: Final = b"\x52"
"""First byte of the tokens made here."""
_MAX_CID_BYTES: Final = 20
_TAG_BYTES: Final = 16
TOKEN_BYTES: Final = 1 + 8 + 1 + _MAX_CID_BYTES + _TAG_BYTES
"""Length of every token in bytes: magic, time of issue, length of the original connection id, padded id, tag."""

_RETRY_KEY: Final = bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")
_RETRY_NONCE: Final = bytes.fromhex("461599d35d632bf2239825bb")
"""Key and nonce of the Retry integrity tag, public constants of RFC 9001 section 5.8."""

RESET_TOKEN_BYTES: Final = 16
_SMALLEST_RESET_BYTES: Final = 5 + RESET_TOKEN_BYTES
_LARGEST_RESET_BYTES: Final = 42
"""Sizes of a stateless reset in bytes; it looks like a small 1-RTT packet (RFC 9000 section 10.3)."""


class InitialHeader(NamedTuple):
    """The unprotected header fields of a client's Initial packet (RFC 9000 section 17.2.2)."""

    destination_cid: bytes
    source_cid: bytes
    token: bytes

    @classmethod
    def parse(cls, data: bytes) -> "InitialHeader | None":
        """Parse the header of an Initial packet of QUIC version 1; None if `data` is no such packet or is truncated."""
        if len(data) < 7 or data[0] & 0xF0 != 0xC0 or data[1:5] != b"\x00\x00\x00\x01":
            return None
        source_at = 6 + data[5]
        if data[5] > _MAX_CID_BYTES or len(data) <= source_at or data[source_at] > _MAX_CID_BYTES:
            return None
        token_at = source_at + 1 + data[source_at]
        try:
            token_bytes, token_at = pull_varint(data, token_at)
        except IndexError:
            return None
        end = token_at + token_bytes
        if end > len(data):
            return None
        return cls(data[6:source_at], data[source_at + 1 : source_at + 1 + data[source_at]], data[token_at:end])


class Retry(NamedTuple):
    """A Retry packet: the answer to a client's first Initial packet."""

    packet: bytes
    cid: bytes
    """The destination id of the client's next packet."""


class AddressValidation:
    """Makes Retry packets and checks the tokens that come back: a MAC over time, address and connection ids.

    Each object has its own random key, so tokens of other endpoints, and of this process before a restart, are not accepted.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._seal = AESGCM(_RETRY_KEY)

    def retry(self, header: InitialHeader, address: Address, now: float) -> bytes:
        """A Retry packet for the client at `address` (RFC 9000 section 17.2.5); `now` in seconds of a monotonic clock."""
        retry_cid = os.urandom(CID_BYTES)
        original = header.destination_cid
        packet = b"".join(
            (
                b"\xf0\x00\x00\x00\x01",
                len(header.source_cid).to_bytes(1, "big"),
                header.source_cid,
                CID_BYTES.to_bytes(1, "big"),
                retry_cid,
                self.token(address, original, retry_cid, now),
            )
        )
        pseudo = b"".join((len(original).to_bytes(1, "big"), original, packet))
        return packet + self._seal.encrypt(_RETRY_NONCE, b"", pseudo)

    def token(self, address: Address, original_cid: bytes, retry_cid: bytes, now: float) -> bytes:
        """A token for the client at `address` that sent `original_cid` first and is to use `retry_cid` next."""
        head = b"".join(
            (
                _MAGIC,
                int(now * 1000).to_bytes(8, "big"),
                len(original_cid).to_bytes(1, "big"),
                original_cid.ljust(_MAX_CID_BYTES, b"\0"),
            )
        )
        return head + self._tag(head, address, retry_cid)

    def original_cid(self, header: InitialHeader, address: Address, now: float) -> bytes | None:
        """The destination id of the client's first packet; None if the token is not from this object or has expired."""
        token = header.token
        head = token[:-_TAG_BYTES]
        if not is_retry_token(token):
            return None
        if not hmac.compare_digest(token[-_TAG_BYTES:], self._tag(head, address, header.destination_cid)):
            return None
        if now - int.from_bytes(head[1:9], "big") / 1000 > TOKEN_LIFE_S:
            return None
        return head[10 : 10 + head[9]]

    def _tag(self, head: bytes, address: Address, retry_cid: bytes) -> bytes:
        # The port is included: clients behind one NAT differ only in their port.
        where = f"{address[0]}|{address[1]}|".encode()
        return hmac.digest(self._key, b"".join((head, where, retry_cid)), "sha256")[:_TAG_BYTES]


def is_retry_token(token: bytes) -> bool:
    """Whether a token has the format of a Retry token of this program, valid or not. Other tokens are ignored."""
    return len(token) == TOKEN_BYTES and token[:1] == _MAGIC


def reset_key(tls: ServerTls | None) -> bytes:
    """The key of an endpoint's stateless reset tokens.

    After a restart with the same private key on the same host the reset key is the same, so peers are notified at once that their
    connections are lost. It differs between hosts that share the private key, because a packet sent to the wrong host would
    otherwise reveal a valid token (RFC 9000 section 21.11). An endpoint that only dials (`tls` is None) gets a random key.
    """
    secret = os.urandom(32) if tls is None else tls.key_pem
    return hmac.digest(secret, b"stateless reset|" + platform.node().encode(), "sha256")


class StatelessResets:
    """Stateless reset tokens of our connection ids, and packets with them. Knowledge of `key` suffices to reset connections."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, connection_id: bytes) -> bytes:
        """The stateless reset token of one of our connection ids."""
        return hmac.digest(self._key, connection_id, "sha256")[:RESET_TOKEN_BYTES]

    def packet(self, data: bytes) -> bytes | None:
        """A stateless reset for a datagram of an unknown connection; None if the datagram must not be answered.

        Only packets with a short header are answered, and the answer is shorter than the packet, so two endpoints that answer
        each other's resets stop after a few datagrams (RFC 9000 section 10.3.3).
        """
        if len(data) <= _SMALLEST_RESET_BYTES or data[0] & 0xC0 != 0x40:
            return None
        size = min(len(data) - 1, _LARGEST_RESET_BYTES)
        noise = os.urandom(size - RESET_TOKEN_BYTES)
        first = (noise[0] & 0x3F | 0x40).to_bytes(1, "big")
        return first + noise[1:] + self.token(data[1 : 1 + CID_BYTES])
