"""First datagrams that wait for their turn: a handshake costs a millisecond or two of the event loop, and there may be a thousand."""

from typing import NamedTuple

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.admission import Admitted
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.sources import SourceQueue

WAITING = Limit("quic.first_packets", pieces=512)
"""Clients whose first datagram waits."""

PER_CLIENT = Limit("quic.first_packets_per_client", pieces=4)
"""Datagrams of one client that wait: a long ClientHello takes two or three."""

ACCEPTS_PER_TURN = 8
"""Handshakes that begin in one turn of the event loop; requests under way get theirs in between."""


class FirstPackets(NamedTuple):
    """What one client has sent so far."""

    datagrams: list[bytes]
    address: Address
    admitted: Admitted


class FirstPacketQueue:
    """In order of arrival; when it is full, the oldest of the address that has most of them is dropped."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, FirstPackets] = {}
        self._sources: SourceQueue[bytes] = SourceQueue()
        self.dropped = 0
        """Clients whose datagrams were dropped; they send them again."""

    def __len__(self) -> int:
        """How many clients wait."""
        return len(self._waiting)

    def add(self, connection_id: bytes, data: bytes, address: Address, admitted: Admitted) -> None:
        """One more datagram for this destination id."""
        first = self._waiting.get(connection_id)
        if first is not None:
            if first.address == address and len(first.datagrams) < (PER_CLIENT.pieces or 0):
                first.datagrams.append(data)
            return
        oldest = self._sources.most_expendable() if len(self._waiting) >= (WAITING.pieces or 0) else None
        if oldest is not None:
            self.dropped += 1
            self._remove(oldest)
        self._waiting[connection_id] = FirstPackets([data], address, admitted)
        self._sources.add(connection_id, admitted.source)

    def take(self) -> FirstPackets | None:
        """The one that has waited longest; None if nobody waits."""
        connection_id = next(iter(self._waiting), None)
        return None if connection_id is None else self._remove(connection_id)

    def _remove(self, connection_id: bytes) -> FirstPackets:
        self._sources.discard(connection_id)
        return self._waiting.pop(connection_id)
