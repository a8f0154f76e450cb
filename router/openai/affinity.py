"""Cache affinity keys: requests with the same key are routed to the cluster that has their prefix in its cache.

A key is a digest that also covers the API key's id, the routing key and the model, so that no caller can name another one's.
"""

import hashlib
import re
from typing import Final

from router.openai.ports import Affinity, Caller
from tunnel_protocol.limit import Limit

SCOPES: Final = Limit("openai.affinity_scopes", pieces=10_000)
"""Callers and targets whose part of a key is kept ready; beyond that all are made anew."""

_MAX_SCOPES: Final = SCOPES.pieces or 0
_LENGTH_BYTES: Final = 8
_sha256: Final = hashlib.sha256

MAX_SESSION_BYTES: Final = 256
"""Longest session id."""

_GATEWAY_KEY: Final = re.compile(r"mt:v1:[^:]+:[0-9a-f]{64}")


def session_fault(session: str) -> str | None:
    """Why `session` cannot be a session id; None if it can. The texts are those of the gateway."""
    if len(session.encode("utf-8", "surrogatepass")) > MAX_SESSION_BYTES:
        return f"must be at most {MAX_SESSION_BYTES} bytes"
    if any(character < " " or character == "\x7f" for character in session):
        return "must not contain control characters"
    return None


class ScopedAffinity(Affinity):
    """Affinity keys of the mode `openai`."""

    def __init__(self) -> None:
        self._scopes: dict[tuple[str, str | None, str], bytes] = {}
        """What the digest covers first, by key id, routing key and model."""

    def __len__(self) -> int:
        return len(self._scopes)

    def session_fault(self, session: str) -> str | None:
        """See `Affinity.session_fault`."""
        return session_fault(session)

    def of_session(
        self,
        caller: Caller,
        routing_key: str | None,
        model: str,
        session: str,
        *,
        from_header: bool = False,  # noqa: ARG002 (the port)
    ) -> str:
        """See `Affinity.of_session`."""
        return "lrr:v1:session:" + self._digest(caller.key_id, routing_key, model, (_bytes(session),))

    def of_prefix(self, caller: Caller, routing_key: str | None, model: str, parts: tuple[bytes, ...]) -> str | None:
        """See `Affinity.of_prefix`."""
        return "lrr:v1:prefix:" + self._digest(caller.key_id, routing_key, model, parts) if parts else None

    def _digest(self, key_id: str, routing_key: str | None, model: str, parts: tuple[bytes, ...]) -> str:
        wanted = (key_id, routing_key, model)
        scope = self._scopes.get(wanted)
        if scope is None:
            if len(self._scopes) >= _MAX_SCOPES:
                self._scopes.clear()
            scope = self._scopes[wanted] = _measured((_bytes(key_id), _bytes(routing_key or ""), _bytes(model)))
        return _sha256(scope + _measured(parts)).hexdigest()


class GatewayAffinity(Affinity):
    """Affinity keys of the mode `gateway`, to the byte: they cover the session or the payload only."""

    def session_fault(self, session: str) -> str | None:
        """See `Affinity.session_fault`."""
        return session_fault(session)

    def of_session(
        self,
        caller: Caller,  # noqa: ARG002 (the port)
        routing_key: str | None,  # noqa: ARG002
        model: str,  # noqa: ARG002
        session: str,
        *,
        from_header: bool = False,
    ) -> str:
        """See `Affinity.of_session`."""
        if from_header and _GATEWAY_KEY.fullmatch(session):
            return session
        return f"mt:v1:session:{hashlib.sha256(_bytes(session)).hexdigest()}"

    def of_prefix(
        self,
        caller: Caller,  # noqa: ARG002 (the port)
        routing_key: str | None,  # noqa: ARG002
        model: str,  # noqa: ARG002
        parts: tuple[bytes, ...],
    ) -> str | None:
        """See `Affinity.of_prefix`; here the only part is the compact JSON of all messages, or of the input."""
        return f"mt:v1:payload:{hashlib.sha256(b''.join(parts)).hexdigest()}" if parts else None


def _bytes(text: str) -> bytes:
    return text.encode() if text.isascii() else text.encode("utf-8", "surrogatepass")


def _measured(parts: tuple[bytes, ...]) -> bytes:
    """The parts, each with its length, so that no two sequences of parts have the same bytes."""
    pieces: list[bytes] = []
    for part in parts:
        pieces.append(len(part).to_bytes(_LENGTH_BYTES, "big"))
        pieces.append(part)
    return b"".join(pieces)
