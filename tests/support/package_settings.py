"""Settings of the packages as the router makes them without options, for tests that need some; changes are keywords."""

from dataclasses import replace
from typing import Any

from router.config import package_settings
from router.config.cli import parse
from router.control_plane.settings import ControlPlaneSettings, GatewayAuthSettings
from router.http1.settings import ConnectionTimeouts, HttpSettings
from router.proxy.settings import ProxySettings
from router.tunnels.settings import TunnelSettings

REQUIRED = ("--stargate-id=router-0", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=routers")
DEFAULTS = parse([*REQUIRED, "--worker-auth-endpoint=http://127.0.0.1:9"], {})


def proxy_settings(*, compat: Any = "0.18", no_repeat_accepted: bool = False, **changes: Any) -> ProxySettings:
    options = replace(DEFAULTS, compat=compat, proxy_no_repeat_accepted=no_repeat_accepted)
    return replace(package_settings.proxy(options), **changes)


def tunnel_settings(**changes: Any) -> TunnelSettings:
    return replace(package_settings.tunnels(DEFAULTS), **changes)


def http_settings(**changes: Any) -> HttpSettings:
    return replace(package_settings.http(DEFAULTS), **changes)


def connection_timeouts(**changes: Any) -> ConnectionTimeouts:
    return replace(http_settings().timeouts, **changes)


def control_plane_settings(**changes: Any) -> ControlPlaneSettings:
    return replace(package_settings.control_plane(DEFAULTS, DEFAULTS.advertise_addr, None), **changes)


def gateway_auth_settings(**changes: Any) -> GatewayAuthSettings:
    found = package_settings.gateway_auth(DEFAULTS)
    assert found is not None
    return replace(found, **changes)
