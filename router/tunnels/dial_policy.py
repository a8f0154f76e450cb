"""Which addresses the router dials, and how often: a registration must not make it send datagrams to an uninvolved host.

Addresses at which no inference server can be are refused, and the pauses after failed dials grow. Pure: the caller gives
the clock and the random numbers. Source: docs/control-plane.md, "Dialling".
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

from router.ports.tunnels import TunnelError
from router.tunnels.addresses import DialTarget
from tunnel_protocol.limit import Limit

FAILED_DIALS: Final = Limit("tunnels.failed_dials_remembered", pieces=4_096)
"""Targets whose last dial failed that are remembered; one more removes the oldest."""

DIALS_TO_TARGET: Final = Limit("tunnels.dials_to_one_target", pieces=2)
"""Concurrent dials of one address and port."""

DIALS_TO_HOST: Final = Limit("tunnels.dials_to_one_host", pieces=32)
"""Concurrent dials of one address, over all ports."""

DIALS: Final = Limit("tunnels.dials", pieces=512)
"""Concurrent dials of all addresses."""

_Key = TypeVar("_Key")

FREE_FAILURES: Final = 1
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
JITTER: Final = 0.25
"""Each pause is extended by a random share of up to this much, so that workers lost together are not redialled together."""


def check_dialled_address(target: DialTarget, *, is_ours: Callable[[str, int], bool]) -> None:
    """Raise `TunnelError` unless an inference server can be at `target`.

    `is_ours` returns whether an address and port is a UDP socket of this router itself.
    """
    address = _meant(ipaddress.ip_address(target.ip))
    why = None
    if not target.port:
        why = "port 0"
    elif address.is_unspecified or (address.version == 4 and address in _THIS_NETWORK):
        why = "unspecified address"
    elif address.is_multicast:
        why = "multicast address"
    elif address.is_link_local:
        why = "link-local address"
    elif address.version == 4 and (address == _BROADCAST or address in _RESERVED):
        why = "broadcast or reserved address"
    elif is_ours(str(address), target.port):
        why = "a socket of this router"
    if why is not None:
        raise TunnelError(f"inference server at {target.ip} port {target.port} is not dialled: {why}")


def _meant(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address embedded in `address` (RFC 4291 section 2.5.5, RFC 6052, RFC 3056), else `address` itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inside = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return inside
    if address in _IPV4_COMPATIBLE and inside not in _THIS_NETWORK:  # `::` and `::1` are not IPv4-compatible addresses
        return inside
    return address.sixtofour or address


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
_RESERVED: Final = ipaddress.IPv4Network("240.0.0.0/4")
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


@dataclass(slots=True)
class _Failures:
    count: int
    not_before: float


class DialPolicy:
    """Counts concurrent dials, and failures per target."""

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        self._clock = clock
        self._random = random
        self._failures: OrderedDict[tuple[str, int], _Failures] = OrderedDict()
        self._to_target: dict[tuple[str, int], int] = {}
        self._to_host: dict[str, int] = {}
        self._under_way = 0

    def begin(self, target: DialTarget) -> None:
        """A dial begins; `end` has to follow. Raises `TunnelError` if it is not allowed now."""
        key = target.ip, target.port
        known = self._failures.get(key)
        if known is not None and self._clock() < known.not_before:
            raise TunnelError(
                f"the last {known.count} dials of {target.ip} port {target.port} failed; "
                f"the next one is due in {known.not_before - self._clock():.1f} s"
            )
        to_target, to_host = self._to_target.get(key, 0), self._to_host.get(target.ip, 0)
        if to_target >= (DIALS_TO_TARGET.pieces or 0):
            raise TunnelError(f"{to_target} dials of {target.ip} port {target.port} are under way")
        if to_host >= (DIALS_TO_HOST.pieces or 0):
            raise TunnelError(f"{to_host} dials of {target.ip} are under way")
        if self._under_way >= (DIALS.pieces or 0):
            raise TunnelError(f"{self._under_way} dials are under way")
        self._to_target[key] = to_target + 1
        self._to_host[target.ip] = to_host + 1
        self._under_way += 1

    def end(self, target: DialTarget, *, failed: bool) -> None:
        """A dial has ended; after a failure the target's next pause is longer."""
        key = target.ip, target.port
        self._under_way -= 1
        _count_down(self._to_target, key)
        _count_down(self._to_host, target.ip)
        known = self._failures.pop(key, None)
        if not failed:
            return
        count = 1 if known is None else known.count + 1
        pause_s = 0.0
        if count > FREE_FAILURES:
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(count - FREE_FAILURES - 1, 10))
            pause_s *= 1 + JITTER * self._random.random()
        self._failures[key] = _Failures(count, self._clock() + pause_s)
        if len(self._failures) > (FAILED_DIALS.pieces or 0):
            self._failures.popitem(last=False)


def _count_down(counts: dict[_Key, int], key: _Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
