"""The strings by which workers and routers find each other: `quic://` URLs, tunnel targets, dial addresses.

See docs/protocol.md, "Addresses".
"""

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

from router.registry.tunnel import TunnelError

DEFAULT_HOSTNAME_TEMPLATE = "{pod_name}.stargate.external"


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


def advertised_host(template: str | None, pod_name: str, namespace: str) -> str:
    """The host name of this router for workers: a template with `{pod_name}` and `{namespace}` filled in."""
    return (template or DEFAULT_HOSTNAME_TEMPLATE).replace("{pod_name}", pod_name).replace("{namespace}", namespace)


class ReverseAddresses(NamedTuple):
    """What every acknowledgement tells a reverse worker, unchanged for the life of the listener."""

    target: str
    """`host:port` naming this router; its host is the server name the worker asks for."""
    dial: str
    """`host:port` to send packets to."""


def reverse_addresses(host: str, port: int, dial_override: str | None) -> ReverseAddresses:
    """Target and dial address of a listener bound on `port`; a blank override means the target itself."""
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    target = f"{host}:{port}"
    return ReverseAddresses(target, (dial_override or "").strip() or target)
