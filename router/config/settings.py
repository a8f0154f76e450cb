"""The router's configuration, complete and immutable: what the command line and the environment said, once.

Names follow the options (`--dns-poll-ms` is `dns_poll_ms`); units are in the names. Nothing in here is a secret: paths only.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

from router.config.option_values import SocketAddress


@dataclass(frozen=True, slots=True)
class Settings:
    """See `router/config/options.py` for what each one is; a listen address stays text until start-up checks parse it."""

    stargate_id: str
    advertise_addr: SocketAddress
    stargate_discovery_dns_name: str
    pod_name: str | None
    pod_namespace: str | None
    advertised_hostname_template: str | None
    listen_addr: str
    model_discovery_listen_addr: str
    http_listen_addr: str
    metrics_port: int
    reverse_tunnel_listen_addr: str | None
    disable_dns_discovery: bool
    dns_poll_ms: int
    dns_resolver_ttl_ms: int
    watch_heartbeat_ms: int
    remote_stargate_url: tuple[str, ...]
    grpc_pylon_dial_addr: str | None
    enable_dev_peer_forwarding: bool
    dns_nameserver: SocketAddress | None
    discovery_grace_ms: int
    backend_connectivity: Literal["direct", "reverse"]
    tunnel_protocol: Literal["raw-quic", "http3", "webtransport"]
    reverse_tunnel_pylon_dial_addr: str | None
    reverse_tunnel_connect_timeout_ms: int
    quic_connect_timeout_ms: int
    quic_request_timeout_ms: int
    direct_quic_connections: int
    quic_engine: Literal["aioquic"]
    quic_max_streams: int
    quic_idle_timeout_ms: int
    quic_keepalive_ms: int
    quic_stream_window_bytes: int
    quic_max_probe_timeouts: int
    quic_qlog_dir: str | None
    quic_keylog_path: str | None
    proxy_max_connect_retries: int
    proxy_max_request_retries: int
    proxy_max_replay_body_bytes: int
    proxy_require_pylon_retry_signal: bool
    proxy_retry_budget_header: str
    proxy_max_replay_total_bytes: int
    proxy_response_idle_timeout_ms: int
    http_head_timeout_ms: int
    http_body_timeout_ms: int
    http_max_connections: int
    proxy_no_repeat_accepted: bool
    lb_config_path: str | None
    lb_config_poll_ms: int
    registration_update_idle_timeout_ms: int
    registration_update_max_idle_timeout_ms: int
    worker_auth_endpoint: str | None
    worker_auth_connect_timeout_ms: int
    worker_auth_timeout_ms: int
    worker_auth_cache_ms: int
    tls_cert_path: str | None
    tls_key_path: str | None
    quic_insecure: bool
    tls_poll_ms: int
    grpc_tls_cert_path: str | None
    grpc_tls_key_path: str | None
    secrets_path: str | None
    secrets_json_path: str | None
    oauth2_provider_host: str | None
    metrics_prefix: str
    metrics_families: Literal["contract", "all"]
    log_format: Literal["text", "json"]
    access_log: bool
    otel_endpoint: str | None
    otel_service_name: str
    shutdown_drain_timeout_ms: int
    lame_duck_ms: int
    ports_file: str | None

    @property
    def reverse(self) -> bool:
        """Whether workers dial this router."""
        return self.backend_connectivity == "reverse"

    @property
    def advertised_host(self) -> str:
        """The host name of this router for workers: the template, filled in."""
        template = self.advertised_hostname_template or "{pod_name}.stargate.external"
        filled = template.replace("{pod_name}", self.pod_name or self.stargate_id)
        return filled.replace("{namespace}", self.pod_namespace or "")

    def reported(self) -> dict[str, Any]:
        """All settings by name, for the first log line."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["advertise_addr"] = str(self.advertise_addr)
        return values
