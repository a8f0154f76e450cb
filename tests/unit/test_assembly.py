"""The settings of each package follow from the command line."""

from pathlib import Path

import pytest

from router.config.cli import parse
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.control_plane.discovery import HeadlessService, PlainDns, SelfOnly
from router.control_plane.worker_auth import GatewayAuthenticator, OpenAuthenticator
from router.process import assembly
from router.proxy.settings import ProxySettings
from router.telemetry.metrics import Metrics
from router.tunnels.settings import TunnelSettings
from tunnel_protocol.quic.settings import QuicSettings

GRPC = SocketAddress("0.0.0.0", 50071)


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


def test_the_advertised_port_follows_the_one_bound_if_it_names_the_configured_one() -> None:
    assert str(assembly.advertised(settings(), GRPC, 41000)) == "10.0.0.7:41000"
    assert str(assembly.advertised(settings(), GRPC._replace(port=0), 41000)) == "10.0.0.7:50071"


def test_workers_are_told_the_rendered_host_with_the_bound_port() -> None:
    found = assembly.control_plane_settings(
        settings(
            "--backend-connectivity=reverse",
            "--reverse-tunnel-listen-addr=0.0.0.0:0",
            "--advertised-hostname-template={pod_name}.r-headless.{namespace}",
            "--pod-namespace=ns",
            "--reverse-tunnel-pylon-dial-addr=10.0.0.7:50072",
        ),
        SocketAddress("10.0.0.7", 50071),
        SocketAddress("0.0.0.0", 50072),
    )
    # Without a pod name the process's own id stands in.
    assert found.reverse_tunnel_target == "pod-7.r-headless.ns:50072"
    assert found.reverse_tunnel_dial_addr == "10.0.0.7:50072"
    assert found.advertise_addr == "10.0.0.7:50071"


def test_without_a_reverse_listener_there_is_no_target() -> None:
    assert assembly.control_plane_settings(settings(), GRPC, None).reverse_tunnel_target == ""


def test_limits_reach_the_tunnels_and_quic() -> None:
    given = settings(
        "--quic-connect-timeout-ms=111",
        "--quic-request-timeout-ms=222",
        "--reverse-tunnel-connect-timeout-ms=333",
        "--direct-quic-connections=4",
        "--quic-idle-timeout-ms=5000",
        "--quic-keepalive-ms=600",
        "--quic-max-streams=7",
        "--quic-stream-window-bytes=65536",
        "--quic-max-probe-timeouts=5",
        "--quic-qlog-dir=/q",
        "--quic-keylog-path=/k",
    )
    tunnels, quic = assembly.tunnel_settings(given), assembly.quic_settings(given)
    assert (tunnels.connect_timeout_ms, tunnels.request_timeout_ms) == (111, 222)
    assert (tunnels.reverse_connect_timeout_ms, tunnels.direct_connections) == (333, 4)
    assert (quic.idle_timeout_ms, quic.keepalive_ms, quic.max_streams_bidi) == (5000, 600, 7)
    assert (quic.stream_window_bytes, quic.max_consecutive_ptos) == (65536, 5)
    assert (quic.qlog_dir, quic.key_log) == (Path("/q"), None)


def test_a_key_log_is_opened_once_or_the_start_fails(tmp_path: Path) -> None:
    writer = assembly.key_log(settings(f"--quic-keylog-path={tmp_path}/keys"))
    assert writer is not None
    assert assembly.quic_settings(settings(), writer).key_log is writer
    assert writer.close(20)
    assert assembly.key_log(settings()) is None
    with pytest.raises(StartupError, match=r"failed to open key log /none/keys"):
        assembly.key_log(settings("--quic-keylog-path=/none/keys"))


def test_the_defaults_of_the_command_line_are_those_of_the_rooms() -> None:
    assert assembly.proxy_settings(settings()) == ProxySettings()
    assert assembly.tunnel_settings(settings()) == TunnelSettings()
    assert assembly.quic_settings(settings()) == QuicSettings()


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


def test_the_debug_configuration_has_its_fields_in_order_and_nothing_secret() -> None:
    bound: dict[str, SocketAddress | None] = dict.fromkeys(("grpc", "model_discovery", "http", "metrics"), GRPC)
    told = assembly.debug_config(settings("--tls-cert-path=/secret/place"), bound, GRPC)
    assert list(told) == [
        "stargate_id",
        "grpc_listen_addr",
        "model_discovery_listen_addr",
        "http_listen_addr",
        "metrics_listen_addr",
        "advertise_addr",
        "stargate_discovery_dns_name",
        "tunnel_protocol",
        "backend_connectivity",
        "direct_quic_connections",
    ]
    assert "/secret/place" not in str(told)
