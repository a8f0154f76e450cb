"""The connections that are not tunnels yet, and which of them makes way when there are too many.

A worker says who it is within a round trip of its QUIC handshake. Connections that stay silent cost their attacker little
and hold state here: a newcomer is never turned away for their sake, the oldest of the most frequent address goes instead.
"""

from typing import Generic, TypeVar

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.sources import SourceQueue, source_of

PER_SERVER_ID = Limit("tunnels.pending_handshakes_per_server_id", pieces=8)
"""Connections being decided that claim the same id."""

T = TypeVar("T")


class PendingHandshakes(Generic[T]):
    """Members first are anonymous, then have a server id; each method that adds tells who has to go for it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._anonymous: SourceQueue[T] = SourceQueue()
        self._identified: SourceQueue[T] = SourceQueue()
        self._by_id: dict[str, SourceQueue[T]] = {}
        self._ids: dict[T, str] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._anonymous) + len(self._identified)

    def __contains__(self, member: object) -> bool:
        """Whether this one is pending."""
        return member in self._anonymous or member in self._identified

    def add(self, member: T, host: str) -> T | None:
        """A connection whose QUIC handshake is complete. Returns who makes way, who is no member any more."""
        gone = self._anonymous.most_expendable() if len(self._anonymous) >= self._limit else None
        if gone is not None:
            self._anonymous.discard(gone)
        self._anonymous.add(member, source_of(host))
        return gone

    def identified(self, member: T, host: str, server_id: str) -> T | None:
        """A member has said who it is; it no longer competes with those that have not. Returns who makes way."""
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
        """The member is decided, or gone."""
        if self._anonymous.discard(member) or not self._identified.discard(member):
            return
        server_id = self._ids.pop(member)
        same = self._by_id[server_id]
        same.discard(member)
        if not same:
            del self._by_id[server_id]
