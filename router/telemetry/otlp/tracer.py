"""The tracer: spans of the OpenTelemetry SDK, exported by its batch processor in a thread of its own.

Whether a request is sampled is decided before (`Sampling`), so every span created here is recorded. The queue of the batch
processor is bounded; spans that find it full are dropped and counted.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from random import Random
from typing import Final

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from router.telemetry.otlp.access_token import AccessToken
from router.telemetry.otlp.environment import GRPC, TracingEnvironment
from router.telemetry.otlp.exporter import CountingExporter, MakeExporter
from router.telemetry.trace_context import Sampling, TraceContext
from router.telemetry.tracing import Attributes
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

QUEUED_SPANS: Final = Limit("tracing.queued_spans", pieces=2048)
"""Spans that wait for their export, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class LostSpan:
    """Takes the place of a span that the SDK could not create: the context goes on, and nothing is recorded."""

    __slots__ = ("context", "tracestate")

    def __init__(self, context: TraceContext, tracestate: bytes) -> None:
        self.context = context
        self.tracestate = tracestate

    def child(self, name: str, attributes: Attributes, start_ns: int) -> "LostSpan":  # noqa: ARG002 - see `Span`
        """The same: a called service continues the trace below the caller's span."""
        return self

    def event(self, name: str, attributes: Attributes, at_ns: int) -> None:
        """Does nothing."""

    def end(self, attributes: Attributes, end_ns: int, *, error: str | None = None) -> None:
        """Does nothing."""


class OtlpSpan:
    """A recorded span; see `router.telemetry.tracing.Span`. What the SDK raises is logged."""

    __slots__ = ("_span", "_tracer", "context", "tracestate")

    def __init__(self, tracer: "OtlpTracer", span: SdkSpan, tracestate: bytes) -> None:
        own = span.get_span_context()
        self._tracer = tracer
        self._span = span
        self.context = TraceContext(format_trace_id(own.trace_id), format_span_id(own.span_id), sampled=True)
        self.tracestate = tracestate

    def child(self, name: str, attributes: Attributes, start_ns: int) -> "OtlpSpan | LostSpan":
        """See `Span.child`."""
        try:
            return OtlpSpan(self._tracer, self._tracer.begin(name, self._span, attributes, start_ns), self.tracestate)
        except Exception:  # noqa: BLE001 - logged: what is observed goes on
            _log.exception("span cannot be recorded", span=name)
            return LostSpan(self.context, self.tracestate)

    def event(self, name: str, attributes: Attributes, at_ns: int) -> None:
        """See `Span.event`."""
        try:
            self._span.add_event(name, dict(attributes), at_ns)
        except Exception:  # noqa: BLE001 - logged: what is observed goes on
            _log.exception("event of a span cannot be recorded", event_name=name)

    def end(self, attributes: Attributes, end_ns: int, *, error: str | None = None) -> None:
        """See `Span.end`."""
        try:
            self._span.set_attributes(dict(attributes))
            if error is not None:
                self._span.set_status(StatusCode.ERROR, error)
            self._span.end(end_ns)
        except Exception:  # noqa: BLE001 - logged: what is observed goes on
            _log.exception("span cannot be recorded", span=self._span.name)


class OtlpTracer:
    """Creates spans and owns the thread that exports them; see `router.telemetry.tracing.Tracer`."""

    def __init__(
        self,
        environment: TracingEnvironment,
        token: AccessToken,
        *,
        service_name: str,
        default_name: str,
        attributes: Mapping[str, str],
        random: Random,
        make_exporter: MakeExporter | None = None,
    ) -> None:
        """Start the exporting thread. Raises what the SDK raises for variables that `environment` does not check.

        `service_name` names this service in traces; if it is `default_name`, the name in the environment wins.
        `attributes` of the resource are replaced by those of the environment. `make_exporter` makes another exporter
        than that of `environment.protocol`.
        """
        self.sampling = Sampling(environment.share, random, parent_based=environment.parent_based)
        self.exporter = CountingExporter(
            make_exporter or (lambda headers: _make_exporter(environment.protocol, headers)),
            environment.headers,
            token,
            environment.shown_endpoint,
        )
        self.resource = _resource(service_name, default_name, attributes, environment)
        limit = int(environment.variables.get("OTEL_BSP_MAX_QUEUE_SIZE", QUEUED_SPANS.pieces or 0))
        self._ids = _Ids(random)
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=self.resource, shutdown_on_exit=False, id_generator=self._ids
        )
        self.queue = _BoundedQueue(self.exporter, limit)
        self._provider.add_span_processor(self.queue)
        tracer = self._provider.get_tracer(str(self.resource.attributes["service.name"]))
        if not isinstance(tracer, SdkTracer):
            raise TypeError("the OpenTelemetry SDK is disabled")
        self._tracer = tracer

    def start(
        self, name: str, caller: TraceContext | None, decided: TraceContext, tracestate: Sequence[bytes], start_ns: int
    ) -> OtlpSpan | LostSpan:
        """See `Tracer.start`."""
        try:
            return self._start(name, caller, decided, tracestate, start_ns)
        except Exception:  # noqa: BLE001 - logged: what is observed goes on
            _log.exception("span cannot be recorded", span=name)
            return LostSpan(decided, b"" if caller is None else b",".join(tracestate))

    def _start(
        self, name: str, caller: TraceContext | None, decided: TraceContext, tracestate: Sequence[bytes], start_ns: int
    ) -> OtlpSpan:
        if caller is None:
            self._ids.trace_id = int(decided.trace_id, 16)
            return OtlpSpan(self, self.begin(name, None, {}, start_ns), b"")
        state = TraceState.from_header([value.decode("latin-1") for value in tracestate])
        remote = SpanContext(int(caller.trace_id, 16), int(caller.span_id, 16), True, _SAMPLED, state)
        span = self.begin(name, NonRecordingSpan(remote), {}, start_ns)
        return OtlpSpan(self, span, state.to_header().encode())

    def begin(
        self, name: str, parent: SdkSpan | NonRecordingSpan | None, attributes: Attributes, start_ns: int
    ) -> SdkSpan:
        """Start a span of the SDK: one for a request that came in if its parent is remote or None, else one for a call."""
        outgoing = isinstance(parent, SdkSpan)
        span = self._tracer.start_span(
            name,
            context=None if parent is None else set_span_in_context(parent),
            kind=SpanKind.CLIENT if outgoing else SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=start_ns,
        )
        if not isinstance(span, SdkSpan):
            raise TypeError("the OpenTelemetry SDK records nothing")
        return span

    async def close(self, timeout_s: float) -> None:
        """Export what is queued within `timeout_s` seconds, not at all if the collector did not take the last batch."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        waiting = 0 if self.exporter.failing else timeout_s

        def flush() -> None:
            try:
                self._provider.shutdown()
            finally:
                done.set_result(None)

        threading.Thread(target=flush, name="end of tracing", daemon=True).start()
        wrapped = asyncio.wrap_future(done)
        await asyncio.wait([wrapped], timeout=waiting)
        if not wrapped.done():
            self.exporter.shutdown()
            left = self.queue.accepted - self.exporter.exported - self.exporter.failed
            _log.warning("traces were not exported before the end", spans=left)
        wrapped.cancel()


class _BoundedQueue(SpanProcessor):
    """The batch processor, with a count of what it has no place for. Spans are passed by one thread only."""

    def __init__(self, exporter: CountingExporter, limit: int) -> None:
        self._exporter = exporter
        self._limit = limit
        self._processor = BatchSpanProcessor(exporter)
        self.accepted = 0
        """Spans that were queued."""
        self.dropped = 0
        """Spans that were not, because the queue was full."""

    @property
    def left(self) -> int:
        """Spans in the queue."""
        return self.accepted - self._exporter.taken

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, unless the queue is full."""
        if self.left >= self._limit:
            self.dropped += 1
        else:
            self.accepted += 1
            self._processor.on_end(span)

    def shutdown(self) -> None:
        """Export what is queued, and end the thread."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what is queued."""
        return self._processor.force_flush(timeout_millis)


class _Ids(IdGenerator):
    """Ids of spans, and the trace id that was decided on."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.trace_id = 0

    def generate_span_id(self) -> int:
        """Any id but 0."""
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        """The id of the trace that begins."""
        return self.trace_id or 1


def _make_exporter(protocol: str, headers: Mapping[str, str]) -> SpanExporter:
    if protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(headers=dict(headers))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(headers=dict(headers))


def _resource(
    service_name: str, default_name: str, attributes: Mapping[str, str], environment: TracingEnvironment
) -> Resource:
    """The resource of all spans: ours, unless the environment names an attribute itself."""
    pairs = environment.variables.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    given = {pair.partition("=")[0].strip() for pair in pairs}
    if "OTEL_SERVICE_NAME" in environment.variables:
        given.add("service.name")
    ours = {name: value for name, value in attributes.items() if name not in given}
    if service_name != default_name or "service.name" not in given:
        ours["service.name"] = service_name
    return Resource.create(ours)
