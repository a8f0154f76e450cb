"""Sources of clients by address and prefix, and which client to evict when a limit is reached.

An attacker controls one address or one network more easily than many, so limits and evictions count by source (RFC 9000
section 21.1 leaves the policy to the endpoint).
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Generic, NamedTuple, TypeVar

_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)."""

_UNREADABLE: Final = b""


class Source(NamedTuple):
    """The sender of a datagram, at the granularity of one host and of one site."""

    address: bytes
    """An IPv4 address, or the /64 prefix of an IPv6 address: one host."""

    prefix: bytes
    """The /24 prefix of an IPv4 address, or the /48 prefix of an IPv6 address: one site."""


def source_of(host: str) -> Source:
    """The source of a numeric host address; IPv4-mapped IPv6 addresses count as IPv4."""
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
    """Members in order of arrival, with counts per address and prefix; keeps no state of removed members."""

    def __init__(self) -> None:
        self._members: dict[T, Source] = {}
        self._by_address: dict[bytes, dict[T, int]] = {}
        """Members of each address with their sequence numbers, in order of arrival."""
        self._arrivals = 0
        self._by_prefix: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Number of members."""
        return len(self._members)

    def __contains__(self, member: object) -> bool:
        """Whether `member` is in the queue."""
        return member in self._members

    def __iter__(self) -> Iterator[T]:
        """All members in order of arrival."""
        return iter(self._members)

    @property
    def sources(self) -> int:
        """Number of different addresses of members."""
        return len(self._by_address)

    def at_address(self, source: Source) -> int:
        """Number of members with this address."""
        return len(self._by_address.get(source.address, ()))

    def oldest_at_address(self, source: Source) -> T | None:
        """The oldest member with this address; None if there is none."""
        return next(iter(self._by_address.get(source.address, ())), None)

    def at_prefix(self, source: Source) -> int:
        """Number of members with this prefix."""
        return self._by_prefix.get(source.prefix, 0)

    def source(self, member: T) -> Source:
        """The source of `member`. Raises KeyError if it is not in the queue."""
        return self._members[member]

    def add(self, member: T, source: Source) -> None:
        """Add `member`, which must not be in the queue."""
        self._members[member] = source
        self._by_address.setdefault(source.address, {})[member] = self._arrivals
        self._arrivals += 1
        self._by_prefix[source.prefix] = self._by_prefix.get(source.prefix, 0) + 1

    def discard(self, member: T) -> bool:
        """Remove `member`; False if it was not in the queue."""
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
        """The oldest member of the address with the most members; among equal addresses the oldest of all. None if empty.

        Takes time in proportion to the number of addresses; call it only when a limit is reached.
        """
        found: T | None = None
        most, oldest = 0, 0
        for members in self._by_address.values():
            if len(members) >= most:
                first = next(iter(members))
                if len(members) > most or members[first] < oldest:
                    found, most, oldest = first, len(members), members[first]
        return found
