"""The worker's command line options, compatible with the reference worker's, as one frozen object.

Options of the reference that this worker does not use are accepted with a warning, so that existing start scripts work.
"""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stargate_client.router_address import GrpcAddress, parse_grpc_address
from tunnel_protocol.head import UPSTREAM_RETRYABLE
from tunnel_protocol.unsigned import MAX_U64

_UNUSED_WITH_VALUE = (
    "quic-listen-addr",
    "model-discovery-provider",
    "tls-key-path",
    "canary-max-generation-threshold",
    "calibration-requests",
    "calibration-prompt-units",
    "calibration-max-concurrency",
    "bringup-calibration-timeout-ms",
    "engine-stats-stream",
    "engine-stats-stream-path",
    "otel-endpoint",
    "otel-service-name",
    "collect-quality-metrics-min-tokens",
    "quality-output-tokens-threshold-min",
    "quality-output-compression-threshold-max",
    "quality-output-degeneracy-threshold-min",
    "quality-output-repetition-1gram-threshold-min",
    "quality-output-repetition-2gram-threshold-min",
    "quality-output-repetition-3gram-threshold-min",
    "quality-median-logprob-threshold-max",
)
_UNUSED_SWITCHES = ("do-calibration", "collect-quality-metrics")
_ENVIRONMENT = {
    "tls-cert-path": "STARGATE_TLS_CERT_PATH",
    "grpc-tls-ca-cert-path": "STARGATE_GRPC_TLS_CA_CERT_PATH",
    "auth-token": "STARGATE_AUTH_TOKEN",
    "auth-token-file": "STARGATE_AUTH_TOKEN_FILE",
    "pylon-retryable-upstream-status-codes": "PYLON_RETRYABLE_UPSTREAM_STATUS_CODES",
    "pylon-require-upstream-retry-header": "PYLON_REQUIRE_UPSTREAM_RETRY_HEADER",
    "pylon-upstream-retry-header": "PYLON_UPSTREAM_RETRY_HEADER",
    "pylon-propagate-retry-after": "PYLON_PROPAGATE_RETRY_AFTER",
    "pylon-local-connect-failures-retryable": "PYLON_LOCAL_CONNECT_FAILURES_RETRYABLE",
    "pylon-queue-mismatch-retry-enabled": "PYLON_QUEUE_MISMATCH_RETRY_ENABLED",
    "pylon-queue-mismatch-min-delta-ms": "PYLON_QUEUE_MISMATCH_MIN_DELTA_MS",
    "pylon-queue-mismatch-tolerance-factor": "PYLON_QUEUE_MISMATCH_TOLERANCE_FACTOR",
    "pylon-queue-mismatch-retry-after-ms": "PYLON_QUEUE_MISMATCH_RETRY_AFTER_MS",
    "pylon-upstream-backend": "PYLON_UPSTREAM_BACKEND",
    "pylon-priority-ceiling": "PYLON_PRIORITY_CEILING",
}


@dataclass(frozen=True)
class RetryPolicy:
    """Which engine responses are marked as retryable for the router."""

    statuses: frozenset[int] = frozenset((429, 503))
    require_header: bool = True
    header: bytes = UPSTREAM_RETRYABLE
    propagate_retry_after: bool = True
    connect_failures: bool = False


@dataclass(frozen=True)
class QueueAdmission:
    """When to refuse a request because the router's estimate of the queue time is too low."""

    enabled: bool = True
    min_delta_ms: int = 25
    tolerance: float = 1.25
    retry_after_ms: int | None = None


@dataclass(frozen=True)
class WorkerSettings:
    """The worker's settings. Times in milliseconds."""

    engine_url: str
    stargate_address: GrpcAddress
    inference_server_id: str
    cluster_id: str
    models: tuple[str, ...]
    discovery_interval_ms: int
    discovery_timeout_ms: int
    trust_path: Path | None
    """Certificates to trust when dialling tunnels; on gRPC connections too, unless `grpc_tls_ca_cert_path` is given."""
    grpc_tls_ca_cert_path: Path | None
    quic_insecure: bool
    update_interval_ms: int
    auth_token: str | None
    auth_token_file: Path | None
    initial_input_tps: float | None
    pin_input_tps: bool
    max_engine_concurrency: int
    """Requests that the engine processes at a time, for each model; 0 = unknown."""
    disable_bringup: bool
    health_paths: tuple[str, ...]
    health_wait_ms: int
    health_timeout_ms: int
    health_interval_ms: int
    engine_silence_ms: int
    """How long an engine may be silent within a stream of events, also before the first; 0 = for ever."""
    kv_cache_stats_path: str | None
    retry: RetryPolicy
    admission: QueueAdmission
    dynamo_priorities: bool
    priority_ceiling: int
    metrics_host: str
    metrics_port: int
    ports_file: Path | None
    ignored: tuple[str, ...] = ()

    @property
    def engine_silence_s(self) -> float | None:
        """`engine_silence_ms` in seconds; None for ever."""
        return self.engine_silence_ms / 1000 if self.engine_silence_ms else None


def _milliseconds(text: str) -> int:
    value = int(text)
    if value < 0:
        message = "must not be negative"
        raise argparse.ArgumentTypeError(message)
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        message = "must be greater than 0"
        raise argparse.ArgumentTypeError(message)
    return value


def _concurrency(text: str) -> int:
    return min(_positive(text), MAX_U64)


def _file(text: str) -> Path:
    if not text.strip():
        message = "the path of a file is needed"
        raise argparse.ArgumentTypeError(message)
    return Path(text)


def _router(text: str) -> GrpcAddress:
    address = parse_grpc_address(text)
    try:
        address.host_and_port()
    except ValueError:
        message = "expected host:port, http://host:port (cleartext) or https://host:port (TLS)"
        raise argparse.ArgumentTypeError(message) from None
    return address


def _rate(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value <= 0:
        message = "must be finite and greater than 0"
        raise argparse.ArgumentTypeError(message)
    return value


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        message = "expected true or false"
        raise argparse.ArgumentTypeError(message)
    return text == "true"


def _base_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        message = "expected an http(s) URL with a host"
        raise argparse.ArgumentTypeError(message)
    return text.rstrip("/")


def _model(text: str) -> str:
    if not text.strip():
        message = "a model name must not be blank"
        raise argparse.ArgumentTypeError(message)
    return text


def _path(text: str) -> str:
    return text if text.startswith("/") else f"/{text}"


def _statuses(text: str) -> frozenset[int]:
    found = {int(part) for part in text.split(",") if part.strip()}
    if any(not 100 <= status <= 999 for status in found):
        message = "expected a comma-separated list of status codes"
        raise argparse.ArgumentTypeError(message)
    return frozenset(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stargate-client",
        description="Serve an OpenAI-compatible engine through routers, over reverse QUIC tunnels.",
        allow_abbrev=False,
        epilog="example: stargate-client --upstream-http-base-url http://127.0.0.1:8090 --model-name tiny "
        "--stargate-address 127.0.0.1:50071 --inference-server-id w1 --backend-connectivity reverse --quic-insecure",
    )
    add = parser.add_argument
    add("--upstream-http-base-url", type=_base_url, required=True, help="the engine")
    add("--model-name", type=_model, action="append", default=[], help="a model; none given: ask the engine")
    add("--model-discovery-poll-interval-ms", type=_positive, default=5000)
    add("--model-discovery-request-timeout-ms", type=_positive, default=5000)
    add(
        "--stargate-address",
        type=_router,
        default="127.0.0.1:50071",
        help="gRPC address of any router: host:port, or https://host:port for TLS",
    )
    add("--inference-server-id", default="pylon", help="unique id of this worker")
    add("--cluster-id", default=None, help="workers that share an engine pool (default: the worker's id)")
    add("--tls-cert-path", type=Path, default=None, help="PEM certificates to trust when dialling routers")
    add(
        "--grpc-tls-ca-cert-path",
        type=_file,
        default=None,
        help="PEM certificates to trust, besides the system's, on gRPC connections with TLS (default: --tls-cert-path)",
    )
    add("--quic-insecure", action="store_true", help="accept any certificate of a router")
    add("--backend-connectivity", choices=("direct", "reverse"), default="direct", help="only reverse is served here")
    add("--tunnel-protocol", default="raw-quic", help="only raw-quic is served here")
    add("--min-update-interval-ms", type=_positive, default=1000, help="heartbeat interval")
    add("--auth-token", default=None, help="token for routers that ask for one")
    add("--auth-token-file", type=Path, default=None, help="file with the token; read again for each use")
    add("--initial-input-tps", type=_rate, default=None, help="prompt tokens per second to report at first")
    add("--benchmark-pin-input-tps", action="store_true", help="keep reporting --initial-input-tps")
    add(
        "--max-engine-concurrency",
        type=_concurrency,
        default=0,
        help="requests of one model that the engine processes at a time; below that none queues",
    )
    add("--disable-bringup", action="store_true", help="do not wait for, nor watch, the engine's health")
    add("--upstream-health-path", type=_path, action="append", default=[], help="engine path to ask for its health")
    add("--upstream-health-wait-ms", type=int, default=60_000, help="how long to wait for a healthy engine")
    add("--bringup-canary-timeout-ms", type=_positive, default=5000, help="time limit of one health question")
    add("--active-canary-interval-ms", type=int, default=5000, help="0: do not watch the engine's health")
    add("--engine-health-interval-ms", type=_positive, default=1000, help="pause between two health questions")
    add(
        "--engine-silence-timeout-ms",
        type=_milliseconds,
        default=600_000,
        help="how long a stream of the engine may be silent, its first event included; 0: for ever",
    )
    add("--kv-cache-stats-path", type=_path, default=None, help="engine path with KV cache figures")
    add("--metrics-host", default="0.0.0.0", help="IP address of the metrics page")
    add("--metrics-port", type=int, default=0, help="port of the metrics page; 0: any free one")
    add("--ports-file", type=Path, default=None, help="write the bound ports to this file, as JSON")
    add("--pylon-retryable-upstream-status-codes", type=_statuses, default=frozenset((429, 503)))
    add("--pylon-require-upstream-retry-header", type=_boolean, default=True)
    add("--pylon-upstream-retry-header", default=UPSTREAM_RETRYABLE.decode())
    add("--pylon-propagate-retry-after", type=_boolean, default=True)
    add("--pylon-local-connect-failures-retryable", type=_boolean, default=False)
    add("--pylon-queue-mismatch-retry-enabled", type=_boolean, default=True)
    add("--pylon-queue-mismatch-min-delta-ms", type=int, default=25)
    add("--pylon-queue-mismatch-tolerance-factor", type=_rate, default=1.25)
    add("--pylon-queue-mismatch-retry-after-ms", type=int, default=None)
    add(
        "--pylon-upstream-backend",
        type=lambda text: text.strip().lower(),
        choices=("dynamo", "passthrough"),
        default="dynamo",
    )
    add("--pylon-priority-ceiling", type=int, default=3600)
    for name in _UNUSED_WITH_VALUE:
        add(f"--{name}", default=None, help=argparse.SUPPRESS)
    for name in _UNUSED_SWITCHES:
        add(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    return parser


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> WorkerSettings:
    """Settings from command line arguments; exits with code 2 and a message for invalid ones."""
    environment = os.environ if environment is None else environment
    words = list(arguments)
    given = {word.split("=", 1)[0] for word in words}
    for flag, variable in _ENVIRONMENT.items():
        if variable in environment and f"--{flag}" not in given:
            words.append(f"--{flag}={environment[variable]}")
    parser = _parser()
    found = parser.parse_args(words)
    insecure = environment.get("STARGATE_QUIC_INSECURE")
    if insecure not in (None, "true", "false"):
        parser.error("STARGATE_QUIC_INSECURE must be true or false")
    if found.backend_connectivity != "reverse":
        parser.error("--backend-connectivity=direct is not served by this worker; give --backend-connectivity=reverse")
    if found.tunnel_protocol != "raw-quic":
        parser.error(f"--tunnel-protocol={found.tunnel_protocol} is not served by this worker; only raw-quic is")
    if found.benchmark_pin_input_tps and found.initial_input_tps is None:
        parser.error("--benchmark-pin-input-tps needs --initial-input-tps")
    quic_insecure = found.quic_insecure or insecure == "true"
    if not quic_insecure and found.tls_cert_path is None:
        parser.error("a router can be dialled only with --tls-cert-path or --quic-insecure")
    return WorkerSettings(
        engine_url=found.upstream_http_base_url,
        stargate_address=found.stargate_address,
        inference_server_id=found.inference_server_id,
        cluster_id=found.cluster_id or found.inference_server_id,
        models=tuple(sorted(set(found.model_name))),
        discovery_interval_ms=found.model_discovery_poll_interval_ms,
        discovery_timeout_ms=found.model_discovery_request_timeout_ms,
        trust_path=found.tls_cert_path,
        grpc_tls_ca_cert_path=found.grpc_tls_ca_cert_path,
        quic_insecure=quic_insecure,
        update_interval_ms=found.min_update_interval_ms,
        auth_token=found.auth_token,
        auth_token_file=found.auth_token_file,
        initial_input_tps=found.initial_input_tps,
        pin_input_tps=found.benchmark_pin_input_tps,
        max_engine_concurrency=found.max_engine_concurrency,
        disable_bringup=found.disable_bringup,
        health_paths=tuple(dict.fromkeys([*found.upstream_health_path, "/health", "/v1/health/ready"])),
        health_wait_ms=found.upstream_health_wait_ms,
        health_timeout_ms=found.bringup_canary_timeout_ms,
        health_interval_ms=0 if not found.active_canary_interval_ms else found.engine_health_interval_ms,
        engine_silence_ms=found.engine_silence_timeout_ms,
        kv_cache_stats_path=found.kv_cache_stats_path,
        retry=RetryPolicy(
            found.pylon_retryable_upstream_status_codes,
            found.pylon_require_upstream_retry_header,
            found.pylon_upstream_retry_header.strip().lower().encode(),
            found.pylon_propagate_retry_after,
            found.pylon_local_connect_failures_retryable,
        ),
        admission=QueueAdmission(
            found.pylon_queue_mismatch_retry_enabled,
            found.pylon_queue_mismatch_min_delta_ms,
            found.pylon_queue_mismatch_tolerance_factor,
            found.pylon_queue_mismatch_retry_after_ms,
        ),
        dynamo_priorities=found.pylon_upstream_backend == "dynamo",
        priority_ceiling=min(found.pylon_priority_ceiling, (1 << 31) - 1),
        metrics_host=found.metrics_host,
        metrics_port=found.metrics_port,
        ports_file=found.ports_file,
        ignored=tuple(
            f"--{n}" for n in (*_UNUSED_WITH_VALUE, *_UNUSED_SWITCHES) if getattr(found, n.replace("-", "_"))
        ),
    )


def read_token(settings: WorkerSettings) -> str | None:
    """The current token, read again from its file if one is configured. Raises `OSError` if it cannot be read."""
    if settings.auth_token is not None:
        return settings.auth_token
    if settings.auth_token_file is not None:
        return settings.auth_token_file.read_text().strip()
    return None
