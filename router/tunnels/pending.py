"""The connections that are not tunnels yet, and which of them is closed when there are too many.

A worker sends its id within a round trip after its QUIC handshake. Connections that send nothing cost an attacker little and
hold state here: so a new connection is always added, and the oldest one of the address with the most is closed.
"""

from typing import Final, Generic, TypeVar

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.sources import SourceQueue, source_of

PER_SERVER_ID: Final = Limit("tunnels.pending_handshakes_per_server_id", pieces=8)
"""Connections that claim the same id and are being decided."""

T = TypeVar("T")


class PendingHandshakes(Generic[T]):
    """Connections are first anonymous, then have a server id. Each method that adds one returns the one to close for it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._anonymous: SourceQueue[T] = SourceQueue()
        self._identified: SourceQueue[T] = SourceQueue()
        self._by_id: dict[str, SourceQueue[T]] = {}
        self._ids: dict[T, str] = {}

    def __len__(self) -> int:
        """Number of pending connections."""
        return len(self._anonymous) + len(self._identified)

    def __contains__(self, member: object) -> bool:
        """Whether this connection is pending."""
        return member in self._anonymous or member in self._identified

    def add(self, member: T, host: str) -> T | None:
        """Add a connection whose QUIC handshake is complete. Returns the one to close, which is removed, or None."""
        gone = self._anonymous.most_expendable() if len(self._anonymous) >= self._limit else None
        if gone is not None:
            self._anonymous.discard(gone)
        self._anonymous.add(member, source_of(host))
        return gone

    def identified(self, member: T, host: str, server_id: str) -> T | None:
        """`member` has sent its id; it no longer counts as anonymous. Returns the one to close, which is removed, or None."""
        if not self._anonymous.discard(member):
            return None
        same = self._by_id.get(server_id)
        gone: T | None = None
        if same is not None and len(same) >= (PER_SERVER_ID.pieces or 0):
            gone = same.most_expendable()
        elif len(self._identified) >= self._limit:
            gone = self._identified.most_expendable()
        if gone is not None:
            self.discard(gone)
        source = source_of(host)
        self._identified.add(member, source)
        self._by_id.setdefault(server_id, SourceQueue()).add(member, source)
        self._ids[member] = server_id
        return gone

    def discard(self, member: T) -> None:
        """Remove `member`: it is decided, or has closed."""
        if self._anonymous.discard(member) or not self._identified.discard(member):
            return
        server_id = self._ids.pop(member)
        same = self._by_id[server_id]
        same.discard(member)
        if not same:
            del self._by_id[server_id]
