"""Refused certificates of routers: their kinds, and their log lines."""

import ssl
from enum import Enum

import structlog

from stargate_client.router_address import host_and_port
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.tls import is_certificate_error

_log = structlog.get_logger()

# Numbers of `X509_V_ERR_...` in OpenSSL's x509_vfy.h, which the `ssl` module passes on as they are.
_UNKNOWN_ISSUER = frozenset((2, 18, 19, 20, 21))
_NAME_MISMATCH = frozenset((62, 64))


class CertificateFailure(Enum):
    """Why the certificate of a router was refused; the value is the text for the log."""

    UNKNOWN_ISSUER = "the certificate is of an unknown issuer"
    NAME_MISMATCH = "the certificate is for another name"
    OTHER = "the certificate chain is not valid"


_CHAIN_ACTION = "check the validity period and the chain of the certificate, and the clock of this host"
_GRPC_ACTIONS = {
    CertificateFailure.UNKNOWN_ISSUER: "give the certificate of its authority with --grpc-tls-ca-cert-path",
    CertificateFailure.NAME_MISMATCH: "dial a name that the certificate has, or have it issued for this host too",
    CertificateFailure.OTHER: _CHAIN_ACTION,
}
_TUNNEL_ACTIONS = {
    CertificateFailure.UNKNOWN_ISSUER: "give the certificate of its authority with --tls-cert-path",
    CertificateFailure.NAME_MISMATCH: "have it issued for the host that the router advertises; `stargate` for an address",
    CertificateFailure.OTHER: _CHAIN_ACTION,
}


class Operation(Enum):
    """What a connection is for; the value is the text for the log."""

    WATCH = "watch routers"
    REGISTER = "register"
    TUNNEL = "tunnel"


class CertificateRefusedError(Exception):
    """The certificate of a router was refused; no request was sent."""

    def __init__(self, kind: CertificateFailure) -> None:
        super().__init__(kind.value)
        self.kind = kind


def failure_of(error: ssl.SSLCertVerificationError) -> CertificateFailure:
    """The kind of a failed verification."""
    code = getattr(error, "verify_code", 0)
    if code in _UNKNOWN_ISSUER:
        return CertificateFailure.UNKNOWN_ISSUER
    return CertificateFailure.NAME_MISMATCH if code in _NAME_MISMATCH else CertificateFailure.OTHER


def failure_of_tunnel(error: ConnectionClosedError) -> CertificateFailure | None:
    """The kind of a failed verification of a router by this worker; None if the connection ended for another reason."""
    if error.by_peer or not is_certificate_error(error.error_code):
        return None
    # The QUIC library has one alert for several kinds; its texts tell them apart (OpenSSL's, but for that of the name).
    if error.reason.startswith("hostname "):
        return CertificateFailure.NAME_MISMATCH
    if "issuer" in error.reason or "self-signed" in error.reason or "self signed" in error.reason:
        return CertificateFailure.UNKNOWN_ISSUER
    return CertificateFailure.OTHER


class CertificateFailures:
    """Logs the refused certificates of one address and operation: once until the kind changes or a certificate is accepted."""

    def __init__(self, operation: Operation, target: str) -> None:
        """`target` is `host:port`."""
        self._operation = operation
        self._target = target
        self._kind: CertificateFailure | None = None

    def refused(self, kind: CertificateFailure) -> None:
        """The certificate was refused. Fixed text only: what a peer sends or a user has in an address does not get into the log."""
        if kind is self._kind:
            return
        self._kind = kind
        host, port = host_and_port(self._target)
        _log.error(
            "certificate of a router refused; trying again",
            operation=self._operation.value,
            host=host,
            port=port,
            reason=kind.value,
            action=(_TUNNEL_ACTIONS if self._operation is Operation.TUNNEL else _GRPC_ACTIONS)[kind],
        )

    def accepted(self) -> None:
        """A connection was opened: the next refusal is logged whatever its kind."""
        self._kind = None
