"""A queue of clients' first datagrams: a handshake takes 1 to 2 ms of the event loop, and 1,000 clients may connect at once."""

from typing import Final, NamedTuple

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.admission import Admitted
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.sources import SourceQueue

WAITING: Final = Limit("quic.first_packets", pieces=512)
"""Clients whose first datagrams are queued."""

PER_CLIENT: Final = Limit("quic.first_packets_per_client", pieces=4)
"""Queued datagrams of one client: a long ClientHello takes two or three."""

ACCEPTS_PER_TURN: Final = 8
"""Handshakes started in one iteration of the event loop; running requests are served in between."""


class FirstPackets(NamedTuple):
    """The datagrams that one client has sent before its handshake was started."""

    datagrams: list[bytes]
    address: Address
    admitted: Admitted


class FirstPacketQueue:
    """Clients in order of arrival; a full queue drops the oldest client of the address with the most clients."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, FirstPackets] = {}
        self._sources: SourceQueue[bytes] = SourceQueue()
        self.dropped = 0
        """Number of clients whose datagrams were dropped; they retransmit."""

    def __len__(self) -> int:
        """Number of queued clients."""
        return len(self._waiting)

    def add(self, connection_id: bytes, data: bytes, address: Address, admitted: Admitted) -> None:
        """Queue a datagram for this destination id; dropped above the limit per client, or if the client's address differs."""
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
        """Remove and return the client that has waited longest; None if the queue is empty."""
        connection_id = next(iter(self._waiting), None)
        return None if connection_id is None else self._remove(connection_id)

    def _remove(self, connection_id: bytes) -> FirstPackets:
        self._sources.discard(connection_id)
        return self._waiting.pop(connection_id)
