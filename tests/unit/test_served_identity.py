"""The identity of the reverse listener: loaded, watched, rotated, and what is told about it."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from certs import Identity, make_self_signed
from router.config.cli import parse
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.process.served_identity import ServedIdentity
from router.telemetry.metrics import Metrics

GAUGE = ("server_identity",)


def settings(*arguments: str) -> Settings:
    base = ["--stargate-id=r", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=x"]
    return parse([*base, "--backend-connectivity=reverse", "--reverse-tunnel-listen-addr=127.0.0.1:0", *arguments], {})


class Mount:
    """A Secret projected as a directory: names through a link that is swapped atomically."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.versions = 0

    def put(self, identity: Identity) -> None:
        self.versions += 1
        version = self.directory / f"..version-{self.versions}"
        version.mkdir()
        (version / "tls.crt").write_bytes(identity.cert_pem)
        (version / "tls.key").write_bytes(identity.key_pem)
        link = self.directory / "..new"
        link.symlink_to(version.name)
        link.replace(self.directory / "..data")
        for name in ("tls.crt", "tls.key"):
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")

    def settings(self) -> Settings:
        return settings(f"--tls-cert-path={self.directory}/tls.crt", f"--tls-key-path={self.directory}/tls.key")


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path)


async def poll(served: ServedIdentity) -> list[Identity]:
    activated: list[Identity] = []
    await served.poll(activated.append)
    return activated


async def test_without_files_a_fresh_identity_is_made_and_never_expires() -> None:
    metrics = Metrics()
    served = ServedIdentity.load(settings("--quic-insecure"), metrics)
    assert not served.mounted
    assert not served.expired()
    assert metrics.tls_certificate_expiry_seconds.series() == 0
    assert await poll(served) == []


def test_a_mounted_pair_is_served_and_its_expiry_told(mount: Mount) -> None:
    identity = make_self_signed(["stargate"], days=30)
    mount.put(identity)
    metrics = Metrics()
    served = ServedIdentity.load(mount.settings(), metrics)
    assert served.identity == identity
    expected = (datetime.now(UTC) + timedelta(days=30)).timestamp()
    assert abs(metrics.tls_certificate_expiry_seconds.value(GAUGE) - expected) < 60


async def test_a_rotated_secret_is_activated_once(mount: Mount) -> None:
    mount.put(make_self_signed(["stargate"], days=30))
    metrics = Metrics()
    served = ServedIdentity.load(mount.settings(), metrics)
    replacement = make_self_signed(["stargate"], days=60)
    mount.put(replacement)
    assert await poll(served) == [replacement]
    assert await poll(served) == []
    assert metrics.tls_reloads_total.value(("server_identity", "success")) == 1


async def test_a_bad_pair_is_refused_once_and_the_old_one_kept(mount: Mount) -> None:
    good = make_self_signed(["stargate"], days=30)
    mount.put(good)
    metrics = Metrics()
    served = ServedIdentity.load(mount.settings(), metrics)
    mount.put(Identity(good.cert_pem, make_self_signed(["stargate"], days=30).key_pem))
    assert await poll(served) == await poll(served) == []
    assert served.identity == good
    assert metrics.tls_reloads_total.value(("server_identity", "rejected")) == 1
    assert metrics.tls_last_reload_success.value(GAUGE) == 0
    mount.put(good)
    assert await poll(served) == []
    assert metrics.tls_last_reload_success.value(GAUGE) == 1


def test_an_expired_pair_is_refused_at_start(mount: Mount) -> None:
    mount.put(make_self_signed(["stargate"], days=1, now=datetime.now(UTC) - timedelta(days=3)))
    with pytest.raises(StartupError) as caught:
        ServedIdentity.load(mount.settings(), Metrics())
    assert caught.value.message == "load initial reverse listener TLS server identity"
    assert "TLS server certificate chain is expired" in caught.value.causes


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError) as caught:
        ServedIdentity.load(settings(f"--tls-cert-path={tmp_path}/c", f"--tls-key-path={tmp_path}/k"), Metrics())
    assert f"failed to open TLS certificate file {tmp_path}/c" in caught.value.causes


@pytest.mark.parametrize(
    ("names", "template", "warned"),
    [
        (["stargate"], "127.0.0.1", False),
        (["r.example"], "127.0.0.1", True),
        (["pod-0.routers.ns"], "pod-0.routers.ns", False),
        (["*.routers.ns"], "pod-0.routers.ns", False),
        (["*.ns"], "pod-0.routers.ns", True),
    ],
)
def test_a_certificate_without_the_name_workers_ask_for_is_told(
    mount: Mount, names: list[str], template: str, warned: bool
) -> None:
    mount.put(make_self_signed(names, days=30))
    given = dataclasses.replace(mount.settings(), advertised_hostname_template=template)
    with structlog.testing.capture_logs() as lines:
        ServedIdentity.load(given, Metrics()).log_coverage(given, 50072)
    assert any("does not cover" in line["event"] for line in lines) == warned
