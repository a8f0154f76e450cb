"""TLS of tunnels: what a server shows, what a client trusts, and which server name is asked for.

raw-quic uses no ALPN at all; system roots are never trusted. See docs/protocol.md, "TLS".
"""

import ipaddress
from dataclasses import dataclass, field

DEFAULT_SERVER_NAME = "stargate"
"""The name asked for where the address gives none that a certificate could carry."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The identity an endpoint serves: a chain, leaf first, and its key, both in PEM."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a dialler checks: every certificate of `trust_pem` is an anchor, and nothing else is.

    `insecure` accepts any certificate; without it `trust_pem` is required (ValueError).
    """

    trust_pem: bytes | None
    server_name: str
    insecure: bool = False
    alpn: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if there is nothing to trust."""
        if not self.insecure and self.trust_pem is None:
            raise ValueError("a trust bundle is required unless certificates are not checked")
        if self.trust_pem is not None and b"-----BEGIN CERTIFICATE-----" not in self.trust_pem:
            raise ValueError("TLS trust bundle contains no certificates")


def host_of(address: str) -> str:
    """The host part of `host:port`, `[v6]:port` or a bare host."""
    if address.startswith("[") and "]" in address:
        return address[1 : address.index("]")]
    return address.rpartition(":")[0] if ":" in address else address


def server_name_for(dial: str, target: str) -> str:
    """The server name for a dial address and the routing target it stands for (both `host:port`).

    The target decides when the two differ; IP literals and `localhost` become `stargate`.
    """
    host = host_of(target if target != dial else dial)
    if not host or host == "localhost":
        return DEFAULT_SERVER_NAME
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return DEFAULT_SERVER_NAME
