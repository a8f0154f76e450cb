"""The options of what operators see, a part of `Settings`: see `router/config/settings.py` for the rules."""

from dataclasses import dataclass
from typing import Literal

from router.config.option import option, switch
from router.config.option_values import (
    log_format,
    metric_families,
    text,
)
from router.config.worker_options import WorkerOptions
from router.telemetry.settings import METRICS_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorOptions(WorkerOptions):
    """Metrics, logs and traces."""

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
