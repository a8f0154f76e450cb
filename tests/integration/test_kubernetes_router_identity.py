"""Certificates of `stargate-k8s-router` that change while it runs."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs import Identity, IdentityError, make_self_signed
from kubernetes_router.identity import WatchedIdentity
from kubernetes_router.metrics import TUNNELS, Metrics
from router.config.startup_checks import StartupError
from support.waiting import eventually


class Files:
    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self.write(make_self_signed(days=1))

    def write(self, identity: Identity) -> None:
        self.cert.write_bytes(identity.cert_pem)
        self.key.write_bytes(identity.key_pem)

    def load(self, metrics: Metrics) -> WatchedIdentity:
        return WatchedIdentity(str(self.cert), str(self.key), TUNNELS, metrics, None)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def reloads(metrics: Metrics, result: str) -> float:
    return metrics.tls_reloads_total.value((TUNNELS, result))


async def test_a_new_pair_is_used_and_reported(files: Files) -> None:
    metrics, used = Metrics(), []
    identity = files.load(metrics)
    before = metrics.tls_certificate_expiry_seconds.value((TUNNELS,))
    new = make_self_signed(days=30)
    files.write(new)
    polling = asyncio.create_task(identity.poll_every(0, used.append))
    await eventually(lambda: used)
    polling.cancel()
    assert used == [new]
    assert identity.identity == new
    assert reloads(metrics, "success") == 1
    assert metrics.tls_certificate_expiry_seconds.value((TUNNELS,)) > before + 28 * 86_400


async def test_unusable_files_are_counted_once_and_the_old_pair_stays(files: Files) -> None:
    metrics = Metrics()
    identity = files.load(metrics)
    files.key.write_text("nothing")
    for _ in range(2):
        await identity.poll(lambda _new: pytest.fail("used"))
    assert reloads(metrics, "rejected") == 1
    files.cert.unlink()
    await identity.poll(lambda _new: pytest.fail("used"))
    assert reloads(metrics, "rejected") == 2


async def test_a_certificate_expires(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = files.load(Metrics())
    assert not identity.expired()
    monkeypatch.setattr("time.time", lambda: (datetime.now(UTC) + timedelta(days=2)).timestamp())
    assert identity.expired()


def test_a_start_without_usable_files_fails(files: Files) -> None:
    files.cert.write_text("nothing")
    with pytest.raises(StartupError, match="load TLS material server_identity"):
        files.load(Metrics())
    files.cert.unlink()
    with pytest.raises(StartupError) as caught:
        files.load(Metrics())
    assert "failed to open TLS certificate file" in caught.value.causes[0]


def test_a_pair_that_cannot_be_served_is_refused(files: Files) -> None:
    def refuse(_identity: Identity) -> None:
        raise IdentityError("cannot be served")

    with pytest.raises(StartupError) as caught:
        WatchedIdentity(str(files.cert), str(files.key), TUNNELS, Metrics(), refuse)
    assert caught.value.causes == ("cannot be served",)
