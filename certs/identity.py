"""Load and check a certificate chain with its key, and trust bundles.

The checks protect a running listener from an unusable or partly written pair: sizes, PEM, key match, chain, validity period.
Files are read once, so the checked bytes are the served bytes. See docs/operations.md, "TLS".
"""

import datetime as dt
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import FileTooLargeError as SmallFileTooLargeError
from tunnel_protocol.small_file import SmallFileError, read_small_file

PEM = Limit("files.pem", bytes=1_048_576)
"""Size of a file with a certificate chain, key or trust bundle."""
_RSA_BITS = (2048, 8192)
"""Key types that the TLS libraries of workers accept."""
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH


class IdentityError(Exception):
    """A certificate and key, or a trust bundle, cannot be used. `reason` is the error, `detail` its cause (may be empty)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class FileTooLargeError(IdentityError):
    """A PEM file is larger than the limit `files.pem`."""


class Identity(NamedTuple):
    """A certificate chain (leaf first) and its private key, both PEM."""

    cert_pem: bytes
    key_pem: bytes


def load_identity(cert_path: str, key_path: str, now: dt.datetime) -> Identity:
    """Read both files once and `validate` them. Raises `IdentityError`."""
    identity = read_identity(cert_path, key_path)
    validate(identity, now)
    return identity


def read_identity(cert_path: str, key_path: str) -> Identity:
    """Read both files once, without checking their content. Raises `IdentityError`."""
    return Identity(read_pem(cert_path, "TLS certificate"), read_pem(key_path, "TLS private key"))


def parse_trust_bundle(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a trust bundle; each one is a trust anchor. Raises `IdentityError`."""
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise IdentityError("TLS trust bundle contains no certificates")
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise IdentityError("failed to parse cert PEM", str(error)) from error


def validate(identity: Identity, now: dt.datetime) -> None:
    """Check whether a listener can use the identity at time `now` (aware, UTC). Raises `IdentityError`."""
    chain = _chain(identity.cert_pem)
    _check_key(identity.key_pem, chain[0])
    if len(chain) > 1:
        _check_chain(chain, now)
    _check_dates(chain, now)


def check_dates(identity: Identity, now: dt.datetime) -> None:
    """Check only the validity period at `now` of an identity that was validated before. Raises `IdentityError`."""
    _check_dates(_chain(identity.cert_pem), now)


def _check_dates(chain: list[x509.Certificate], now: dt.datetime) -> None:
    start = max(certificate.not_valid_before_utc for certificate in chain)
    end = _end(chain)
    if now < start:
        raise IdentityError("TLS server certificate chain is not yet valid", f"valid from {start.isoformat()}")
    if now > end:
        raise IdentityError("TLS server certificate chain is expired", f"expired at {end.isoformat()}")


def not_after(identity: Identity) -> dt.datetime:
    """The earliest `notAfter` date in the chain (aware, UTC). Raises `IdentityError`."""
    return _end(_chain(identity.cert_pem))


def covers(identity: Identity, name: str) -> bool:
    """Whether the leaf has the DNS name `name`, exactly or by a wildcard for its first label (RFC 6125 section 6.4)."""
    try:
        extension = _chain(identity.cert_pem)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return False  # a client cannot match names that cannot be parsed either
    wanted = name.lower()
    wildcard = f"*.{wanted.partition('.')[2]}"
    return any(dns_name.lower() in (wanted, wildcard) for dns_name in extension.value.get_values_for_type(x509.DNSName))


def read_pem(path: str, what: str) -> bytes:
    """The bytes of a PEM file; `what` names it in errors. Blocks for as long as the file system. Raises `IdentityError`."""
    try:
        return read_small_file(path, PEM)
    except SmallFileTooLargeError as error:
        raise FileTooLargeError(f"{what} exceeds {error.limit_bytes} bytes") from error
    except SmallFileError as error:
        verb = "open" if error.error_number is not None else "read"
        raise IdentityError(f"failed to {verb} {what} file {path}", error.reason) from error


def _chain(pem: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise IdentityError("invalid TLS server identity", "no certificate found in TLS PEM")
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise IdentityError("invalid TLS server identity", f"failed to parse TLS certificate PEM: {error}") from error


def _end(chain: list[x509.Certificate]) -> dt.datetime:
    return min(certificate.not_valid_after_utc for certificate in chain)


def _check_key(pem: bytes, leaf: x509.Certificate) -> None:
    if b"PRIVATE KEY-----" not in pem:
        raise IdentityError("invalid TLS server identity", "no private key found in TLS PEM")
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        public = serialization.load_pem_private_key(pem, password=None).public_key()
        key = public.public_bytes(*form)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError("invalid TLS server identity", f"failed to parse TLS private key PEM: {error}") from error
    try:
        expected = leaf.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError("invalid TLS server identity", f"failed to parse TLS certificate PEM: {error}") from error
    if key != expected:
        raise IdentityError("invalid TLS server identity", "private key does not match the certificate")
    if isinstance(public, rsa.RSAPublicKey) and not _RSA_BITS[0] <= public.key_size <= _RSA_BITS[1]:
        raise IdentityError(
            "invalid TLS server identity",
            f"RSA key of {public.key_size} bits; {_RSA_BITS[0]} to {_RSA_BITS[1]} are usable",
        )


def _check_chain(chain: list[x509.Certificate], now: dt.datetime) -> None:
    # The last certificate of the file is the trust anchor. Names are not checked, because the client decides which name it
    # expects. Only the client verifier checks no names, so it is used here, and the extended key usage is checked separately.
    authority = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    leaf = (
        ExtensionPolicy.permit_all()
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_no_authority)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _serves)
    )
    builder = (
        PolicyBuilder().store(Store([chain[-1]])).time(now).extension_policies(ca_policy=authority, ee_policy=leaf)
    )
    try:
        builder.build_client_verifier().verify(chain[0], chain[1:-1])
    except (VerificationError, ValueError, x509.UnsupportedGeneralNameType, x509.DuplicateExtension) as error:
        end = _end(chain)
        detail = f"expired at {end.isoformat()}" if now > end else str(error)
        raise IdentityError("TLS server certificate chain validation failed", detail) from error


def _is_no_authority(_policy: object, _certificate: x509.Certificate, extension: x509.BasicConstraints | None) -> None:
    if extension is not None and extension.ca:
        message = "the first certificate is a certificate authority"
        raise ValueError(message)


def _serves(_policy: object, _certificate: x509.Certificate, extension: x509.ExtendedKeyUsage | None) -> None:
    if extension is not None and SERVER_AUTH not in extension:
        message = "the certificate is not for server authentication"
        raise ValueError(message)
