"""API keys: `sk-lrr-` and 64 hexadecimal digits, 256 random bits. Only their SHA-256 digests are kept.

A digest without salt and without many rounds is enough: nobody can search 2^256 keys. The prefix lets scanners for leaked
credentials find a key (`sk-lrr-[0-9a-f]{64}`), and clients that expect `sk-` accept it.
"""

import hashlib
import secrets

PREFIX = "sk-lrr-"
_RANDOM_BYTES = 32


def new_key() -> str:
    """A new random key."""
    return PREFIX + secrets.token_hex(_RANDOM_BYTES)


def digest_of(key: bytes) -> bytes:
    """The SHA-256 digest of a key as a client sent it: 32 bytes."""
    return hashlib.sha256(key).digest()
