"""Which certificates of routers the worker accepts on gRPC connections with TLS."""

import ssl
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from certs import IdentityError, parse_trust_bundle
from certs.identity import read_pem

_CERTIFICATE = (
    b"-----BEGIN CERTIFICATE-----",
    b"-----BEGIN X509 CERTIFICATE-----",
    b"-----BEGIN TRUSTED CERTIFICATE-----",
)


class TrustError(Exception):
    """The file with trusted certificates cannot be used; the message names the option, the file and the reason."""


def grpc_trust(path: Path | None, option: str) -> ssl.SSLContext:
    """The TLS client settings: the roots of the system, and in addition all certificates of the file at `path`.

    `option` names the command line option in errors. Blocks for as long as the file system. Raises `TrustError`.
    """
    context = ssl.create_default_context()
    # As in rustls and BoringSSL: a certificate of the bundle is trusted whether or not it is self-signed or an authority, and
    # certificates without the optional identifiers that VERIFY_X509_STRICT (the default from Python 3.13 on) wants are accepted.
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])
    if path is not None:
        try:
            context.load_verify_locations(cadata=_bundle(str(path)))
        except (IdentityError, ssl.SSLError, OSError) as error:
            raise TrustError(f"{option}: {path} cannot be used: {error}") from error
    return context


def _bundle(path: str) -> bytes:
    """All certificates of the file as DER. One that would be left out is an error: it would be missed only later."""
    pem = read_pem(path, "trust bundle")
    certificates = parse_trust_bundle(pem)
    if len(certificates) != sum(pem.count(begin) for begin in _CERTIFICATE):
        raise IdentityError("a certificate of the trust bundle is malformed or of an unknown form")
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)
