"""What each package is given follows from the command line, and every field of it is given."""

import dataclasses
import importlib
import math
import pkgutil
from pathlib import Path

import pytest

import router
from router.balancing.settings import BalancingSettings
from router.config import package_settings
from router.config.cli import parse
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.registry.settings import RegistrySettings
from tunnel_protocol.quic.pod_tag import pod_tag
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
    assert str(package_settings.advertised(settings(), GRPC, 41000)) == "10.0.0.7:41000"
    assert str(package_settings.advertised(settings(), GRPC._replace(port=0), 41000)) == "10.0.0.7:50071"


def test_workers_are_told_the_rendered_host_with_the_bound_port() -> None:
    found = package_settings.control_plane(
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
    assert package_settings.control_plane(settings(), GRPC, None).reverse_tunnel_target == ""


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
    tunnels, quic = package_settings.tunnels(given), package_settings.quic(given)
    assert (tunnels.connect_timeout_ms, tunnels.probe_timeout_ms) == (111, 222)
    assert (tunnels.reverse_connect_timeout_ms, tunnels.direct_connections) == (333, 4)
    assert (quic.idle_timeout_ms, quic.keepalive_ms, quic.max_streams_bidi) == (5000, 600, 7)
    assert (quic.stream_window_bytes, quic.max_consecutive_ptos) == (65536, 5)
    assert (quic.qlog_dir, quic.key_log) == (Path("/q"), None)


def test_connection_ids_begin_with_the_tag_of_the_pod() -> None:
    assert package_settings.quic(settings("--pod-name=router-0", "--pod-namespace=ns")).cid_prefix == pod_tag(
        "router-0"
    )
    assert package_settings.quic(settings()).cid_prefix == b""


def test_what_has_an_option_and_what_has_none_reach_the_http_listener() -> None:
    given = package_settings.http(settings("--http-max-connections=5", "--http-head-timeout-ms=1500"))
    assert (given.max_connections, given.timeouts.head, given.timeouts.body) == (5, 1.5, 60.0)
    unlimited = package_settings.http(settings("--http-head-timeout-ms=0", "--http-body-timeout-ms=0")).timeouts
    assert (unlimited.head, unlimited.body) == (math.inf, math.inf)


def test_nobody_is_asked_about_workers_without_an_endpoint() -> None:
    assert package_settings.gateway_auth(settings()) is None
    asked = package_settings.gateway_auth(
        settings("--worker-auth-endpoint=http://g", "--worker-auth-timeout-ms=700", "--worker-auth-cache-ms=0")
    )
    assert asked is not None
    assert (asked.endpoint, asked.deadline_s, asked.cache_s) == ("http://g", 0.7, 0.0)


@pytest.mark.parametrize(
    ("arguments", "current"), [((), True), (("--compat=0.18",), True), (("--compat=0.11",), False)]
)
def test_the_release_line_decides_how_load_is_counted_and_who_waits(arguments: tuple[str, ...], current: bool) -> None:
    given = settings(*arguments)
    assert package_settings.registry(given) == RegistrySettings(adds_up_load=current, free_slots=current)
    assert package_settings.proxy(given).method_error_bodies is current
    assert package_settings.balancing(given) == BalancingSettings(affinity_waits=current, expressions=current)


def test_the_defaults_of_the_command_line_are_those_of_the_transport() -> None:
    assert package_settings.quic(settings()) == QuicSettings()


def test_no_settings_of_a_package_have_defaults_of_their_own() -> None:
    found = {}
    for package in pkgutil.iter_modules(router.__path__):
        if package.name == "config" or not (Path(router.__path__[0]) / package.name / "settings.py").is_file():
            continue
        module = importlib.import_module(f"router.{package.name}.settings")
        for name, value in vars(module).items():
            if dataclasses.is_dataclass(value) and getattr(value, "__module__", "") == module.__name__:
                found[name] = dataclasses.fields(value)
    assert {"ConnectionTimeouts", "ControlPlaneSettings", "ProxySettings", "TunnelSettings"} <= found.keys()
    missing = dataclasses.MISSING
    assert [
        f"{name}.{field.name}"
        for name, declared in found.items()
        for field in declared
        if field.default is not missing or field.default_factory is not missing
    ] == []


def test_the_debug_configuration_has_its_fields_in_order_and_nothing_secret() -> None:
    bound: dict[str, SocketAddress | None] = dict.fromkeys(("grpc", "model_discovery", "http", "metrics"), GRPC)
    told = package_settings.debug_config(settings("--tls-cert-path=/secret/place"), bound, GRPC)
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
