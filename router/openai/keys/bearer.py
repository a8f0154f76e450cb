"""The key in the head of a request: `Authorization: Bearer KEY` (RFC 6750 section 2.1), else `x-api-key` or `api-key`."""

from typing import Final

from tunnel_protocol.limit import Limit

PRESENTED_KEY: Final = Limit("openai.presented_key", bytes=4_096)
"""Longest key that is looked at: a token of NVCF may be a JWT."""

_MOST_BYTES: Final = PRESENTED_KEY.bytes or 0
_USUAL: Final = b"Bearer "
_SCHEME: Final = b"bearer"
_BLANKS: Final = b" \t"


def presented_key(authorization: bytes | None, api_key: bytes | None) -> bytes | None:
    """The key that a request presents; None if it presents none, another scheme or one that is too long.

    The scheme is compared without case, and blanks around the key are ignored. `api_key` counts only without `authorization`.
    """
    if authorization is None:
        found = b"" if api_key is None else api_key.strip(_BLANKS)
    elif authorization.startswith(_USUAL):
        found = authorization[len(_USUAL) :].strip(_BLANKS)
    else:
        scheme, found = authorization[: len(_SCHEME)], authorization[len(_SCHEME) :]
        if scheme.lower() != _SCHEME or found[:1] not in (b" ", b"\t"):
            return None
        found = found.strip(_BLANKS)
    return found if 0 < len(found) <= _MOST_BYTES else None
