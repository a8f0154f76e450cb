"""TLS settings of tunnels: identity of the server, trust anchors of the client, server name (SNI).

raw-quic uses no ALPN; the system's root certificates are never trusted. See docs/protocol.md, "TLS".
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Final

DEFAULT_SERVER_NAME: Final = "stargate"
"""The server name used when the address is an IP literal or `localhost`."""

_CRYPTO_ERROR: Final = 0x100
_CERTIFICATE_ALERTS: Final = frozenset((41, 42, 43, 44, 45, 46, 48))
"""From no_certificate to certificate_unknown, and unknown_ca (RFC 8446 section 6)."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The TLS identity of a listening endpoint: certificate chain, leaf first, and its private key, both PEM."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a dialling endpoint verifies the server: the certificates of `trust_pem` are the only trust anchors.

    `insecure` accepts any certificate; without it `trust_pem` is required. Raises ValueError.
    """

    trust_pem: bytes | None
    server_name: str
    insecure: bool = False
    alpn: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if there is no trust anchor."""
        if not self.insecure and self.trust_pem is None:
            raise ValueError("a trust bundle is required unless certificates are not checked")
        if self.trust_pem is not None and b"-----BEGIN CERTIFICATE-----" not in self.trust_pem:
            raise ValueError("TLS trust bundle contains no certificates")


def is_certificate_error(error_code: int | None) -> bool:
    """Whether this code of a QUIC CONNECTION_CLOSE is a TLS alert about a certificate (RFC 9001 section 4.8)."""
    return error_code is not None and error_code - _CRYPTO_ERROR in _CERTIFICATE_ALERTS


def host_of(address: str) -> str:
    """The host part of `host:port`, `[v6]:port` or a bare host."""
    if address.startswith("[") and "]" in address:
        return address[1 : address.index("]")]
    return address.rpartition(":")[0] if ":" in address else address


def server_name_for(dial: str, target: str) -> str:
    """The server name (SNI) for a dial address and the routing target it belongs to (both `host:port`).

    It is the host of the target if the two differ, else the host of the dial address; IP literals and `localhost` become `stargate`.
    """
    host = host_of(target if target != dial else dial)
    if not host or host == "localhost":
        return DEFAULT_SERVER_NAME
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return DEFAULT_SERVER_NAME
