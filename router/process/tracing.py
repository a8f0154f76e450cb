"""Opens the export of traces, if an endpoint is set; whatever fails here is one warning, never the end of the start.

The modules of the OpenTelemetry SDK (the extra `[otel]`) are imported here and only here, and only with an endpoint.
"""

import os
import sys
from random import Random
from typing import TYPE_CHECKING

import structlog

from router.config.settings import OPTIONS, Settings
from router.telemetry import build
from router.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from router.telemetry.otlp.environment import TracingEnvironment
    from router.telemetry.otlp.tracer import OtlpTracer

_log = structlog.get_logger()

SWITCH_INTERVAL_S = 0.0005
"""Longest time in seconds that the exporting thread holds the interpreter when the event loop wants to run.

It encodes spans for tens of milliseconds, and Python's default would make each turn of the event loop wait for 5 ms.
"""

FLUSH_S = 1.0
"""Longest time in seconds that the end of the process waits for the collector."""


def open_tracer(settings: Settings, metrics: Metrics) -> "OtlpTracer | None":
    """The tracer, whose `close` the caller awaits at the end; None without an endpoint, or if it cannot be used."""
    endpoint = (settings.otel_endpoint or "").strip() or None
    if endpoint is None and not os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip():
        return None
    from router.telemetry.otlp.environment import read_environment

    environment = read_environment(os.environ, endpoint)
    for refused in environment.refused:
        _log.warning(
            "value for the export of traces is not usable; it is ignored",
            variable=refused.variable,
            error=refused.reason,
        )
    if environment.disabled:
        _log.info("traces are not exported: the environment disables it")
        return None
    if environment.endpoint is None:
        _log.warning("traces are not exported: no usable endpoint")
        return None
    _replace_variables(environment)
    tracer = _make_tracer(settings, environment)
    if tracer is not None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        _count(tracer, metrics)
        if not tracer.exporter.authenticated:
            _log.warning("no tracingAccessToken; OTLP trace export is unauthenticated")
        _log.info("traces are exported", endpoint=environment.shown_endpoint, protocol=environment.protocol)
    return tracer


def _replace_variables(environment: "TracingEnvironment") -> None:
    """Let the SDK, which reads the process's environment, see only values that it can use."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    os.environ.update(environment.variables)


def _make_tracer(settings: Settings, environment: "TracingEnvironment") -> "OtlpTracer | None":
    default_name = next(option.default for option in OPTIONS if option.flag == "--otel-service-name")
    try:
        from router.telemetry.otlp.access_token import AccessToken
        from router.telemetry.otlp.tracer import OtlpTracer

        return OtlpTracer(
            environment,
            AccessToken(settings.secrets_path),
            service_name=settings.otel_service_name,
            default_name=str(default_name),
            attributes={"service.version": build.build_version(), "service.instance.id": settings.stargate_id},
            random=Random(),  # noqa: S311 - ids and samples, not secrets
        )
    except ImportError as error:
        _log.warning(
            "traces are not exported: the OpenTelemetry SDK, the extra [otel], is not installed", error=str(error)
        )
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises, the router starts without traces
        _log.warning("traces are not exported: the OpenTelemetry SDK does not start", error=repr(error))
    return None


def _count(tracer: "OtlpTracer", metrics: Metrics) -> None:
    """Register the counters, which other threads increase, to be read at each scrape."""
    exporter, queue = tracer.exporter, tracer.queue
    metrics.trace_spans_total.track(lambda: exporter.exported, ("exported",))
    metrics.trace_spans_total.track(lambda: exporter.failed, ("export_failed",))
    metrics.trace_spans_total.track(lambda: queue.dropped, ("queue_full",))
