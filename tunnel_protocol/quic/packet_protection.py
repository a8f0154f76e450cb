"""Packet protection of 1-RTT packets: keys from a TLS traffic secret, and the secret after it (RFC 9001 sections 5 and 6.1).

The ciphers are those of the `cryptography` package. `PacketKeys` is what `packets.py` and its compiled version seal and open with.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tunnel_protocol.quic.packets import SAMPLE_BYTES, PacketKeys

try:
    from tunnel_protocol.quic.packet_speedups import make_keys
except ImportError:
    from tunnel_protocol.quic.packets import make_keys

_IV_BYTES: Final = 12
_ZEROS: Final = bytes(SAMPLE_BYTES)


class CipherSuite(IntEnum):
    """TLS 1.3 cipher suites that QUIC can use here (RFC 8446 section B.4)."""

    AES_128_GCM_SHA256 = 0x1301
    AES_256_GCM_SHA384 = 0x1302
    CHACHA20_POLY1305_SHA256 = 0x1303


class PacketProtection:
    """The keys of one direction and one key phase."""

    __slots__ = ("_mask", "_opens", "_secret", "_suite", "keys")

    def __init__(
        self, suite: CipherSuite, secret: bytes, *, opens: bool, mask: Callable[[bytes], bytes] | None = None
    ) -> None:
        """Keys that decrypt (`opens`) or encrypt. `mask` is the header protection of the phase before, which stays the same."""
        self._suite = suite
        self._secret = secret
        self._opens = opens
        key = _expand(suite, secret, b"quic key", _key_bytes(suite))
        self._mask = mask or _header_protection(suite, _expand(suite, secret, b"quic hp", _key_bytes(suite)))
        aead = ChaCha20Poly1305(key) if suite is CipherSuite.CHACHA20_POLY1305_SHA256 else AESGCM(key)
        iv = int.from_bytes(_expand(suite, secret, b"quic iv", _IV_BYTES), "big")
        self.keys: PacketKeys = (
            make_keys(aead.decrypt, iv, self._mask)
            if opens
            else make_keys(aead.encrypt, iv, self._mask, aead.encrypt_into)
        )

    def following(self) -> "PacketProtection":
        """The keys of the next key phase (RFC 9001 section 6.1)."""
        secret = _expand(self._suite, self._secret, b"quic ku", _hash(self._suite).digest_size)
        return PacketProtection(self._suite, secret, opens=self._opens, mask=self._mask)


class _ChaCha20Mask:
    """Header protection with ChaCha20 (RFC 9001 section 5.4.4): each sample is counter and nonce."""

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        self._encryptor: CipherContext = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()

    def __call__(self, samples: bytes) -> bytes:
        masks = []
        for at in range(0, len(samples), SAMPLE_BYTES):
            self._encryptor.reset_nonce(samples[at : at + SAMPLE_BYTES])
            masks.append(self._encryptor.update(_ZEROS))
        return b"".join(masks)


def _header_protection(suite: CipherSuite, key: bytes) -> Callable[[bytes], bytes]:
    if suite is CipherSuite.CHACHA20_POLY1305_SHA256:
        return _ChaCha20Mask(key)
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update  # noqa: S305 - RFC 9001 section 5.4.3


def _key_bytes(suite: CipherSuite) -> int:
    return 16 if suite is CipherSuite.AES_128_GCM_SHA256 else 32


def _hash(suite: CipherSuite) -> hashes.HashAlgorithm:
    return hashes.SHA384() if suite is CipherSuite.AES_256_GCM_SHA384 else hashes.SHA256()


def _expand(suite: CipherSuite, secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1)."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + len(label).to_bytes(1, "big") + label + b"\x00"
    return HKDFExpand(_hash(suite), size, info).derive(secret)
