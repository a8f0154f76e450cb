"""Decides about a datagram that belongs to no connection: send a short answer, start a connection, or drop it.

No I/O, and no state per client except for the half-open handshakes:

- While few handshakes are half open, a client's first packet is accepted without address validation, which saves a round trip.
- Above the limits below (in total, per prefix, per address, per second) a client must first prove its address (Retry,
  RFC 9000 section 8.1.2).
- When the maximum number of handshakes is half open, one is evicted for a new client that has proved its address: one of a
  client without proof if there is one, else the oldest of the address with the most half-open handshakes.

An answer is never longer than three times the datagram it answers (RFC 9000 section 8.1).
"""

from typing import Final, Generic, NamedTuple, TypeVar

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.address_validation import (
    AddressValidation,
    InitialHeader,
    StatelessResets,
    is_retry_token,
)
from tunnel_protocol.quic.engine import Address, EngineFactory
from tunnel_protocol.quic.sources import Source, SourceQueue, source_of

UNPROVED: Final = Limit("quic.half_open_unproved", pieces=64)
"""Half-open handshakes of clients that have not proved their address."""

UNPROVED_PER_PREFIX: Final = Limit("quic.half_open_unproved_per_prefix", pieces=32)
"""Half-open handshakes of clients that have not proved their address, per IPv4 /24 or IPv6 /48."""

UNPROVED_PER_ADDRESS: Final = Limit("quic.half_open_unproved_per_address", pieces=8)
"""Half-open handshakes of clients that have not proved their address, per IPv4 address or IPv6 /64."""

UNPROVED_PER_SECOND: Final = Limit("quic.handshakes_unproved_per_second", pieces=100)
"""Handshakes started per second without proof of address, including those that fail at the first packet."""

REFUSALS: Final = Limit("quic.refusals_per_second", pieces=200)
"""CONNECTION_REFUSED and INVALID_TOKEN answers per second; each costs the derivation of Initial keys."""

ANSWERS: Final = Limit("quic.stateless_answers_per_second", pieces=2_000)
"""Version Negotiation packets and stateless resets per second."""

SETTLED_S: Final = 2.0
"""Seconds. A half-open handshake younger than this is not evicted: the client's answer may still be in the socket buffer."""

CONNECTION_REFUSED: Final = 0x02
INVALID_TOKEN: Final = 0x0B

_AMPLIFICATION: Final = 3
"""Bytes that may be sent to an unproved address for each byte that came from it (RFC 9000 section 8.1)."""


class Budget:
    """A token bucket: `per_second` events per second, and as many at once after one second without any."""

    def __init__(self, per_second: int) -> None:
        self._per_second = float(per_second)
        self._left = float(per_second)
        self._at = 0.0

    def spend(self, now: float) -> bool:
        """Take one token at time `now` (seconds); False if the bucket is empty."""
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
        """Handshakes of clients that have not proved their address."""
        self.proved: SourceQueue[T] = SourceQueue()
        """Handshakes of clients that have proved their address."""
        self._since: dict[T, float] = {}

    def __len__(self) -> int:
        """Number of half-open handshakes."""
        return len(self._since)

    def __contains__(self, member: object) -> bool:
        """Whether the handshake `member` is half open."""
        return member in self._since

    def must_prove(self, source: Source) -> bool:
        """Whether one more handshake from `source` without proof of its address would exceed a limit."""
        queue = self.unproved
        return (
            len(queue) >= self._unproved_limit
            or len(self) >= self._limit
            or queue.at_address(source) >= (UNPROVED_PER_ADDRESS.pieces or 0)
            or queue.at_prefix(source) >= (UNPROVED_PER_PREFIX.pieces or 0)
        )

    def add(self, member: T, source: Source, *, proved: bool, now: float) -> None:
        """Add a handshake that started at `now` (seconds)."""
        (self.proved if proved else self.unproved).add(member, source)
        self._since[member] = now

    def discard(self, member: T) -> bool:
        """Remove a handshake that is complete or has failed; False if it was not half open."""
        if self._since.pop(member, None) is None:
            return False
        if not self.unproved.discard(member):
            self.proved.discard(member)
        return True

    @property
    def full(self) -> bool:
        """Whether a handshake must be evicted before another one may start."""
        return len(self) >= self._limit

    def makes_way(self, source: Source, now: float) -> T | None:
        """The handshake to evict for a client at `source` that has proved its address; None if all are too recent to evict.

        The minimum age `SETTLED_S` does not protect an address with more than twice as many half-open handshakes as `source`.
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
    """Destination id of the client's first packet, before the Retry; None if the client has not proved its address."""


class Admission(Generic[T]):
    """Decides about datagrams of unknown connections."""

    def __init__(self, factory: EngineFactory, max_half_open: int) -> None:
        self.half_open: HalfOpen[T] = HalfOpen(max_half_open)
        self.retries = 0
        """Number of Retry packets made."""
        self._factory = factory
        self._validation = AddressValidation()
        self._resets = StatelessResets(factory.reset_key)
        self._unproved = Budget(UNPROVED_PER_SECOND.pieces or 0)
        self._refusals = Budget(REFUSALS.pieces or 0)
        self._answers = Budget(ANSWERS.pieces or 0)

    def decide(self, data: bytes, address: Address, now: float, *, accepting: bool) -> Admitted | bytes | None:
        """`Admitted`: start a connection. Bytes: send this datagram to `address`. None: drop the datagram. `now` in seconds."""
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
                # A client does not accept a second Retry: close, so that it dials again (RFC 9000 section 8.1.2).
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
