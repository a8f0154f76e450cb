"""Where strangers come from, and who has to go when there are too many of them.

An attacker has one address, or one network, more easily than many: bounds and evictions count by source (RFC 9000
section 21.1 leaves the policy to the endpoint).
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Generic, NamedTuple, TypeVar

_MAPPED = bytes(10) + b"\xff\xff"
"""What precedes an IPv4 address that was mapped into IPv6 (RFC 4291 section 2.5.5.2)."""

_UNREADABLE = b""


class Source(NamedTuple):
    """Who a datagram came from, as far as one party can be expected behind it."""

    address: bytes
    """An IPv4 address, or the /64 of an IPv6 address: what one host has."""

    prefix: bytes
    """The /24 of an IPv4 address, the /48 of an IPv6 address: what one site has."""


def source_of(host: str) -> Source:
    """The source a numeric host address belongs to; IPv4-mapped IPv6 addresses count as IPv4."""
    try:
        if ":" not in host:
            packed = IPv4Address(host).packed
            return Source(packed, packed[:3])
        packed = IPv6Address(host.partition("%")[0]).packed
    except ValueError:
        return Source(_UNREADABLE, _UNREADABLE)
    if packed.startswith(_MAPPED):
        return Source(packed[12:], packed[12:15])
    return Source(packed[:8], packed[:6])


T = TypeVar("T")


class SourceQueue(Generic[T]):
    """Members in order of arrival, and how many there are of each address and prefix; holds nothing of who has left."""

    def __init__(self) -> None:
        self._members: dict[T, Source] = {}
        self._by_address: dict[bytes, dict[T, int]] = {}
        """Members of an address, with their numbers in order of arrival."""
        self._arrivals = 0
        self._by_prefix: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._members)

    def __contains__(self, member: object) -> bool:
        """Whether `member` is here."""
        return member in self._members

    @property
    def sources(self) -> int:
        """How many different addresses members have."""
        return len(self._by_address)

    def at_address(self, source: Source) -> int:
        """How many members have this address."""
        return len(self._by_address.get(source.address, ()))

    def at_prefix(self, source: Source) -> int:
        """How many members have this prefix."""
        return self._by_prefix.get(source.prefix, 0)

    def source(self, member: T) -> Source:
        """Where this member comes from. Raises KeyError if it is not here."""
        return self._members[member]

    def add(self, member: T, source: Source) -> None:
        """A new member, which must not be here yet."""
        self._members[member] = source
        self._by_address.setdefault(source.address, {})[member] = self._arrivals
        self._arrivals += 1
        self._by_prefix[source.prefix] = self._by_prefix.get(source.prefix, 0) + 1

    def discard(self, member: T) -> bool:
        """The member leaves; False if it was not here."""
        source = self._members.pop(member, None)
        if source is None:
            return False
        siblings = self._by_address[source.address]
        del siblings[member]
        if not siblings:
            del self._by_address[source.address]
        left = self._by_prefix[source.prefix] - 1
        if left:
            self._by_prefix[source.prefix] = left
        else:
            del self._by_prefix[source.prefix]
        return True

    def most_expendable(self) -> T | None:
        """The oldest member of the address that has most of them; among equal addresses the oldest of all.

        One look at every address: meant for the moment at which a bound is reached.
        """
        found: T | None = None
        most, oldest = 0, 0
        for members in self._by_address.values():
            if len(members) >= most:
                first = next(iter(members))
                if len(members) > most or members[first] < oldest:
                    found, most, oldest = first, len(members), members[first]
        return found
