"""Files that cannot be used, under a running router: it serves on, tells it, and ends in time."""

import datetime as dt
import os
import signal
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs import make_self_signed
from router.testing import ProcessEndedError, System
from support.waiting import wait_until

REJECTED = 'stargate_tls_reloads_total{material_type="server_identity",result="rejected"}'


def until(system: System, name: str, value: float) -> None:
    wait_until(lambda: system.metrics().get(name, 0) >= value, 10, f"{name} is {value}")


def put_p521(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP521R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stargate")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=9))
        .sign(key, hashes.SHA256())
    )
    (directory / "c").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "k").write_bytes(key.private_bytes(*form))


def put_good(directory: Path) -> None:
    identity = make_self_signed(["stargate", "localhost"], days=9)
    (directory / "c").write_bytes(identity.cert_pem)
    (directory / "k").write_bytes(identity.key_pem)


def test_workers_still_get_in_after_a_rotation_to_a_key_that_tunnels_cannot_use(tmp_path: Path) -> None:
    put_good(tmp_path)
    options = (f"--tls-cert-path={tmp_path}/c", f"--tls-key-path={tmp_path}/k", "--tls-poll-ms=30")
    with System.start(*options) as system:
        put_p521(tmp_path)
        until(system, REJECTED, 1)
        system.add_worker("m")
        (tmp_path / "k").unlink()
        os.mkfifo(tmp_path / "k")
        until(system, REJECTED, 2)
        assert system.request("GET", "/readyz").status == 200


def test_a_pair_that_tunnels_cannot_use_ends_the_start_in_words(tmp_path: Path) -> None:
    put_p521(tmp_path)
    with pytest.raises(ProcessEndedError) as caught:
        System.start(f"--tls-cert-path={tmp_path}/c", f"--tls-key-path={tmp_path}/k")
    assert "Error: load initial reverse listener TLS server identity" in caught.value.log
    assert "Traceback" not in caught.value.log


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_sighup_refuses_a_policy_of_surrogates_and_sigterm_ends_beside_a_fifo(tmp_path: Path, log_format: str) -> None:
    path = tmp_path / "lb.json"
    path.write_text("{}")
    options = (f"--lb-config-path={path}", "--lb-config-poll-ms=60000", f"--log-format={log_format}")
    with System.start(*options) as system:
        path.write_text('{"models":{"\\ud800":"random"}}')
        system.router.send(signal.SIGHUP)
        until(system, 'stargate_lb_config_reloads_total{result="rejected"}', 1)
        path.unlink()
        os.mkfifo(path)
        system.router.send(signal.SIGHUP)
        until(system, 'stargate_lb_config_reloads_total{result="rejected"}', 2)
        assert system.request("GET", "/readyz").status == 200
        system.router.send(signal.SIGTERM)
        assert system.router.wait(10) == 0
