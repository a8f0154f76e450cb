"""The router's options as a table: name, value, environment variable, default and what it is for.

`cli.py` parses and prints by this table and `settings.py` names the results; docs/operations.md, "Command line" explains the
rules. Options marked `added` have no counterpart in the reference router; their defaults keep its behaviour.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from router.config.option_values import (
    PLAIN_COUNT_32,
    PLAIN_COUNT_64,
    PORT,
    connectivity,
    count_above_zero,
    log_format,
    metric_families,
    milliseconds,
    milliseconds_above_zero,
    quic_engine,
    socket_address,
    stream_window,
    text,
    true_or_false,
    tunnel_protocol,
    url_list,
)


class Option(NamedTuple):
    """One option. `value_name` None makes it a switch; `parse` turns one text into a value or raises `ValueRefusedError`."""

    flag: str
    value_name: str | None
    parse: Callable[[str], Any]
    default: str | None
    section: str
    help: str
    env: str | None = None
    required: bool = False
    repeats: bool = False
    added: bool = False

    @property
    def name(self) -> str:
        """The attribute of `Settings` that receives the value."""
        return self.flag[2:].replace("-", "_")

    @property
    def shown(self) -> str:
        """As usage errors name it: `--flag <NAME>`, or the bare switch."""
        return self.flag if self.value_name is None else f"{self.flag} <{self.value_name}>"


_ID = "Who this router is"
_LISTEN = "Where it listens"
_DISCOVERY = "Discovery of other routers"
_TUNNELS = "Tunnels to workers"
_REQUESTS = "Requests"
_REGISTRATION = "Registration of workers"
_TLS = "TLS and secrets"
_OBSERVE = "What operators see"
_LIFE = "Start and end"

OPTIONS: tuple[Option, ...] = (
    Option(
        "--stargate-id", "ID", text, None, _ID, "Identity of this process in logs, state and snapshots.", required=True
    ),
    Option(
        *("--advertise-addr", "IP:PORT", socket_address, None, _ID),
        "gRPC address of this router as published to workers; follows the port really bound if it names the listen port.",
        required=True,
    ),
    Option(
        *("--pod-name", "NAME", text, None, _ID),
        "Name of the pod; together with the namespace it switches discovery to SRV records.",
        env="POD_NAME",
    ),
    Option("--pod-namespace", "NAMESPACE", text, None, _ID, "Namespace of the pod.", env="POD_NAMESPACE"),
    Option(
        *("--advertised-hostname-template", "TEMPLATE", text, None, _ID),
        "Host name under which workers reach a router; {pod_name} and {namespace} are filled in. "
        "Without it {pod_name}.stargate.external is used.",
    ),
    Option(
        *("--listen-addr", "IP:PORT", text, "0.0.0.0:50071", _LISTEN),
        "TCP: gRPC control plane, where workers register and watch.",
    ),
    Option(
        *("--model-discovery-listen-addr", "IP:PORT", text, "0.0.0.0:50073", _LISTEN),
        "TCP: gRPC model discovery, where gateways list models.",
    ),
    Option(
        *("--http-listen-addr", "IP:PORT", text, "0.0.0.0:8000", _LISTEN),
        "TCP: HTTP requests and the probes /healthz and /readyz.",
    ),
    Option(
        "--metrics-port", "PORT", PORT, "9090", _LISTEN, "TCP port of /metrics on all interfaces; 0 takes a free one."
    ),
    Option(
        *("--reverse-tunnel-listen-addr", "IP:PORT", text, None, _LISTEN),
        "UDP: QUIC tunnels that workers dial; needed with, and only with, reverse connectivity.",
    ),
    Option(
        *("--stargate-discovery-dns-name", "NAME", text, None, _DISCOVERY),
        "DNS name (headless Service) under which all routers are found.",
        required=True,
    ),
    Option("--disable-dns-discovery", None, true_or_false, None, _DISCOVERY, "Publish only this router; ask no DNS."),
    Option(
        *("--dns-poll-ms", "MS", milliseconds_above_zero, "1000", _DISCOVERY),
        "Pause between two look-ups.",
    ),
    Option(
        *("--dns-resolver-ttl-ms", "MS", milliseconds, "1000", _DISCOVERY),
        "Longest time a positive DNS answer is used.",
    ),
    Option(
        *("--watch-heartbeat-ms", "MS", milliseconds, "5000", _DISCOVERY),
        "Longest gap between two snapshots to a watching worker, even if nothing changed.",
    ),
    Option(
        *("--remote-stargate-url", "URL", url_list, "", _DISCOVERY),
        "Further routers that workers should watch; repeat it or separate with commas.",
        env="STARGATE_REMOTE_WATCH_URLS",
        repeats=True,
    ),
    Option(
        *("--grpc-pylon-dial-addr", "ADDR", text, None, _DISCOVERY),
        "Address workers dial for gRPC instead of the advertised one.",
    ),
    Option(
        *("--enable-dev-peer-forwarding", None, true_or_false, None, _DISCOVERY),
        "Development relay between routers. Not available in this program: start-up stops if given.",
    ),
    Option(
        *("--dns-nameserver", "IP:PORT", socket_address, None, _DISCOVERY),
        "Name server to ask; without it the system's.",
        added=True,
    ),
    Option(
        *("--discovery-grace-ms", "MS", milliseconds, "30000", _DISCOVERY),
        "How long the last good DNS answer is kept when look-ups fail; 0 publishes only this router at once.",
        added=True,
    ),
    Option(
        *("--backend-connectivity", "MODE", connectivity, "direct", _TUNNELS),
        "Who dials: 'direct' (this router) or 'reverse' (the worker).",
    ),
    Option(
        *("--tunnel-protocol", "PROTOCOL", tunnel_protocol, "raw-quic", _TUNNELS),
        "Framing on QUIC streams: raw-quic, http3 or webtransport.",
    ),
    Option(
        *("--reverse-tunnel-pylon-dial-addr", "ADDR", text, None, _TUNNELS),
        "Address workers dial for their tunnel instead of the advertised host.",
    ),
    Option(
        *("--reverse-tunnel-connect-timeout-ms", "MS", milliseconds, "10000", _TUNNELS),
        "How long a registration update waits for the worker's tunnel.",
    ),
    Option(
        *("--quic-connect-timeout-ms", "MS", milliseconds, "2000", _TUNNELS),
        "Limit for dialling a worker, and once more for setting up the framing.",
    ),
    Option(
        *("--quic-request-timeout-ms", "MS", milliseconds, "30000", _TUNNELS),
        "Limit from opening a stream to the head of the response; the body has none.",
    ),
    Option(
        *("--direct-quic-connections", "N", count_above_zero, "1", _TUNNELS),
        "Connections to each worker in direct mode.",
        env="STARGATE_DIRECT_QUIC_CONNECTIONS",
    ),
    Option(
        *("--quic-engine", "NAME", quic_engine, "aioquic", _TUNNELS),
        "QUIC library under the tunnels; there is one.",
        env="STARGATE_QUIC_ENGINE",
        added=True,
    ),
    Option(
        *("--quic-max-streams", "N", count_above_zero, "100", _TUNNELS),
        "Streams a worker may open on one connection at a time.",
        env="STARGATE_QUIC_MAX_STREAMS",
        added=True,
    ),
    Option(
        *("--quic-idle-timeout-ms", "MS", milliseconds_above_zero, "30000", _TUNNELS),
        "A QUIC connection without any packet for this long is dead.",
        env="STARGATE_QUIC_IDLE_TIMEOUT_MS",
        added=True,
    ),
    Option(
        *("--quic-keepalive-ms", "MS", milliseconds, "0", _TUNNELS),
        "Send a PING after this much silence; 0 never does.",
        env="STARGATE_QUIC_KEEPALIVE_MS",
        added=True,
    ),
    Option(
        *("--quic-stream-window-bytes", "BYTES", stream_window, "1250000", _TUNNELS),
        "What a worker may send on a stream beyond what its client has taken: the memory of an exchange.",
        env="STARGATE_QUIC_STREAM_WINDOW_BYTES",
        added=True,
    ),
    Option(
        *("--quic-max-probe-timeouts", "N", PLAIN_COUNT_32, "0", _TUNNELS),
        "Close a connection after this many unanswered probes in a row; 0 leaves it to the idle timeout.",
        env="STARGATE_QUIC_MAX_PROBE_TIMEOUTS",
        added=True,
    ),
    Option(
        *("--quic-qlog-dir", "DIR", text, None, _TUNNELS),
        "Write a qlog file per QUIC connection there (large; for debugging).",
        env="STARGATE_QUIC_QLOG_DIR",
        added=True,
    ),
    Option(
        *("--quic-keylog-path", "PATH", text, None, _TUNNELS),
        "Append the TLS secrets of tunnels there, to decrypt captures (whoever reads it reads the tunnels).",
        env="STARGATE_QUIC_KEYLOG_PATH",
        added=True,
    ),
    Option(
        *("--proxy-max-connect-retries", "N", PLAIN_COUNT_32, "2", _REQUESTS),
        "Per request: further attempts after tunnel failures.",
        env="STARGATE_PROXY_MAX_CONNECT_RETRIES",
    ),
    Option(
        *("--proxy-max-request-retries", "N", PLAIN_COUNT_32, "2", _REQUESTS),
        "Per request: further attempts after retryable answers (429, 503).",
        env="STARGATE_PROXY_MAX_REQUEST_RETRIES",
    ),
    Option(
        *("--proxy-max-replay-body-bytes", "BYTES", PLAIN_COUNT_64, "67108864", _REQUESTS),
        "Body copy kept per request for retries; a longer declared body is refused with 413.",
        env="STARGATE_PROXY_MAX_REPLAY_BODY_BYTES",
    ),
    Option(
        *("--proxy-require-pylon-retry-signal", "BOOL", true_or_false, "true", _REQUESTS),
        "Retry 429 and 503 only when the worker marks them as retryable.",
        env="STARGATE_PROXY_REQUIRE_PYLON_RETRY_SIGNAL",
    ),
    Option(
        *("--proxy-retry-budget-header", "NAME", text, "x-stargate-max-wait-ms", _REQUESTS),
        "Request header with the retry budget in milliseconds; empty turns budgets off.",
        env="STARGATE_PROXY_RETRY_BUDGET_HEADER",
    ),
    Option(
        *("--proxy-max-replay-total-bytes", "BYTES", PLAIN_COUNT_64, "268435456", _REQUESTS),
        "Body copies kept over all requests; beyond it requests are forwarded without a copy and cannot be retried.",
        env="STARGATE_PROXY_MAX_REPLAY_TOTAL_BYTES",
        added=True,
    ),
    Option(
        *("--proxy-response-idle-timeout-ms", "MS", milliseconds, "0", _REQUESTS),
        "Break off a response whose worker sends nothing for this long; 0 waits for ever.",
        env="STARGATE_PROXY_RESPONSE_IDLE_TIMEOUT_MS",
        added=True,
    ),
    Option(
        *("--http-head-timeout-ms", "MS", milliseconds, "60000", _REQUESTS),
        "Answer 408 and close if a request head takes longer than this from its first byte; idle connections are not "
        "meant; 0 waits for ever.",
        env="STARGATE_HTTP_HEAD_TIMEOUT_MS",
        added=True,
    ),
    Option(
        *("--http-body-timeout-ms", "MS", milliseconds, "60000", _REQUESTS),
        "Answer 408 and close if a client sends nothing of its body for this long while it is read; a slow but steady "
        "upload is not meant; 0 waits for ever.",
        env="STARGATE_HTTP_BODY_TIMEOUT_MS",
        added=True,
    ),
    Option(
        *("--http-max-connections", "N", count_above_zero, "65536", _REQUESTS),
        "Client connections open at a time; further ones are closed at once, as they are when file descriptors run out.",
        env="STARGATE_HTTP_MAX_CONNECTIONS",
        added=True,
    ),
    Option(
        *("--proxy-no-repeat-accepted", None, true_or_false, None, _REQUESTS),
        "Never send a request again that a worker has received in full, so that nothing is generated twice.",
        env="STARGATE_PROXY_NO_REPEAT_ACCEPTED",
        added=True,
    ),
    Option(
        *("--lb-config-path", "PATH", text, None, _REQUESTS),
        "Load-balancer configuration (JSON); without it power-of-n, and every algorithm on request.",
    ),
    Option(
        *("--lb-config-poll-ms", "MS", milliseconds, "10000", _REQUESTS),
        "How often that file is looked at for changes; 0 reads it once.",
        env="STARGATE_LB_CONFIG_POLL_MS",
        added=True,
    ),
    Option(
        *("--registration-update-idle-timeout-ms", "MS", milliseconds, "60000", _REGISTRATION),
        "Least silence after which a registration ends; 0 never ends one.",
        env="STARGATE_REGISTRATION_UPDATE_IDLE_TIMEOUT_MS",
    ),
    Option(
        *("--registration-update-max-idle-timeout-ms", "MS", milliseconds, "300000", _REGISTRATION),
        "Most silence, also for workers that do not tell their interval; 0 never ends one.",
        env="STARGATE_REGISTRATION_UPDATE_MAX_IDLE_TIMEOUT_MS",
    ),
    Option(
        *("--worker-auth-endpoint", "URL", text, None, _REGISTRATION),
        "gRPC service that turns a worker's token into its routing key; without it every worker is accepted.",
    ),
    Option(
        *("--worker-auth-connect-timeout-ms", "MS", milliseconds_above_zero, "10000", _REGISTRATION),
        "How long start-up tries to reach that service before it gives up.",
        env="STARGATE_WORKER_AUTH_CONNECT_TIMEOUT_MS",
        added=True,
    ),
    Option(
        *("--worker-auth-timeout-ms", "MS", milliseconds_above_zero, "5000", _REGISTRATION),
        "Limit for one call of that service; a failed call is tried once more.",
        env="STARGATE_WORKER_AUTH_TIMEOUT_MS",
        added=True,
    ),
    Option(
        *("--worker-auth-cache-ms", "MS", milliseconds, "5000", _REGISTRATION),
        "How long a positive answer is remembered; 0 asks every time.",
        env="STARGATE_WORKER_AUTH_CACHE_MS",
        added=True,
    ),
    Option(
        *("--tls-cert-path", "PATH", text, None, _TLS),
        "Reverse mode: certificate chain served to workers. Direct mode: certificates that workers are checked against.",
        env="STARGATE_TLS_CERT_PATH",
    ),
    Option(
        *("--tls-key-path", "PATH", text, None, _TLS),
        "Private key of the served chain; not looked at in direct mode.",
        env="STARGATE_TLS_KEY_PATH",
    ),
    Option(
        *("--quic-insecure", None, true_or_false, None, _TLS),
        "Do not verify workers that this router dials; QUIC stays encrypted.",
        env="STARGATE_QUIC_INSECURE",
    ),
    Option(
        *("--tls-poll-ms", "MS", milliseconds_above_zero, "30000", _TLS),
        "How often the certificate files are looked at for changes.",
        env="STARGATE_TLS_POLL_MS",
        added=True,
    ),
    Option(
        *("--grpc-tls-cert-path", "PATH", text, None, _TLS),
        "Serve both gRPC ports with TLS and this certificate chain.",
        env="STARGATE_GRPC_TLS_CERT_PATH",
        added=True,
    ),
    Option(
        *("--grpc-tls-key-path", "PATH", text, None, _TLS),
        "Private key of that chain.",
        env="STARGATE_GRPC_TLS_KEY_PATH",
        added=True,
    ),
    Option(
        *("--secrets-path", "PATH", text, None, _TLS),
        "JSON file with this router's own credentials; read anew for every use.",
        env="SECRETS_PATH",
    ),
    Option(
        *("--secrets-json-path", "KEY", text, None, _TLS),
        "Dotted path to the bearer token in that file; authToken if not given.",
        env="SECRETS_JSON_PATH",
    ),
    Option(
        *("--oauth2-provider-host", "URL", text, None, _TLS),
        "Get the bearer token at <URL>/token with the client credentials of the secrets file.",
        env="OAUTH2_PROVIDER_HOST",
    ),
    Option(
        *("--metrics-prefix", "PREFIX", text, "stargate_", _OBSERVE),
        "Put before every metric name.",
    ),
    Option(
        *("--metrics-families", "SET", metric_families, "contract", _OBSERVE),
        "What /metrics shows: 'contract' (what existing dashboards know) or 'all'. /metrics/all always shows all.",
        env="STARGATE_METRICS_FAMILIES",
        added=True,
    ),
    Option(
        *("--log-format", "FORMAT", log_format, "text", _OBSERVE),
        "Lines for people (text) or one JSON object per line (json). RUST_LOG sets the level.",
        env="STARGATE_LOG_FORMAT",
        added=True,
    ),
    Option(
        *("--access-log", None, true_or_false, None, _OBSERVE),
        "One line per finished request: id, status, worker, attempts, times and how it ended; never content.",
        env="STARGATE_ACCESS_LOG",
        added=True,
    ),
    Option(
        *("--otel-endpoint", "URL", text, None, _OBSERVE),
        "Export of traces. Not available yet: start-up stops if given.",
        env="OTEL_EXPORTER_OTLP_ENDPOINT",
    ),
    Option("--otel-service-name", "NAME", text, "stargate", _OBSERVE, "Service name in traces."),
    Option(
        *("--shutdown-drain-timeout-ms", "MS", milliseconds, "30000", _LIFE),
        "Time to finish what runs after SIGTERM or SIGINT; a second signal ends at once.",
    ),
    Option(
        *("--lame-duck-ms", "MS", milliseconds, "0", _LIFE),
        "After SIGTERM keep the HTTP port open this long, answering new requests with 503, and keep the metrics port "
        "until the end. Part of the drain time; 0 closes both at once.",
        env="STARGATE_LAME_DUCK_MS",
        added=True,
    ),
    Option(
        *("--ports-file", "PATH", text, None, _LIFE),
        "Once ready, write the bound addresses there as JSON.",
        env="STARGATE_PORTS_FILE",
        added=True,
    ),
)
