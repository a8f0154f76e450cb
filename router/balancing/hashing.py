"""The hash of affinity decisions: XXH3 (64 bit, seed 0) of tagged, length-prefixed fields (docs/balancing.md, "Hashing")."""

import math
from typing import Final

import xxhash

_VERSION: Final = b"\x01"
_SEPARATOR: Final = b"\xff"
_TWO_64: Final = 18446744073709551616.0


def field(tag: bytes, value: bytes) -> bytes:
    """One tagged, length-prefixed field."""
    return tag + _SEPARATOR + len(value).to_bytes(8, "little") + value


def prefix(seed: str | None, routing_key: str | None, model: str) -> bytes:
    """The common prefix of the hashes of one definition and target; absent values are hashed as empty ones."""
    return b"".join(
        (
            _VERSION,
            field(b"seed", (seed or "").encode()),
            field(b"routing_key", (routing_key or "").encode()),
            field(b"model_id", model.encode()),
        )
    )


def affinity_field(affinity_key: str | None) -> bytes:
    """The part of the hashed bytes that depends on the request."""
    return field(b"cache_affinity_key", (affinity_key or "").encode())


def cluster_field(cluster_id: str) -> bytes:
    """The part of the hashed bytes that depends on the cluster."""
    return field(b"cluster_id", cluster_id.encode())


def hash64(data: bytes) -> int:
    """The hash as an unsigned integer."""
    return xxhash.xxh3_64_intdigest(data)


def exponential(hashed: int) -> float | None:
    """-ln of the hash mapped into (0, 1]; None if that is not positive."""
    found = -math.log((float(hashed) + 1.0) / _TWO_64)
    return found if 0.0 < found < math.inf else None
