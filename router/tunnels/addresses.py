"""Where the router dials a direct inference server: the address in the URL it registered.

See docs/protocol.md, "Addresses".
"""

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

from router.ports.tunnels import TunnelError


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
    return DialTarget(str(address), port, address.version)
