"""A pair is taken only after a handshake was done with it: tunnels by the QUIC engine, gRPC ports by their library."""

import asyncio
import datetime as dt
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from certs import Identity, make_self_signed
from router.config.cli import parse
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.control_plane import grpc_dry_run
from router.process.polling import every
from router.process.served_identity import ServedIdentity
from router.telemetry.metrics import Metrics
from tunnel_protocol.quic.aioquic_handshake import dry_run as quic_dry_run
from tunnel_protocol.quic.aioquic_handshake.dry_run import UnusableIdentityError, dry_run
from tunnel_protocol.quic.tls import ServerTls
from tunnel_protocol.small_file import FileReader

KEYS = {
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpool": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(2048),
    "RSA-1024": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505 - refused is what it is here for
}
USABLE = ("P-384", "Ed25519", "RSA-2048")


def pair(kind: str) -> Identity:
    key = KEYS[kind]()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stargate")])
    now = dt.datetime.now(dt.UTC)
    algorithm = None if kind.startswith("Ed") else hashes.SHA256()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("stargate")]), critical=False)
        .sign(key, algorithm)
    )
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def put(directory: Path, identity: Identity) -> None:
    (directory / "c").write_bytes(identity.cert_pem)
    (directory / "k").write_bytes(identity.key_pem)


def settings(directory: Path, *, grpc: bool = False) -> Settings:
    base = ["--stargate-id=r", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=x"]
    base += ["--backend-connectivity=reverse", "--reverse-tunnel-listen-addr=127.0.0.1:0"]
    kind = "grpc-tls" if grpc else "tls"
    return parse([*base, f"--{kind}-cert-path={directory}/c", f"--{kind}-key-path={directory}/k"], {})


@pytest.mark.parametrize("kind", KEYS)
async def test_only_what_workers_can_connect_to_replaces_the_served_pair(tmp_path: Path, kind: str) -> None:
    good, other = make_self_signed(["stargate"], days=9), pair(kind)
    put(tmp_path, good)
    metrics = Metrics()
    served = ServedIdentity.load(settings(tmp_path), metrics)
    put(tmp_path, other)
    activated: list[Identity] = []
    for _ in range(2):
        await served.poll(activated.append)
    usable = kind in USABLE
    assert activated == ([other] if usable else [])
    assert served.identity == (other if usable else good)
    assert metrics.tls_reloads_total.value(("server_identity", "rejected")) == (0 if usable else 1)
    assert metrics.tls_last_reload_success.value(("server_identity",)) == usable


@pytest.mark.parametrize("kind", ["P-521", "Ed448", "DSA", "RSA-1024"])
def test_an_unusable_pair_ends_the_start(tmp_path: Path, kind: str) -> None:
    put(tmp_path, pair(kind))
    with pytest.raises(StartupError, match="load initial reverse listener TLS server identity"):
        ServedIdentity.load(settings(tmp_path), Metrics())


async def test_the_pair_of_the_grpc_ports_is_loaded_and_followed(tmp_path: Path) -> None:
    good, other = make_self_signed(["stargate"], days=9), pair("P-384")
    put(tmp_path, good)
    metrics = Metrics()
    served = ServedIdentity.load_grpc(settings(tmp_path, grpc=True), metrics)
    assert served is not None
    activated: list[Identity] = []
    for identity in (pair("Ed448"), other):
        put(tmp_path, identity)
        await served.poll(activated.append)
    assert activated == [other]
    assert metrics.tls_reloads_total.value(("grpc_server_identity", "rejected")) == 1
    put(tmp_path, pair("Ed448"))
    with pytest.raises(StartupError, match="load gRPC TLS server identity"):
        ServedIdentity.load_grpc(settings(tmp_path, grpc=True), Metrics())
    with pytest.raises(grpc_dry_run.UnusableGrpcIdentityError):
        grpc_dry_run.dry_run(b"garbage", b"garbage")


def test_garbage_and_endless_chains_fail_the_rehearsal() -> None:
    good = make_self_signed(["stargate"], days=9)
    for cert in (b"garbage", good.cert_pem * 2_000):
        with pytest.raises(UnusableIdentityError):
            dry_run(ServerTls(cert_pem=cert, key_pem=good.key_pem))


async def test_a_key_that_becomes_a_fifo_is_refused_and_the_last_good_pair_stays(tmp_path: Path) -> None:
    good = make_self_signed(["stargate"], days=9)
    put(tmp_path, good)
    metrics = Metrics()
    served = ServedIdentity.load(settings(tmp_path), metrics)
    (tmp_path / "k").unlink()
    os.mkfifo(tmp_path / "k")
    await served.poll(lambda _: None)
    assert served.identity == good
    assert metrics.tls_reloads_total.value(("server_identity", "rejected")) == 1
    served._reader = FileReader(deadline_s=0)
    await served.poll(lambda _: None)
    assert metrics.tls_last_reload_success.value(("server_identity",)) == 0


async def test_a_look_again_task_outlives_failures_and_counts_them() -> None:
    rounds = 0
    metrics = Metrics()

    async def poll() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 4:
            raise RuntimeError("as it happens")

    task = asyncio.create_task(every(0, poll, "looking", metrics))
    while rounds < 5:  # noqa: ASYNC110 - bounded by the time limit of the suite
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()

    assert metrics.look_again_failures_total.value(("looking",)) == 3
    assert metrics.look_again_last_success_timestamp_seconds.value(("looking",)) > 0


class NeverDone:
    """An engine of a handshake that does not come to an end."""

    def __init__(self) -> None:
        self.polls = 0

    def deadline(self) -> None: ...

    def deliver(self) -> None: ...

    def receive(self, data: bytes, address: object, now: float) -> None: ...

    def poll(self, now: float) -> list[tuple[bytes, int, tuple[str, int]]]:
        self.polls += 1
        return [(b"x", 0, ("127.0.0.1", 1))]


class NeverDoneFactory:
    def __init__(self, accepts: bool) -> None:
        self._accepts = accepts

    def accept(self, *_: object) -> NeverDone | None:
        return NeverDone() if self._accepts else None


@pytest.mark.parametrize("accepts", [True, False])
def test_a_handshake_that_does_not_come_to_an_end_is_given_up(accepts: bool) -> None:
    owners, dialler = (quic_dry_run._Callbacks(), quic_dry_run._Callbacks()), NeverDone()
    quic_dry_run._play(NeverDoneFactory(accepts), dialler, *owners)  # type: ignore[arg-type]
    assert dialler.polls == (quic_dry_run._ROUNDS if accepts else 1)
    assert not any(owner.established or owner.on_peer_stream(None) for owner in owners)  # type: ignore[arg-type,func-returns-value]
