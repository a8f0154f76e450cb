"""TLS identities: what is made, what is accepted, what is refused and in which words."""

import base64
import contextlib
import datetime as dt
import pathlib
import runpy
import ssl
import sys
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

import certs
from certs.__main__ import main

NOW = dt.datetime(2030, 5, 1, tzinfo=dt.UTC)
PEM = serialization.Encoding.PEM
PEM_END = b"-----END CERTIFICATE-----\n"
FIXED = certs.make_self_signed()


def write(folder: pathlib.Path, identity: certs.Identity) -> tuple[str, str]:
    cert, key = folder / "tls.crt", folder / "tls.key"
    cert.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    return str(cert), str(key)


DAY = dt.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey


def certificate(
    name: str,
    key: Key,
    issuer: str,
    issuer_key: Key,
    extensions: list[x509.ExtensionType] | None = None,
    *,
    start: dt.datetime = NOW - DAY,
    end: dt.datetime = NOW + DAY,
) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    for extension in extensions or []:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM)


AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)
NO_AUTHORITY = x509.BasicConstraints(ca=False, path_length=None)
NAMES = x509.SubjectAlternativeName([x509.DNSName("router.example")])


def chain_of_three(
    leaf: list[x509.ExtensionType],
    middle: x509.ExtensionType = AUTHORITY,
    *,
    middle_ends: dt.datetime = NOW + DAY,
    other_issuer: bool = False,
) -> certs.Identity:
    """Leaf, intermediate, root; the leaf carries these extensions."""
    leaf_key, middle_key, root_key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
    chain = (
        certificate("leaf", leaf_key, "middle", other if other_issuer else middle_key, leaf)
        + certificate("middle", middle_key, "root", root_key, [middle], end=middle_ends)
        + certificate("root", root_key, "root", root_key, [AUTHORITY])
    )
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


@pytest.mark.parametrize(
    "leaf",
    [
        [NAMES],
        [],
        [NO_AUTHORITY, NAMES],
        [NAMES, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])],
    ],
    ids=["names", "no names", "explicitly no authority", "for servers"],
)
def test_chain_that_leads_to_its_last_certificate_is_accepted(leaf: list[x509.ExtensionType]) -> None:
    certs.validate(chain_of_three(leaf), NOW)
    whole = chain_of_three(leaf)
    without_root = b"".join(part + PEM_END for part in whole.cert_pem.split(PEM_END)[:2])
    certs.validate(whole._replace(cert_pem=without_root), NOW)


@pytest.mark.parametrize(
    "identity",
    [
        lambda: chain_of_three([NAMES], other_issuer=True),
        lambda: chain_of_three([NAMES], NO_AUTHORITY),
        lambda: chain_of_three([NAMES], NAMES),
        lambda: chain_of_three([AUTHORITY, NAMES]),
        lambda: chain_of_three([NAMES, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]),
        lambda: chain_of_three([NAMES], middle_ends=NOW - dt.timedelta(minutes=1)),
    ],
    ids=[
        "other issuer",
        "issuer is no authority",
        "issuer does not say",
        "leaf is one",
        "for clients",
        "expired issuer",
    ],
)
def test_chain_that_no_dialler_would_accept_is_refused(identity: Callable[[], certs.Identity]) -> None:
    with pytest.raises(certs.IdentityError, match=r"^TLS server certificate chain validation failed: "):
        certs.validate(identity(), NOW)


def test_refusal_of_an_expired_chain_says_so() -> None:
    identity = chain_of_three([NAMES], middle_ends=NOW - dt.timedelta(minutes=1))
    with pytest.raises(certs.IdentityError, match="expired at 2030-04-30T23:59:00"):
        certs.validate(identity, NOW)


def test_single_certificate_is_not_asked_for_its_issuer_but_for_its_dates() -> None:
    key, issuer_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    key_pem = key.private_bytes(PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    certs.validate(certs.Identity(certificate("leaf", key, "gone", issuer_key, [NAMES]), key_pem), NOW)
    expired = certificate("leaf", key, "gone", issuer_key, [NAMES], end=NOW - dt.timedelta(hours=1))
    with pytest.raises(certs.IdentityError, match=r"^TLS server certificate chain is expired"):
        certs.validate(certs.Identity(expired, key_pem), NOW)


@pytest.mark.parametrize(
    ("names", "asked", "covered"),
    [
        (["stargate"], "stargate", True),
        (["Stargate"], "starGATE", True),
        (["*.router.example"], "pod-0.router.example", True),
        (["*.router.example"], "router.example", False),
        (["*.router.example"], "a.pod-0.router.example", False),
        (["localhost"], "stargate", False),
        ([], "stargate", False),
    ],
)
def test_identity_covers_the_names_a_dialler_would_find_in_it(names: list[str], asked: str, covered: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    extensions: list[x509.ExtensionType] = (
        [x509.SubjectAlternativeName([x509.DNSName(name) for name in names])] if names else []
    )
    assert certs.covers(certs.Identity(certificate("a", key, "a", key, extensions), b""), asked) == covered


def test_names_that_cannot_be_read_cover_nothing() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    nonsense = x509.UnrecognizedExtension(x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\xff\xff")
    assert not certs.covers(certs.Identity(certificate("a", key, "a", key, [nonsense]), b""), "stargate")


def test_expiry_is_the_earliest_of_the_chain() -> None:
    soon = NOW + dt.timedelta(hours=1)
    assert certs.not_after(chain_of_three([NAMES], middle_ends=soon)) == soon


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("kind", ["rsa", "p384", "ed25519"])
def test_keys_of_other_kinds_and_forms_are_accepted(kind: str, form: serialization.PrivateFormat) -> None:
    key = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    if kind == "ed25519":
        form = serialization.PrivateFormat.PKCS8
    subject = x509.Name([])
    served = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(key, None if kind == "ed25519" else hashes.SHA256())
    )
    key_pem = key.private_bytes(PEM, form, serialization.NoEncryption())
    certs.validate(certs.Identity(served.public_bytes(PEM), b"some text before it\n" + key_pem), NOW)


def test_encrypted_key_is_refused() -> None:
    identity = certs.make_self_signed()
    key = serialization.load_pem_private_key(identity.key_pem, None)
    encrypted = key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(certs.IdentityError, match=r"^invalid TLS server identity: failed to parse TLS private key PEM"):
        certs.validate(identity._replace(key_pem=encrypted), NOW)


def test_certificate_whose_key_nobody_knows_is_refused() -> None:
    identity = certs.make_self_signed()
    der = x509.load_pem_x509_certificate(identity.cert_pem).public_bytes(serialization.Encoding.DER)
    unknown = der.replace(bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f"))  # another curve
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(unknown) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(certs.IdentityError, match=r"^invalid TLS server identity: failed to parse TLS certificate PEM"):
        certs.validate(identity._replace(cert_pem=pem), NOW)


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.none() | st.integers(0, 2000))
def test_damaged_pair_is_refused_in_order(at: int, byte: int, cut: int | None) -> None:
    for damaged in ("cert_pem", "key_pem"):
        raw = bytearray(getattr(FIXED, damaged))
        raw[at % len(raw)] = byte
        with contextlib.suppress(certs.IdentityError):
            certs.validate(FIXED._replace(**{damaged: bytes(raw[:cut])}), NOW)


def test_trust_bundle_may_hold_many_but_not_none(tmp_path: pathlib.Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(certs.make_self_signed().cert_pem + certs.make_self_signed().cert_pem)
    assert len(certs.parse_trust_bundle(bundle.read_bytes())) == 2
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
    assert watcher.rejecting
    assert watcher.poll(NOW) == certs.Unchanged()
    pathlib.Path(key_path).write_bytes(second.key_pem)
    assert watcher.poll(NOW) == certs.Reloaded(second)
    assert not watcher.rejecting
    assert watcher.poll(NOW) == certs.Unchanged()
    pathlib.Path(key_path).write_bytes(first.key_pem)
    assert isinstance(watcher.poll(NOW), certs.Rejected)


def test_watcher_reports_a_rejection_again_when_its_text_changes_or_after_a_good_read(tmp_path: pathlib.Path) -> None:
    first = certs.make_self_signed()
    cert_path, key_path = write(tmp_path, first)
    watcher = certs.Watcher(cert_path, key_path, first)
    pathlib.Path(cert_path).write_bytes(b"")
    assert isinstance(watcher.poll(NOW), certs.Rejected)
    pathlib.Path(cert_path).unlink()
    rejected = watcher.poll(NOW)
    assert isinstance(rejected, certs.Rejected)
    assert str(rejected.error).startswith(f"failed to open TLS certificate file {cert_path}")
    pathlib.Path(cert_path).write_bytes(first.cert_pem)
    assert watcher.poll(NOW) == certs.Unchanged()
    pathlib.Path(cert_path).unlink()
    assert isinstance(watcher.poll(NOW), certs.Rejected)


def test_watcher_tells_that_what_it_serves_has_expired(tmp_path: pathlib.Path) -> None:
    first = certs.make_self_signed(days=1, now=NOW)
    watcher = certs.Watcher(*write(tmp_path, first), first)
    assert watcher.poll(NOW) == certs.Unchanged()
    assert isinstance(watcher.poll(NOW + 2 * DAY), certs.Rejected)


def test_watcher_follows_the_swap_of_a_mounted_folder(tmp_path: pathlib.Path) -> None:
    first, second = certs.make_self_signed(), certs.make_self_signed()
    for name, identity in (("..1", first), ("..2", second)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, identity)
    (tmp_path / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(pathlib.Path("..data") / name)
    watcher = certs.Watcher(str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"), first)
    assert watcher.poll(NOW) == certs.Unchanged()
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert watcher.poll(NOW) == certs.Reloaded(second)


def test_command_line_makes_checks_and_shows(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--cert", str(tmp_path / "a.crt"), "--key", str(tmp_path / "a.key")]
    assert main(["make", *pair, "--dns", "stargate", "--ip", "127.0.0.1", "--days", "7"]) == 0
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert main(["check", *pair]) == 0
    assert main(["show", *pair[:2]]) == 0
    assert "stargate, 127.0.0.1" in capsys.readouterr().out
    assert main(["make", *pair]) == 1
    assert "--force" in capsys.readouterr().err
    (tmp_path / "a.key").chmod(0o644)
    assert main(["make", *pair, "--force"]) == 0
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert main(["make", *pair, "--force", "--ip", "::1"]) == 0


@pytest.mark.parametrize("words", [["--days", "-1"], ["--days", "9999999999"], ["--ip", "localhost"], ["--dns", "é"]])
def test_command_line_makes_nothing_of_nonsense(
    words: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["make", "--cert", str(tmp_path / "a"), "--key", str(tmp_path / "b"), *words]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_command_line_shows_a_certificate_without_names(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "a.crt").write_bytes(certificate("a", key, "a", key))
    assert main(["show", "--cert", str(tmp_path / "a.crt")]) == 0
    assert "(none)" in capsys.readouterr().out


def test_command_line_check_fails_as_a_listener_would(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["check", "--cert", str(tmp_path / "none"), "--key", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["certs", *arguments])
    monkeypatch.delitem(sys.modules, "certs.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("certs", run_name="__main__")
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: failed to open TLS certificate file")


def test_a_certificate_of_a_version_that_does_not_exist_is_refused_like_any_other() -> None:
    pair = certs.make_self_signed(["stargate"])
    der = x509.load_pem_x509_certificate(pair.cert_pem).public_bytes(serialization.Encoding.DER)
    version_3, version_67 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x42"
    assert der.count(version_3) == 1
    pem = ssl.DER_cert_to_PEM_cert(der.replace(version_3, version_67)).encode()
    with pytest.raises(certs.IdentityError, match="not a valid X509 version"):
        certs.validate(certs.Identity(pem, pair.key_pem), dt.datetime.now(dt.UTC))
    with pytest.raises(certs.IdentityError, match="not a valid X509 version"):
        certs.parse_trust_bundle(pem)
