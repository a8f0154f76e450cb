"""Which parts are made follows from the command line."""

from pathlib import Path

import pytest

from router.config import package_settings
from router.config.cli import parse
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.control_plane.discovery import HeadlessService, PlainDns, SelfOnly
from router.control_plane.gateway_auth import GatewayAuthenticator
from router.control_plane.worker_auth import OpenAuthenticator
from router.process import assembly
from router.telemetry.metrics import Metrics


def settings(*arguments: str) -> Settings:
    return parse(
        [
            "--stargate-id=pod-7",
            "--advertise-addr=10.0.0.7:50071",
            "--stargate-discovery-dns-name=r-headless.ns",
            *arguments,
        ],
        {},
    )


def test_a_key_log_is_opened_once_or_the_start_fails(tmp_path: Path) -> None:
    writer = assembly.key_log(settings(f"--quic-keylog-path={tmp_path}/keys"))
    assert writer is not None
    assert package_settings.quic(settings(), writer).key_log is writer
    assert writer.close(20)
    assert assembly.key_log(settings()) is None
    with pytest.raises(StartupError, match=r"failed to open key log /none/keys"):
        assembly.key_log(settings("--quic-keylog-path=/none/keys"))


def test_discovery_is_off_by_pods_or_by_name() -> None:
    advertise = SocketAddress("10.0.0.7", 50071)
    assert isinstance(assembly.lookup(settings("--disable-dns-discovery"), advertise, 8000), SelfOnly)
    assert isinstance(assembly.lookup(settings("--pod-name=only"), advertise, 8000), PlainDns)
    pods = assembly.lookup(settings("--pod-name=pod-7", "--pod-namespace=ns"), advertise, 8000)
    assert isinstance(pods, HeadlessService)
    assert pods.own.advertise_addr == "pod-7.stargate.external:50071"


async def test_workers_are_checked_only_with_an_endpoint() -> None:
    assert isinstance(assembly.authenticator(settings("--secrets-path=/none"), Metrics()), OpenAuthenticator)

    found = assembly.authenticator(settings("--worker-auth-endpoint=http://127.0.0.1:9"), Metrics())
    assert isinstance(found, GatewayAuthenticator)
    await found.close()
