"""What becomes of a datagram that belongs to no connection: an answer of a few bytes, a new connection, or nothing.

No I/O and no state per stranger beyond the half-open handshakes themselves:

- As long as few handshakes are half open, a client's first packet is taken as it is, which saves a round trip.
- Under pressure, from one address or from many, the client must first prove its address (Retry, RFC 9000 section 8.1.2).
- When all half-open handshakes that may be held are held, one of them makes way for a newcomer that has proved its address:
  one without proof if there is one, else the oldest of the most frequent address.

Nothing that is sent from here is longer than three times what it answers (RFC 9000 section 8.1).
"""

from typing import Generic, NamedTuple, TypeVar

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.address_validation import (
    AddressValidation,
    InitialHeader,
    StatelessResets,
    is_retry_token,
)
from tunnel_protocol.quic.engine import Address, EngineFactory
from tunnel_protocol.quic.sources import Source, SourceQueue, source_of

UNPROVED = Limit("quic.half_open_unproved", pieces=64)
"""Half-open handshakes of clients that have not proved their address."""

UNPROVED_PER_PREFIX = Limit("quic.half_open_unproved_per_prefix", pieces=32)
"""... of one IPv4 /24 or IPv6 /48."""

UNPROVED_PER_ADDRESS = Limit("quic.half_open_unproved_per_address", pieces=8)
"""... of one IPv4 address or IPv6 /64."""

UNPROVED_PER_SECOND = Limit("quic.handshakes_unproved_per_second", pieces=100)
"""Handshakes begun without proof, those among them that fail with the first packet."""

REFUSALS = Limit("quic.refusals_per_second", pieces=200)
"""CONNECTION_REFUSED and INVALID_TOKEN, which cost the keys of an Initial packet each."""

ANSWERS = Limit("quic.stateless_answers_per_second", pieces=2_000)
"""Version negotiations and stateless resets."""

SETTLED_S = 2.0
"""A half-open handshake younger than this does not make way: what its client answered may lie in the socket still."""

CONNECTION_REFUSED = 0x02
INVALID_TOKEN = 0x0B

_AMPLIFICATION = 3
"""Bytes that may be sent to an unproved address for each byte that came from it (RFC 9000 section 8.1)."""


class Budget:
    """So many in a second, and so many at once after a second of rest (a token bucket)."""

    def __init__(self, per_second: int) -> None:
        self._per_second = float(per_second)
        self._left = float(per_second)
        self._at = 0.0

    def spend(self, now: float) -> bool:
        """Take one; False if there is none."""
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


T = TypeVar("T")


class HalfOpen(Generic[T]):
    """The incoming handshakes that are not complete."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unproved_limit = min(UNPROVED.pieces or 0, max(1, limit // 2))
        self.unproved: SourceQueue[T] = SourceQueue()
        """Those of clients that have not proved their address."""
        self.proved: SourceQueue[T] = SourceQueue()
        """Those of clients that have."""
        self._since: dict[T, float] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._since)

    def __contains__(self, member: object) -> bool:
        """Whether this one is half open."""
        return member in self._since

    def must_prove(self, source: Source) -> bool:
        """Whether one more without proof, from this source, would be too many."""
        queue = self.unproved
        return (
            len(queue) >= self._unproved_limit
            or len(self) >= self._limit
            or queue.at_address(source) >= (UNPROVED_PER_ADDRESS.pieces or 0)
            or queue.at_prefix(source) >= (UNPROVED_PER_PREFIX.pieces or 0)
        )

    def add(self, member: T, source: Source, *, proved: bool, now: float) -> None:
        """A handshake has begun."""
        (self.proved if proved else self.unproved).add(member, source)
        self._since[member] = now

    def discard(self, member: T) -> bool:
        """It is complete, or gone; False if it was not half open."""
        if self._since.pop(member, None) is None:
            return False
        if not self.unproved.discard(member):
            self.proved.discard(member)
        return True

    @property
    def full(self) -> bool:
        """Whether one has to go before another may begin."""
        return len(self) >= self._limit

    def makes_way(self, source: Source, now: float) -> T | None:
        """Which one has to go for a newcomer that has proved its address; None if all are too young to be judged.

        Age counts only among addresses that have about as many: one that has most of the places gives one up at once.
        """
        unproved = self.unproved.most_expendable()
        if unproved is not None:
            return unproved
        proved = self.proved.most_expendable()
        if proved is None:
            return None
        most = self.proved.at_address(self.proved.source(proved))
        if now - self._since[proved] >= SETTLED_S or most > 2 * (self.proved.at_address(source) + 1):
            return proved
        return None


class Admitted(NamedTuple):
    """A first datagram that may become a connection."""

    source: Source
    original_cid: bytes | None
    """The destination id of the client's packet before the Retry it followed; None if its address is not proved."""


class Admission(Generic[T]):
    """Decides about datagrams of unknown connections."""

    def __init__(self, factory: EngineFactory, max_half_open: int) -> None:
        self.half_open: HalfOpen[T] = HalfOpen(max_half_open)
        self.retries = 0
        """Retry packets made so far."""
        self._factory = factory
        self._validation = AddressValidation()
        self._resets = StatelessResets(factory.reset_key)
        self._unproved = Budget(UNPROVED_PER_SECOND.pieces or 0)
        self._refusals = Budget(REFUSALS.pieces or 0)
        self._answers = Budget(ANSWERS.pieces or 0)

    def decide(self, data: bytes, address: Address, now: float, *, accepting: bool) -> Admitted | bytes | None:
        """A connection to be made, a datagram to be sent to `address`, or None: to be ignored."""
        if not data[0] & 0x80:
            return self._reset(data, now)
        if not self._factory.starts_connection(data):
            answer = self._factory.answer_version(data)
            return answer if answer is not None and self._answers.spend(now) else None
        header = InitialHeader.parse(data)
        if header is None:
            return None
        if not accepting:
            return self._refuse(data, CONNECTION_REFUSED, now)
        source = source_of(address[0])
        if header.token:
            original_cid = self._validation.original_cid(header, address, now)
            if original_cid is not None:
                return Admitted(source, original_cid)
            if is_retry_token(header.token):
                # Its client follows no second Retry: tell it to start anew (RFC 9000 section 8.1.2).
                return self._refuse(data, INVALID_TOKEN, now)
        if self.half_open.must_prove(source) or not self._unproved.spend(now):
            self.retries += 1
            return self._validation.retry(header, address, now)
        return Admitted(source, None)

    def _refuse(self, data: bytes, error_code: int, now: float) -> bytes | None:
        if not self._refusals.spend(now):
            return None
        refusal = self._factory.refuse(data, error_code)
        return refusal if refusal is not None and len(refusal) <= _AMPLIFICATION * len(data) else None

    def _reset(self, data: bytes, now: float) -> bytes | None:
        packet = self._resets.packet(data)
        return packet if packet is not None and self._answers.spend(now) else None
