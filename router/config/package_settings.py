"""Builds the settings of each package from the options; values without an option are set here.

Pure: opens nothing. The fields are documented in `router/<package>/settings.py`.
"""

import math
from pathlib import Path

from router.balancing.settings import BalancingSettings
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import retry_budget_header
from router.control_plane.settings import ControlPlaneSettings, GatewayAuthSettings
from router.http1.settings import ConnectionTimeouts, HttpSettings
from router.openai.settings import FrontSettings
from router.proxy.settings import MESSAGES_PATH, PATHS, NoRepeat, ProxySettings
from router.registry.settings import RegistrySettings
from router.tunnels.settings import PENDING, TunnelSettings
from tunnel_protocol.handshake import MAX_HANDSHAKE_BYTES
from tunnel_protocol.head import NOT_TO_WORKER
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.quic.pod_tag import pod_tag
from tunnel_protocol.quic.settings import QuicSettings


def quic(settings: Settings, key_log: LineWriter | None = None) -> QuicSettings:
    """Limits and timers of every QUIC connection; values without an option are the defaults of `tunnel_protocol`."""
    return QuicSettings(
        idle_timeout_ms=settings.quic_idle_timeout_ms,
        keepalive_ms=settings.quic_keepalive_ms,
        max_streams_bidi=settings.quic_max_streams,
        stream_window_bytes=settings.quic_stream_window_bytes,
        max_consecutive_ptos=settings.quic_max_probe_timeouts,
        cid_prefix=b"" if settings.pod_name is None else pod_tag(settings.pod_name),
        qlog_dir=None if settings.quic_qlog_dir is None else Path(settings.quic_qlog_dir),
        key_log=key_log,
    )


def tunnels(settings: Settings) -> TunnelSettings:
    """Timeouts and limits of tunnels."""
    return TunnelSettings(
        connect_timeout_ms=settings.quic_connect_timeout_ms,
        # Requests may wait long for their head; a probe may not, because the next one is made only after it.
        probe_timeout_ms=min(settings.head_timeout_ms, 30_000),
        reverse_connect_timeout_ms=settings.reverse_tunnel_connect_timeout_ms,
        direct_connections=settings.direct_quic_connections,
        handshake_timeout_ms=10_000,
        max_handshake_bytes=MAX_HANDSHAKE_BYTES,
        max_pending_handshakes=PENDING.pieces or 0,
        health_interval_ms=1_000,
        silence_ms=1_800,
        direct_grace_ms=2_000,
    )


def registry(settings: Settings) -> RegistrySettings:
    """How the statistics of workers become those of their cluster."""
    return RegistrySettings(adds_up_load=settings.as_of_0_18, free_slots=settings.as_of_0_18)


def balancing(settings: Settings) -> BalancingSettings:
    """Which form of the algorithms is used."""
    return BalancingSettings(affinity_waits=settings.as_of_0_18, expressions=settings.as_of_0_18)


def proxy(settings: Settings) -> ProxySettings:
    """Limits and switches of the proxy. Raises `StartupError` for an invalid header name."""
    header = retry_budget_header(settings)
    return ProxySettings(
        paths=PATHS | {MESSAGES_PATH} if settings.as_of_0_18 else PATHS,
        drop_listed_headers=settings.as_of_0_18,
        not_to_worker=NOT_TO_WORKER.union(name.encode() for name in settings.proxy_drop_request_headers),
        trust_routing_method=settings.trust_routing_method,
        request_timeout_ms=settings.head_timeout_ms,
        max_connect_retries=settings.proxy_max_connect_retries,
        max_request_retries=settings.proxy_max_request_retries,
        max_replay_body_bytes=settings.proxy_max_replay_body_bytes,
        max_replay_total_bytes=settings.proxy_max_replay_total_bytes,
        require_retry_signal=settings.proxy_require_pylon_retry_signal,
        retry_budget_header=None if header is None else header.decode(),
        no_repeat=_no_repeat(settings),
        retry_signal_once=settings.as_of_0_18,
        overload_answer=settings.as_of_0_18,
        unknown_targets_unlabelled=settings.as_of_0_18,
        response_idle_timeout_ms=settings.proxy_response_idle_timeout_ms,
        reasons_in_bodies=settings.error_bodies == "json",
        failure_logs=settings.as_of_0_18,
        access_log=settings.access_log,
        method_error_bodies=settings.as_of_0_18,
    )


def _no_repeat(settings: Settings) -> NoRepeat:
    if settings.as_of_0_18:
        return NoRepeat.HANDED_OVER
    return NoRepeat.ACKNOWLEDGED if settings.proxy_no_repeat_accepted else NoRepeat.NEVER


def http(settings: Settings) -> HttpSettings:
    """Connection limit and timeouts of the HTTP listener."""
    return HttpSettings(
        max_connections=settings.http_max_connections,
        close_unread=settings.as_of_0_18,
        timeouts=ConnectionTimeouts(
            discard=2.0 if settings.as_of_0_18 else 1.0,
            half_sent=2.0,
            watch=1.0,
            stalled=30.0,
            head=settings.http_head_timeout_ms / 1000 or math.inf,
            body=settings.http_body_timeout_ms / 1000 or math.inf,
        ),
    )


def openai_front(settings: Settings) -> FrontSettings:
    """Limits and switches of the front for OpenAI clients."""
    return FrontSettings(
        mode=settings.openai_mode,
        default_routing_key=settings.openai_default_routing_key,
        aliases=settings.openai_alias,
        max_body_bytes=settings.openai_max_body_bytes or settings.proxy_max_replay_body_bytes,
        head_timeout_ms=settings.openai_head_timeout_ms,
        idle_timeout_ms=settings.openai_idle_timeout_ms,
        total_timeout_ms=settings.openai_total_timeout_ms,
        keepalive_ms=settings.openai_keepalive_ms,
        cors_origins=settings.openai_cors_origin,
    )


def control_plane(
    settings: Settings, advertise: SocketAddress, reverse_address: SocketAddress | None
) -> ControlPlaneSettings:
    """Settings of the control plane, with the addresses that are actually bound."""
    return ControlPlaneSettings(
        stargate_id=settings.stargate_id,
        advertise_addr=str(advertise),
        dns_name=settings.stargate_discovery_dns_name,
        reverse_tunnel_target="" if reverse_address is None else f"{settings.advertised_host}:{reverse_address.port}",
        reverse_tunnel_dial_addr=settings.reverse_tunnel_pylon_dial_addr or "",
        idle_timeout_ms=settings.registration_update_idle_timeout_ms,
        max_idle_timeout_ms=settings.registration_update_max_idle_timeout_ms,
        duplicate_delay_ms=200,
        min_silence_ms=3_000,
        unknown_heartbeat_ms=5_000,
        teardown_ms=2_000,
        lifecycle_logs=settings.as_of_0_18,
    )


def gateway_auth(settings: Settings) -> GatewayAuthSettings | None:
    """How the gateway authenticates workers' tokens; None without worker authentication."""
    if settings.worker_auth_endpoint is None:
        return None
    return GatewayAuthSettings(
        endpoint=settings.worker_auth_endpoint,
        ca_pem=None,
        deadline_s=settings.worker_auth_timeout_ms / 1000,
        cache_s=settings.worker_auth_cache_ms / 1000,
        cache_entries=10_000,
        keepalive=None,
    )


def advertised(settings: Settings, configured_grpc: SocketAddress, bound_grpc_port: int) -> SocketAddress:
    """The published address: if its port is the configured gRPC port, that is replaced by the bound one."""
    if settings.advertise_addr.port == configured_grpc.port:
        return settings.advertise_addr._replace(port=bound_grpc_port)
    return settings.advertise_addr


def debug_config(
    settings: Settings, bound: dict[str, SocketAddress | None], advertise: SocketAddress
) -> dict[str, object]:
    """The `config` part of `/debug/state`, in its documented order; without secrets."""
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
