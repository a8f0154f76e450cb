"""The router's options, each written once, and what the command line and the environment said of them.

A field is an option: its name, type and default, and by `router.config.option` its flag, environment variable and help.
Fields are named after the flags (`--dns-poll-ms` is `dns_poll_ms`); units are in the names. Options marked `added` have no
counterpart in the reference router; their defaults keep its behaviour. Those marked `later` came after its 0.11 line. No value
is a secret: paths only. docs/operations.md, "Command line", explains the rules.
"""

from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from router.config.explicit_uri import shown
from router.config.openai_options import OpenAiOptions
from router.config.option import Option, option, options_of, required_option, switch
from router.config.option_values import (
    SocketAddress,
    connectivity,
    count_above_zero,
    dropped_headers,
    error_bodies,
    framing,
    log_format,
    metric_families,
    milliseconds,
    milliseconds_above_zero,
    not_supported,
    parse_socket_address,
    port,
    process_count,
    reference_release,
    stream_window,
    text,
    true_or_false,
    uint32,
    uint32_above_zero,
    uint64,
    url_list,
)
from router.control_plane.settings import SECRETS_KEY
from router.http1.settings import CONNECTIONS
from router.proxy.settings import REPLAY_COPY, REPLAY_TOTAL
from router.telemetry.settings import METRICS_PREFIX
from tunnel_protocol.quic.settings import QuicSettings

_QUIC: Final = QuicSettings()
"""The transport is shared with the worker, so the defaults of its limits and timers stand there."""

DEFAULT_HOSTNAME_TEMPLATE: Final = "{pod_name}.stargate.external"
"""Host name of a router for workers, if no other template is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(OpenAiOptions):
    """All options of one process. A listen address stays text until the checks before the start parse it."""

    stargate_id: str = required_option(
        "--stargate-id",
        "ID",
        text,
        help="Identity of this process in logs, state and snapshots.",
        section="Who this router is",
    )
    advertise_addr: SocketAddress = required_option(
        "--advertise-addr",
        "IP:PORT",
        parse_socket_address,
        help="gRPC address of this router as published to workers; follows the port really bound if it names the "
        "listen port.",
    )
    pod_name: str | None = option(
        "--pod-name",
        "NAME",
        text,
        default=None,
        help="Name of the pod; together with the namespace it switches discovery to SRV records.",
        env="POD_NAME",
    )
    pod_namespace: str | None = option(
        "--pod-namespace", "NAMESPACE", text, default=None, help="Namespace of the pod.", env="POD_NAMESPACE"
    )
    advertised_hostname_template: str | None = option(
        "--advertised-hostname-template",
        "TEMPLATE",
        text,
        default=None,
        help="Host name under which workers reach a router; {pod_name} and {namespace} are filled in. "
        f"Without it {DEFAULT_HOSTNAME_TEMPLATE} is used.",
    )
    compat: Literal["0.11", "0.18"] = option(
        "--compat",
        "RELEASE",
        reference_release,
        default="0.18",
        help="Release line of the reference router whose behaviour clients, workers and charts see: '0.11' (August 2026) "
        "or '0.18'. docs/compatibility.md lists the differences.",
        env="STARGATE_COMPAT",
        added=True,
    )
    processes: int | Literal["auto"] = option(
        "--processes",
        "N|auto",
        process_count,
        default=1,
        help="Complete routers on this host, to use more cores: process i, from 0, is <stargate-id>-i and has its gRPC and QUIC "
        "ports + i; the HTTP and model-discovery ports are shared. 'auto' is one for each core of the CPU limit.",
        env="STARGATE_PROCESSES",
        added=True,
    )
    listen_addr: str = option(
        "--listen-addr",
        "IP:PORT",
        text,
        default="0.0.0.0:50071",
        help="TCP: gRPC control plane, where workers register and watch.",
        section="Where it listens",
    )
    model_discovery_listen_addr: str = option(
        "--model-discovery-listen-addr",
        "IP:PORT",
        text,
        default="0.0.0.0:50073",
        help="TCP: gRPC model discovery, where gateways list models.",
    )
    http_listen_addr: str = option(
        "--http-listen-addr",
        "IP:PORT",
        text,
        default="0.0.0.0:8000",
        help="TCP: HTTP requests and the probes /healthz and /readyz.",
    )
    metrics_port: int = option(
        "--metrics-port",
        "PORT",
        port,
        default=9_090,
        help="TCP port of /metrics on all interfaces; 0 takes a free one.",
    )
    reverse_tunnel_listen_addr: str | None = option(
        "--reverse-tunnel-listen-addr",
        "IP:PORT",
        text,
        default=None,
        help="UDP: QUIC tunnels that workers dial; needed with, and only with, reverse connectivity.",
    )
    stargate_discovery_dns_name: str = required_option(
        "--stargate-discovery-dns-name",
        "NAME",
        text,
        help="DNS name (headless Service) under which all routers are found.",
        section="Discovery of other routers",
    )
    disable_dns_discovery: bool = switch("--disable-dns-discovery", help="Publish only this router; ask no DNS.")
    dns_poll_ms: int = option(
        "--dns-poll-ms", "MS", milliseconds_above_zero, default=1_000, help="Pause between two look-ups."
    )
    dns_resolver_ttl_ms: int = option(
        "--dns-resolver-ttl-ms", "MS", milliseconds, default=1_000, help="Longest time a positive DNS answer is used."
    )
    watch_heartbeat_ms: int = option(
        "--watch-heartbeat-ms",
        "MS",
        milliseconds,
        default=5_000,
        help="Longest gap between two snapshots to a watching worker, even if nothing changed.",
    )
    remote_stargate_url: tuple[str, ...] = option(
        "--remote-stargate-url",
        "URL",
        url_list,
        default=(),
        help="Further routers that workers should watch, https://host:port, or http:// with the next option; repeat it or "
        "separate with commas.",
        env="STARGATE_REMOTE_WATCH_URLS",
        repeats=True,
    )
    allow_insecure_remote_watch_http: bool = switch(
        "--allow-insecure-remote-watch-http",
        help="Allow http:// in --remote-stargate-url.",
        env="STARGATE_ALLOW_INSECURE_REMOTE_WATCH_HTTP",
        later=True,
    )
    grpc_pylon_dial_addr: str | None = option(
        "--grpc-pylon-dial-addr",
        "URL",
        text,
        default=None,
        help="Address workers dial for gRPC instead of the advertised one: http://host:port or https://host:port.",
    )
    enable_dev_peer_forwarding: bool = switch(
        "--enable-dev-peer-forwarding",
        help="Development relay between routers. Not available in this program: start-up stops if given.",
    )
    dns_nameserver: SocketAddress | None = option(
        "--dns-nameserver",
        "IP:PORT",
        parse_socket_address,
        default=None,
        help="Name server to ask; without it the system's.",
        added=True,
    )
    discovery_grace_ms: int = option(
        "--discovery-grace-ms",
        "MS",
        milliseconds,
        default=30_000,
        help="How long the last good DNS answer is kept when look-ups fail; 0 publishes only this router at once.",
        added=True,
    )
    backend_connectivity: Literal["direct", "reverse"] = option(
        "--backend-connectivity",
        "MODE",
        connectivity,
        default="direct",
        help="Who dials: 'direct' (this router) or 'reverse' (the worker).",
        section="Tunnels to workers",
    )
    tunnel_protocol: Literal["raw-quic", "http3", "webtransport"] = option(
        "--tunnel-protocol",
        "PROTOCOL",
        framing,
        default="raw-quic",
        help="Framing on QUIC streams: raw-quic, http3 or webtransport.",
    )
    reverse_tunnel_pylon_dial_addr: str | None = option(
        "--reverse-tunnel-pylon-dial-addr",
        "ADDR",
        text,
        default=None,
        help="Address workers dial for their tunnel instead of the advertised host.",
    )
    reverse_tunnel_connect_timeout_ms: int = option(
        "--reverse-tunnel-connect-timeout-ms",
        "MS",
        milliseconds,
        default=10_000,
        help="How long a registration update waits for the worker's tunnel.",
    )
    quic_connect_timeout_ms: int = option(
        "--quic-connect-timeout-ms",
        "MS",
        milliseconds,
        default=2_000,
        help="Limit for dialling a worker, and once more for setting up the framing.",
    )
    quic_request_timeout_ms: int | None = option(
        "--quic-request-timeout-ms",
        "MS",
        milliseconds,
        default=None,
        help="Limit from opening a stream to the head of the response; the body has none. 300000 if not given, and "
        "30000 with --compat 0.11.",
    )
    direct_quic_connections: int = option(
        "--direct-quic-connections",
        "N",
        count_above_zero,
        default=1,
        help="Connections to each worker in direct mode.",
        env="STARGATE_DIRECT_QUIC_CONNECTIONS",
    )
    quic_max_streams: int = option(
        "--quic-max-streams",
        "N",
        count_above_zero,
        default=_QUIC.max_streams_bidi,
        help="Streams a worker may open on one connection at a time.",
        env="STARGATE_QUIC_MAX_STREAMS",
        added=True,
    )
    quic_idle_timeout_ms: int = option(
        "--quic-idle-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=_QUIC.idle_timeout_ms,
        help="A QUIC connection without any packet for this long is dead.",
        env="STARGATE_QUIC_IDLE_TIMEOUT_MS",
        added=True,
    )
    quic_keepalive_ms: int = option(
        "--quic-keepalive-ms",
        "MS",
        milliseconds,
        default=_QUIC.keepalive_ms,
        help="Send a PING after this much silence; 0 never does.",
        env="STARGATE_QUIC_KEEPALIVE_MS",
        added=True,
    )
    quic_stream_window_bytes: int = option(
        "--quic-stream-window-bytes",
        "BYTES",
        stream_window,
        default=_QUIC.stream_window_bytes,
        help="What a worker may send on a stream beyond what its client has taken: the memory of an exchange.",
        env="STARGATE_QUIC_STREAM_WINDOW_BYTES",
        added=True,
    )
    quic_max_probe_timeouts: int = option(
        "--quic-max-probe-timeouts",
        "N",
        uint32,
        default=_QUIC.max_consecutive_ptos,
        help="Close a connection after this many unanswered probes in a row; 0 leaves it to the idle timeout.",
        env="STARGATE_QUIC_MAX_PROBE_TIMEOUTS",
        added=True,
    )
    quic_qlog_dir: str | None = option(
        "--quic-qlog-dir",
        "DIR",
        text,
        default=None,
        help="Write a qlog file per QUIC connection there (large; for debugging).",
        env="STARGATE_QUIC_QLOG_DIR",
        added=True,
    )
    quic_keylog_path: str | None = option(
        "--quic-keylog-path",
        "PATH",
        text,
        default=None,
        help="Append the TLS secrets of tunnels there, to decrypt captures (anyone who can read it can read the tunnels).",
        env="STARGATE_QUIC_KEYLOG_PATH",
        added=True,
    )
    proxy_max_connect_retries: int = option(
        "--proxy-max-connect-retries",
        "N",
        uint32,
        default=2,
        help="Per request: further attempts after tunnel failures.",
        env="STARGATE_PROXY_MAX_CONNECT_RETRIES",
        section="Requests",
    )
    proxy_max_request_retries: int = option(
        "--proxy-max-request-retries",
        "N",
        uint32,
        default=2,
        help="Per request: further attempts after retryable answers (429, 503).",
        env="STARGATE_PROXY_MAX_REQUEST_RETRIES",
    )
    proxy_max_replay_body_bytes: int = option(
        "--proxy-max-replay-body-bytes",
        "BYTES",
        uint64,
        default=REPLAY_COPY.bytes or 0,
        help="Body copy kept per request for retries; a longer declared body is refused with 413.",
        env="STARGATE_PROXY_MAX_REPLAY_BODY_BYTES",
    )
    proxy_require_pylon_retry_signal: bool = option(
        "--proxy-require-pylon-retry-signal",
        "BOOL",
        true_or_false,
        default=True,
        help="Retry 429 and 503 only when the worker marks them as retryable.",
        env="STARGATE_PROXY_REQUIRE_PYLON_RETRY_SIGNAL",
    )
    proxy_retry_budget_header: str = option(
        "--proxy-retry-budget-header",
        "NAME",
        text,
        default="x-stargate-max-wait-ms",
        help="Request header with the retry budget in milliseconds; empty turns budgets off.",
        env="STARGATE_PROXY_RETRY_BUDGET_HEADER",
    )
    proxy_max_replay_total_bytes: int = option(
        "--proxy-max-replay-total-bytes",
        "BYTES",
        uint64,
        default=REPLAY_TOTAL.bytes or 0,
        help="Body copies kept over all requests; beyond it requests are forwarded without a copy and cannot be "
        "retried.",
        env="STARGATE_PROXY_MAX_REPLAY_TOTAL_BYTES",
        added=True,
    )
    proxy_response_idle_timeout_ms: int = option(
        "--proxy-response-idle-timeout-ms",
        "MS",
        milliseconds,
        default=0,
        help="Break off a response whose worker sends nothing for this long; 0 waits for ever.",
        env="STARGATE_PROXY_RESPONSE_IDLE_TIMEOUT_MS",
        added=True,
    )
    http_head_timeout_ms: int = option(
        "--http-head-timeout-ms",
        "MS",
        milliseconds,
        default=60_000,
        help="Answer 408 and close if a request head takes longer than this from its first byte; idle connections are "
        "not meant; 0 waits for ever.",
        env="STARGATE_HTTP_HEAD_TIMEOUT_MS",
        added=True,
    )
    http_body_timeout_ms: int = option(
        "--http-body-timeout-ms",
        "MS",
        milliseconds,
        default=60_000,
        help="Answer 408 and close if a client sends nothing of its body for this long while it is read; a slow but "
        "steady upload is not meant; 0 waits for ever.",
        env="STARGATE_HTTP_BODY_TIMEOUT_MS",
        added=True,
    )
    http_max_connections: int = option(
        "--http-max-connections",
        "N",
        count_above_zero,
        default=CONNECTIONS.pieces or 0,
        help="Client connections open at a time; further ones are closed at once, as they are when file descriptors "
        "run out.",
        env="STARGATE_HTTP_MAX_CONNECTIONS",
        added=True,
    )
    proxy_no_repeat_accepted: bool = switch(
        "--proxy-no-repeat-accepted",
        help="With --compat 0.11: never send a request again that a worker has received in full, so that nothing is "
        "generated twice. With 0.18 that is so without it, from when the request was handed to the tunnel.",
        env="STARGATE_PROXY_NO_REPEAT_ACCEPTED",
        added=True,
    )
    error_bodies: Literal["contract", "json"] = option(
        "--error-bodies",
        "FORM",
        error_bodies,
        default="contract",
        help="Bodies of the router's own error answers: 'contract' (most are empty) or 'json' (the empty ones get a reason "
        "in the shape of OpenAI's errors).",
        env="STARGATE_ERROR_BODIES",
        added=True,
    )
    trust_routing_method: bool = option(
        "--trust-routing-method",
        "true|false",
        true_or_false,
        default=True,
        help="Whether x-routing-method of a request chooses the algorithm. false: the header is ignored.",
        env="STARGATE_TRUST_ROUTING_METHOD",
        added=True,
    )
    proxy_drop_request_headers: tuple[str, ...] = option(
        "--proxy-drop-request-headers",
        "NAME",
        dropped_headers,
        default=(),
        help="Headers of clients that no worker gets, for example those by which an engine is steered; repeat it or "
        "separate with commas.",
        env="STARGATE_PROXY_DROP_REQUEST_HEADERS",
        added=True,
        repeats=True,
    )
    lb_config_path: str | None = option(
        "--lb-config-path",
        "PATH",
        text,
        default=None,
        help="Load-balancer configuration (JSON); without it power-of-n, and every algorithm on request.",
    )
    lb_config_poll_ms: int = option(
        "--lb-config-poll-ms",
        "MS",
        milliseconds,
        default=10_000,
        help="How often that file is looked at for changes; 0 reads it once.",
        env="STARGATE_LB_CONFIG_POLL_MS",
        added=True,
    )
    registration_update_idle_timeout_ms: int = option(
        "--registration-update-idle-timeout-ms",
        "MS",
        milliseconds,
        default=60_000,
        help="Least silence after which a registration ends; 0 never ends one.",
        env="STARGATE_REGISTRATION_UPDATE_IDLE_TIMEOUT_MS",
        section="Registration of workers",
    )
    registration_update_max_idle_timeout_ms: int = option(
        "--registration-update-max-idle-timeout-ms",
        "MS",
        milliseconds,
        default=300_000,
        help="Most silence, also for workers that do not tell their interval; 0 never ends one.",
        env="STARGATE_REGISTRATION_UPDATE_MAX_IDLE_TIMEOUT_MS",
    )
    worker_auth_endpoint: str | None = option(
        "--worker-auth-endpoint",
        "URL",
        text,
        default=None,
        help="gRPC service that turns a worker's token into its routing key; without it every worker is accepted.",
    )
    worker_auth_connect_timeout_ms: int = option(
        "--worker-auth-connect-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=10_000,
        help="How long start-up tries to reach that service before it gives up.",
        env="STARGATE_WORKER_AUTH_CONNECT_TIMEOUT_MS",
        added=True,
    )
    worker_auth_timeout_ms: int = option(
        "--worker-auth-timeout-ms",
        "MS",
        milliseconds_above_zero,
        default=5_000,
        help="Limit for one call of that service; a failed call is tried once more.",
        env="STARGATE_WORKER_AUTH_TIMEOUT_MS",
        added=True,
    )
    worker_auth_cache_ms: int = option(
        "--worker-auth-cache-ms",
        "MS",
        milliseconds,
        default=5_000,
        help="How long a positive answer is remembered; 0 asks every time.",
        env="STARGATE_WORKER_AUTH_CACHE_MS",
        added=True,
    )
    tls_cert_path: str | None = option(
        "--tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Reverse mode: certificate chain served to workers. Direct mode: certificates that workers are checked "
        "against.",
        env="STARGATE_TLS_CERT_PATH",
        section="TLS and secrets",
    )
    tls_key_path: str | None = option(
        "--tls-key-path",
        "PATH",
        text,
        default=None,
        help="Private key of the served chain; not looked at in direct mode.",
        env="STARGATE_TLS_KEY_PATH",
    )
    quic_insecure: bool = switch(
        "--quic-insecure",
        help="Do not verify workers that this router dials; QUIC stays encrypted.",
        env="STARGATE_QUIC_INSECURE",
    )
    tls_poll_ms: int = option(
        "--tls-poll-ms",
        "MS",
        milliseconds_above_zero,
        default=30_000,
        help="How often the certificate files are looked at for changes.",
        env="STARGATE_TLS_POLL_MS",
        added=True,
    )
    grpc_tls_cert_path: str | None = option(
        "--grpc-tls-cert-path",
        "PATH",
        text,
        default=None,
        help="Serve both gRPC ports with TLS and this certificate chain.",
        env="STARGATE_GRPC_TLS_CERT_PATH",
        added=True,
    )
    grpc_tls_key_path: str | None = option(
        "--grpc-tls-key-path",
        "PATH",
        text,
        default=None,
        help="Private key of that chain.",
        env="STARGATE_GRPC_TLS_KEY_PATH",
        added=True,
    )
    secrets_path: str | None = option(
        "--secrets-path",
        "PATH",
        text,
        default=None,
        help="JSON file with this router's own credentials; read anew for every use.",
        env="SECRETS_PATH",
    )
    secrets_json_path: str | None = option(
        "--secrets-json-path",
        "KEY",
        text,
        default=None,
        help=f"Dotted path to the bearer token in that file; {SECRETS_KEY} if not given.",
        env="SECRETS_JSON_PATH",
    )
    oauth2_provider_host: str | None = option(
        "--oauth2-provider-host",
        "URL",
        text,
        default=None,
        help="Get the bearer token at <URL>/token with the client credentials of the secrets file.",
        env="OAUTH2_PROVIDER_HOST",
    )
    metrics_prefix: str = option(
        "--metrics-prefix",
        "PREFIX",
        text,
        default=METRICS_PREFIX,
        help="Put before every metric name.",
        section="What operators see",
    )
    metrics_families: Literal["contract", "all"] = option(
        "--metrics-families",
        "SET",
        metric_families,
        default="contract",
        help="What /metrics shows: 'contract' (what existing dashboards know) or 'all'. /metrics/all always shows all.",
        env="STARGATE_METRICS_FAMILIES",
        added=True,
    )
    operators_token_file: str | None = option(
        "--operators-token-file",
        "PATH",
        text,
        default=None,
        help="File with the token that shows the page, its API and /explain on the metrics port to other hosts.",
        env="STARGATE_OPERATORS_TOKEN_FILE",
        added=True,
    )
    log_format: Literal["text", "json"] = option(
        "--log-format",
        "FORMAT",
        log_format,
        default="text",
        help="Lines for people (text) or one JSON object per line (json). RUST_LOG sets the level.",
        env="STARGATE_LOG_FORMAT",
        added=True,
    )
    access_log: bool = switch(
        "--access-log",
        help="One line per finished request: id, status, worker, attempts, times and how it ended; never content.",
        env="STARGATE_ACCESS_LOG",
        added=True,
    )
    otel_endpoint: str | None = option(
        "--otel-endpoint",
        "URL",
        text,
        default=None,
        help="Collector to which traces are exported by OTLP; the OTEL_* variables tell how.",
        env="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    otel_service_name: str = option(
        "--otel-service-name", "NAME", text, default="stargate", help="Service name in traces."
    )
    shutdown_drain_timeout_ms: int = option(
        "--shutdown-drain-timeout-ms",
        "MS",
        milliseconds,
        default=30_000,
        help="Time to finish what runs after SIGTERM or SIGINT; a second signal ends at once.",
        section="Start and end",
    )
    readiness_warmup_ms: int = option(
        "--readiness-warmup-ms",
        "MS",
        milliseconds,
        default=0,
        help="/readyz stays 503 for this long after the start, or until the number of routable workers is stable; everything "
        "else works meanwhile. 0 is ready at once.",
        env="STARGATE_READINESS_WARMUP_MS",
        later=True,
    )
    readiness_stabilization_sample_interval_ms: int = option(
        "--readiness-stabilization-sample-interval-ms",
        "MS",
        milliseconds_above_zero,
        default=1_000,
        help="How often routable workers are counted while /readyz warms up.",
        env="STARGATE_READINESS_STABILIZATION_SAMPLE_INTERVAL_MS",
        later=True,
    )
    readiness_stabilization_window: int = option(
        "--readiness-stabilization-window",
        "N",
        uint32_above_zero,
        default=5,
        help="How often in a row that count, above 0, must be the same as before for the warm-up to end.",
        env="STARGATE_READINESS_STABILIZATION_WINDOW",
        later=True,
    )
    lame_duck_ms: int = option(
        "--lame-duck-ms",
        "MS",
        milliseconds,
        default=0,
        help="After SIGTERM keep the HTTP port open this long with /readyz 503, serve new requests and close their "
        "connections, and keep the metrics port until the end. Part of the drain time; 0 closes both at once.",
        env="STARGATE_LAME_DUCK_MS",
        added=True,
    )
    ports_file: str | None = option(
        "--ports-file",
        "PATH",
        text,
        default=None,
        help="Once ready, write the bound addresses there as JSON.",
        env="STARGATE_PORTS_FILE",
        added=True,
    )

    routing_reservation_ttl_min_ms: int | None = option(
        "--routing-reservation-ttl-min-ms",
        "MS",
        milliseconds,
        default=None,
        help="Accepted and ignored: reservations end with the worker's next report.",
        env="STARGATE_ROUTING_RESERVATION_TTL_MIN_MS",
        later=True,
        section="Known from other releases",
        ignored=True,
    )
    routing_reservation_ttl_max_ms: int | None = option(
        "--routing-reservation-ttl-max-ms",
        "MS",
        milliseconds,
        default=None,
        help="Accepted and ignored, as the option before.",
        env="STARGATE_ROUTING_RESERVATION_TTL_MAX_MS",
        later=True,
        ignored=True,
    )
    allow_open_worker_auth: bool = switch(
        "--allow-open-worker-auth",
        help="Accepted and ignored: without --worker-auth-endpoint every worker is accepted anyway.",
        env="STARGATE_ALLOW_OPEN_WORKER_AUTH",
        later=True,
        ignored=True,
    )
    worker_auth_file: None = option(
        "--worker-auth-file",
        "PATH",
        not_supported("without it every worker would be accepted, so the start ends here; use --worker-auth-endpoint"),
        default=None,
        help="Not supported yet: the start ends with a usage error.",
        env="STARGATE_WORKER_AUTH_FILE",
        later=True,
    )
    config_file: None = option(
        "--config-file",
        "PATH",
        not_supported("its settings would be missing, so the start ends here; use options or environment variables"),
        default=None,
        help="Not supported yet: the start ends with a usage error.",
        env="STARGATE_CONFIG_FILE",
        later=True,
    )

    @property
    def reverse(self) -> bool:
        """Whether workers dial this router."""
        return self.backend_connectivity == "reverse"

    @property
    def as_of_0_18(self) -> bool:
        """Whether peers see the behaviour of the 0.18 line, not that of 0.11 (docs/compatibility.md)."""
        return self.compat == "0.18"

    @property
    def head_timeout_ms(self) -> int:
        """Limit in ms from opening a tunnel stream to the response head."""
        if self.quic_request_timeout_ms is not None:
            return self.quic_request_timeout_ms
        return 300_000 if self.as_of_0_18 else 30_000

    @property
    def hostname_template(self) -> str:
        """The template of host names for workers; an empty one counts as none."""
        return self.advertised_hostname_template or DEFAULT_HOSTNAME_TEMPLATE

    @property
    def advertised_host(self) -> str:
        """The host name of this router for workers: the template, filled in."""
        filled = self.hostname_template.replace("{pod_name}", self.pod_name or self.stargate_id)
        return filled.replace("{namespace}", self.pod_namespace or "")

    @property
    def ignored_options(self) -> list[str]:
        """The flags of options that are given and have no effect."""
        return [one.flag for one in OPTIONS if one.ignored and getattr(self, one.name) != one.default]

    def shown(self, *names: str) -> tuple[str, ...]:
        """`--flag=value` of the options with these field names that have a value: for messages, without user information."""
        values = {name: getattr(self, name) for name in names}
        return tuple(
            f"{one.flag}={_shown(values[one.name])}" for one in OPTIONS if values.get(one.name) not in (None, ())
        )

    def reported(self) -> dict[str, Any]:
        """All settings by name, for the log."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["quic_request_timeout_ms"] = self.head_timeout_ms
        return {
            name: value if value is None or isinstance(value, (bool, int)) else _shown(value)
            for name, value in values.items()
        }

    def given(self) -> dict[str, Any]:
        """Those of `reported` that differ from the default, or have none."""
        reported = self.reported()
        return {one.name: reported[one.name] for one in OPTIONS if getattr(self, one.name) != one.default}


def _shown(value: object) -> str:
    """A value in the spelling of the command line."""
    if isinstance(value, tuple) and not isinstance(value, SocketAddress):
        value = tuple("=".join(one) if isinstance(one, tuple) else one for one in value)
        return ",".join(shown(str(one)) for one in value)
    return str(value).lower() if isinstance(value, bool) else shown(str(value))


OPTIONS: Final[tuple[Option, ...]] = options_of(Settings)
"""The options in the order of `--help`."""
