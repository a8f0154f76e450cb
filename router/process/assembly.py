"""The settings of each package, made from those of the command line, and the parts that depend on them.

Pure construction: nothing here opens a socket or starts a task.
"""

import math
from pathlib import Path

import structlog

from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError, causes_of, retry_budget_header
from router.control_plane.discovery import HeadlessService, Lookup, PlainDns, SelfOnly
from router.control_plane.gateway_credentials import ClientCredentials, CredentialSource, FileCredential, SecretsFile
from router.control_plane.replicas import own_replica
from router.control_plane.resolver import LookupFailedError, Resolver
from router.control_plane.settings import ControlPlaneSettings
from router.control_plane.worker_auth import GatewayAuthenticator, GatewayAuthSettings, OpenAuthenticator
from router.http1.connection import Patience
from router.proxy.settings import ProxySettings
from router.telemetry.metrics import Metrics
from router.tunnels.settings import TunnelSettings
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.quic.settings import QuicSettings

_log = structlog.get_logger()


def quic_settings(settings: Settings, key_log: LineWriter | None = None) -> QuicSettings:
    """Limits and timers of every QUIC connection."""
    return QuicSettings(
        idle_timeout_ms=settings.quic_idle_timeout_ms,
        keepalive_ms=settings.quic_keepalive_ms,
        max_streams_bidi=settings.quic_max_streams,
        stream_window_bytes=settings.quic_stream_window_bytes,
        max_consecutive_ptos=settings.quic_max_probe_timeouts,
        qlog_dir=None if settings.quic_qlog_dir is None else Path(settings.quic_qlog_dir),
        key_log=key_log,
    )


def key_log(settings: Settings) -> LineWriter | None:
    """The writer of TLS secrets, if they are wanted. Raises `StartupError` for a file that cannot be opened."""
    path = settings.quic_keylog_path
    if path is None:
        return None

    def failed(error: OSError) -> None:
        _log.warning("key log cannot be written; secrets are lost", path=path, error=str(error))

    try:
        return LineWriter(Path(path), "# {} secrets were lost".format, name="key log", failed=failed)
    except OSError as error:
        raise StartupError(f"failed to open key log {path}", *causes_of(error)) from None


def tunnel_settings(settings: Settings) -> TunnelSettings:
    """Times and limits of tunnels."""
    return TunnelSettings(
        connect_timeout_ms=settings.quic_connect_timeout_ms,
        request_timeout_ms=settings.quic_request_timeout_ms,
        reverse_connect_timeout_ms=settings.reverse_tunnel_connect_timeout_ms,
        direct_connections=settings.direct_quic_connections,
    )


def proxy_settings(settings: Settings) -> ProxySettings:
    """Limits and switches of the request path. Raises `StartupError` for an illegal header name."""
    header = retry_budget_header(settings)
    return ProxySettings(
        request_timeout_ms=settings.quic_request_timeout_ms,
        max_connect_retries=settings.proxy_max_connect_retries,
        max_request_retries=settings.proxy_max_request_retries,
        max_replay_body_bytes=settings.proxy_max_replay_body_bytes,
        max_replay_total_bytes=settings.proxy_max_replay_total_bytes,
        require_retry_signal=settings.proxy_require_pylon_retry_signal,
        retry_budget_header=None if header is None else header.decode(),
        no_repeat_accepted=settings.proxy_no_repeat_accepted,
        response_idle_timeout_ms=settings.proxy_response_idle_timeout_ms,
        access_log=settings.access_log,
    )


def http_times(settings: Settings) -> Patience:
    """How long the HTTP listener waits for its clients."""
    return Patience(
        head=settings.http_head_timeout_ms / 1000 or math.inf,
        body=settings.http_body_timeout_ms / 1000 or math.inf,
    )


def control_plane_settings(
    settings: Settings, advertise: SocketAddress, reverse_address: SocketAddress | None
) -> ControlPlaneSettings:
    """What the gRPC service tells workers and how long it waits for them; addresses are the ones really bound."""
    return ControlPlaneSettings(
        stargate_id=settings.stargate_id,
        advertise_addr=str(advertise),
        dns_name=settings.stargate_discovery_dns_name,
        reverse_tunnel_target="" if reverse_address is None else f"{settings.advertised_host}:{reverse_address.port}",
        reverse_tunnel_dial_addr=settings.reverse_tunnel_pylon_dial_addr or "",
        idle_timeout_ms=settings.registration_update_idle_timeout_ms,
        max_idle_timeout_ms=settings.registration_update_max_idle_timeout_ms,
    )


def authenticator(settings: Settings, metrics: Metrics) -> OpenAuthenticator | GatewayAuthenticator:
    """Everybody welcome, or the gateway is asked. Raises `StartupError` for an endpoint that is no URL."""
    if settings.worker_auth_endpoint is None:
        return OpenAuthenticator()
    asked = GatewayAuthSettings(
        endpoint=settings.worker_auth_endpoint,
        deadline_s=settings.worker_auth_timeout_ms / 1000,
        cache_s=settings.worker_auth_cache_ms / 1000,
    )
    try:
        return GatewayAuthenticator(asked, _credential(settings), metrics)
    except ValueError as error:
        raise StartupError("failed to connect to worker auth endpoint", str(error)) from None


def _credential(settings: Settings) -> CredentialSource | None:
    if settings.secrets_path is None:
        return None
    secrets = SecretsFile(Path(settings.secrets_path))
    if settings.oauth2_provider_host is not None:
        return ClientCredentials(settings.oauth2_provider_host, secrets)
    return FileCredential(secrets, settings.secrets_json_path or "authToken")


def lookup(settings: Settings, advertise: SocketAddress, http_port: int) -> Lookup:
    """How other routers are found. Raises `StartupError` if the system has no usable resolver configuration."""
    own = own_replica(settings.stargate_id, str(advertise), http_port)
    if settings.disable_dns_discovery:
        return SelfOnly(own)
    try:
        resolver = Resolver(ttl_cap_s=settings.dns_resolver_ttl_ms / 1000, nameserver=settings.dns_nameserver)
    except LookupFailedError as error:
        raise StartupError(str(error), *([str(error.__cause__)] if error.__cause__ else [])) from None
    if settings.pod_name is not None and settings.pod_namespace is not None:
        return HeadlessService(
            resolver,
            dns_name=settings.stargate_discovery_dns_name,
            template=settings.hostname_template,
            pod_name=settings.pod_name,
            namespace=settings.pod_namespace,
            advertise_addr=str(advertise),
        )
    return PlainDns(resolver, dns_name=settings.stargate_discovery_dns_name, own=own)


def debug_config(
    settings: Settings, bound: dict[str, SocketAddress | None], advertise: SocketAddress
) -> dict[str, object]:
    """The `config` part of `/debug/state`, in its documented order; nothing secret."""
    return {
        "stargate_id": settings.stargate_id,
        "grpc_listen_addr": str(bound["grpc"]),
        "model_discovery_listen_addr": str(bound["model_discovery"]),
        "http_listen_addr": str(bound["http"]),
        "metrics_listen_addr": str(bound["metrics"]),
        "advertise_addr": str(advertise),
        "stargate_discovery_dns_name": settings.stargate_discovery_dns_name,
        "tunnel_protocol": settings.tunnel_protocol,
        "backend_connectivity": settings.backend_connectivity,
        "direct_quic_connections": settings.direct_quic_connections,
    }


def advertised(settings: Settings, configured_grpc: SocketAddress, bound_grpc_port: int) -> SocketAddress:
    """The published address: follows the port really bound if it named the configured one."""
    if settings.advertise_addr.port == configured_grpc.port:
        return settings.advertise_addr._replace(port=bound_grpc_port)
    return settings.advertise_addr
