"""Worker authentication: none, or by a fixed table. That by the gateway is in `gateway_auth`.

Registrations and reverse handshakes use the same authenticator. Source: docs/control-plane.md, "Worker authentication".
"""

import hashlib
from collections.abc import Mapping

from router.ports.authentication import AuthenticationError


def bearer_token(authorization: str | bytes | None) -> str | None:
    """The bearer token of an `authorization` value; None without one, for another scheme or for a non-ASCII value."""
    if not isinstance(authorization, str) or not authorization.isascii() or not authorization.startswith("Bearer "):
        return None
    return authorization.removeprefix("Bearer ")


class OpenAuthenticator:
    """Accepts every worker, unscoped, with any token or none."""

    async def routing_key(self, token: str | None) -> str | None:  # noqa: ARG002 (the port's signature)
        """Always None."""
        return None


class StaticAuthenticator:
    """Accepts workers whose token is in a table. For installations without a gateway, and for tests."""

    def __init__(self, routing_keys: Mapping[str, str | None]) -> None:
        """`routing_keys` maps tokens to routing keys (None or blank = unscoped)."""
        # Looked up by digest, so that the time of a comparison does not reveal how much of a token is right.
        self._routing_keys = {digest_of(b"", token): trimmed(key or "") for token, key in routing_keys.items()}

    async def routing_key(self, token: str | None) -> str | None:
        """The routing key of `token`. Raises `AuthenticationError`."""
        digest = digest_of(b"", token or "")
        if digest not in self._routing_keys:
            raise AuthenticationError("unknown worker token")
        return self._routing_keys[digest]


def trimmed(routing_key: str) -> str | None:
    """The routing key without white space around it; None if nothing is left."""
    return routing_key.strip() or None


def digest_of(salt: bytes, token: str) -> bytes:
    """What a token is remembered by."""
    return hashlib.blake2b(token.encode(), key=salt, digest_size=32).digest()
