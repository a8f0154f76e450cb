"""Where the router dials a direct inference server: the address in the URL it registered.

See docs/protocol.md, "Addresses".
"""

import ipaddress
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from router.registry.tunnel import TunnelError


class DialTarget(NamedTuple):
    """Where the router dials a direct inference server."""

    ip: str
    port: int
    version: int
    """4 or 6."""


def dial_target(url: str) -> DialTarget:
    """The address in a registered `quic://ip:port` URL; path and query are ignored. Raises `TunnelError`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TunnelError("invalid quic url") from error
    if parts.scheme != "quic":
        raise TunnelError("target url is not quic scheme")
    if port is None:
        raise TunnelError("missing port in quic url")
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError as error:
        raise TunnelError("quic inference_server_url host must be an IP address") from error
    if not port or not _is_one_host(address):
        raise TunnelError("quic inference_server_url is no address of one host")
    return DialTarget(str(address), port, address.version)


def _is_one_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """False for broadcast and other reserved IPv4 addresses, multicast, link-local, "this network" and unspecified ones."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_one_host(address.ipv4_mapped)
    elif address.is_reserved or address.packed[0] == 0:
        return False
    return not (address.is_multicast or address.is_link_local or address.is_unspecified)


def is_bound_to(bound: tuple[str, int], ip: str, port: int) -> bool:
    """Whether a datagram to `ip` and `port` reaches the socket of this host that is bound to `bound`."""
    if port != bound[1]:
        return False
    address, own = ipaddress.ip_address(ip), ipaddress.ip_address(bound[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not own.is_unspecified:
        return address == own
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
