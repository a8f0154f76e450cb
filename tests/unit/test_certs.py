"""TLS identities: what is made, what is accepted, what is refused and in which words."""

import datetime as dt
import pathlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import certs
from certs.__main__ import main

NOW = dt.datetime(2030, 5, 1, tzinfo=dt.UTC)
PEM = serialization.Encoding.PEM


def write(folder: pathlib.Path, identity: certs.Identity) -> tuple[str, str]:
    cert, key = folder / "tls.crt", folder / "tls.key"
    cert.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    return str(cert), str(key)


def signed_pair(*, signer_is_other: bool = False) -> certs.Identity:
    """A leaf issued by an authority that stands last in the chain."""
    authority_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    start, end = NOW - dt.timedelta(days=1), NOW + dt.timedelta(days=1)

    def build(
        name: x509.Name, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey, ca: bool
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("router.example")]), critical=False)
        )
        return builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM)

    issuer = ec.generate_private_key(ec.SECP256R1()) if signer_is_other else authority_key
    leaf_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])
    chain = build(leaf_name, leaf_key, issuer, False) + build(authority_name, authority_key, authority_key, True)
    key_pem = leaf_key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certs.Identity(chain, key_pem)


def test_self_signed_identity_carries_its_names_and_is_no_authority() -> None:
    identity = certs.make_self_signed(["localhost", "stargate"], ["127.0.0.1"])
    (certificate,) = x509.load_pem_x509_certificates(identity.cert_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "stargate"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def test_identity_without_any_name_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="at least one"):
        certs.make_self_signed([], [])


def test_loading_returns_the_bytes_that_were_checked(tmp_path: pathlib.Path) -> None:
    identity = certs.make_self_signed()
    assert certs.load_identity(*write(tmp_path, identity), NOW) == identity
    assert certs.not_after(identity).year == 4096


@pytest.mark.parametrize(
    ("cert", "key", "text"),
    [
        (None, b"x", "failed to open TLS certificate file"),
        (b"-" * 1_048_577, b"x", "TLS certificate exceeds 1048576 bytes"),
        (b"hello", b"x", "no certificate found in TLS PEM"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"x",
            "failed to parse TLS certificate PEM",
        ),
        (b"good", b"hello", "no private key found in TLS PEM"),
        (b"good", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "failed to parse TLS private key"),
        (b"good", b"other", "private key does not match"),
    ],
)
def test_unusable_pair_is_refused_in_words(tmp_path: pathlib.Path, cert: bytes | None, key: bytes, text: str) -> None:
    cert_path, key_path = write(tmp_path, certs.make_self_signed())
    if cert is None:
        cert_path = str(tmp_path / "missing")
    elif cert != b"good":
        pathlib.Path(cert_path).write_bytes(cert)
    if key == b"other":
        pathlib.Path(key_path).write_bytes(certs.make_self_signed().key_pem)
    else:
        pathlib.Path(key_path).write_bytes(key)
    with pytest.raises(certs.IdentityError, match=text):
        certs.load_identity(cert_path, key_path, NOW)


def test_directory_in_place_of_a_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(certs.IdentityError, match="failed to"):
        certs.load_identity(str(tmp_path), str(tmp_path), NOW)


def test_validity_window_is_that_of_the_whole_chain() -> None:
    identity = certs.make_self_signed(days=1, now=NOW)
    certs.validate(identity, NOW + dt.timedelta(hours=1))
    with pytest.raises(certs.IdentityError, match="is not yet valid"):
        certs.validate(identity, NOW - dt.timedelta(hours=1))
    with pytest.raises(certs.IdentityError, match="is expired"):
        certs.validate(identity, NOW + dt.timedelta(days=2))


def test_chain_must_lead_to_its_last_certificate() -> None:
    certs.validate(signed_pair(), NOW)
    with pytest.raises(certs.IdentityError, match="chain validation failed"):
        certs.validate(signed_pair(signer_is_other=True), NOW)


def test_trust_bundle_may_hold_many_but_not_none(tmp_path: pathlib.Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(certs.make_self_signed().cert_pem + certs.make_self_signed().cert_pem)
    assert len(certs.parse_trust_bundle(certs.load_trust_bundle(str(bundle)))) == 2
    with pytest.raises(certs.IdentityError, match="TLS trust bundle contains no certificates"):
        certs.parse_trust_bundle(b"")
    with pytest.raises(certs.IdentityError, match="failed to parse cert PEM"):
        certs.parse_trust_bundle(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_watcher_reports_each_change_once_and_keeps_the_last_good_pair(tmp_path: pathlib.Path) -> None:
    first, second = certs.make_self_signed(), certs.make_self_signed()
    cert_path, key_path = write(tmp_path, first)
    watcher = certs.Watcher(cert_path, key_path, first)
    assert watcher.poll(NOW) == certs.Unchanged()
    pathlib.Path(cert_path).write_bytes(second.cert_pem)  # torn: the key is still the old one
    assert isinstance(watcher.poll(NOW), certs.Rejected)
    assert watcher.poll(NOW) == certs.Unchanged()
    pathlib.Path(key_path).write_bytes(second.key_pem)
    assert watcher.poll(NOW) == certs.Reloaded(second)
    assert watcher.poll(NOW) == certs.Unchanged()
    pathlib.Path(key_path).write_bytes(first.key_pem)
    assert isinstance(watcher.poll(NOW), certs.Rejected)


def test_command_line_makes_checks_and_shows(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--cert", str(tmp_path / "a.crt"), "--key", str(tmp_path / "a.key")]
    assert main(["make", *pair, "--dns", "stargate", "--ip", "127.0.0.1", "--days", "7"]) == 0
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert main(["check", *pair]) == 0
    assert main(["show", *pair[:2]]) == 0
    assert "stargate, 127.0.0.1" in capsys.readouterr().out
    assert main(["make", *pair]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["make", *pair, "--force"]) == 0
