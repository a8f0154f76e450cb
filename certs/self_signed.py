"""Make a self-signed identity: ECDSA P-256, given SANs, not a CA (else the leaf could not be its own trust anchor)."""

import datetime as dt
import ipaddress
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs.identity import Identity

COMMON_NAME = "llm-request-router self-signed"
_BEGINNING = dt.datetime(1975, 1, 1, tzinfo=dt.UTC)
_END = dt.datetime(4096, 1, 1, tzinfo=dt.UTC)


def make_self_signed(
    dns_names: Iterable[str] = ("localhost", "stargate"),
    ip_addresses: Iterable[str] = (),
    *,
    days: int | None = None,
    now: dt.datetime | None = None,
) -> Identity:
    """A new key and its certificate for these names.

    It is valid for `days` days from `now` (default: the current time), without `days` practically without end. Raises
    `ValueError` for an invalid name or address, or if none is given.
    """
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ip_addresses]
    if not names:
        message = "a certificate needs at least one DNS name or IP address"
        raise ValueError(message)
    key = ec.generate_private_key(ec.SECP256R1())
    start, end = _BEGINNING, _END
    if days is not None:
        start = now or dt.datetime.now(dt.UTC)
        end = start + dt.timedelta(days=days)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, COMMON_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
