"""The spans of one proxied request: one for the request, one below it for each attempt, with the attributes of the reference.

Names and types of attributes are those of the reference, whose 64-bit numbers are texts: docs/operations.md, "Traces". The
sampling decision comes first: a request that is not sampled gets at most a `traceparent` header that says so.
"""

import time
from typing import Final, Protocol

from router.http1.request import ClientRequest
from router.http1.response import ResponseWriter
from router.proxy.placement import RoutedChoice
from router.proxy.retry_state import RetryState
from router.proxy.validation import InvalidRequestError, ValidRequest
from router.registry import Backend, Registry, TargetKey
from router.telemetry.trace_context import TRACEPARENT, TRACESTATE, TraceContext, parse_traceparent
from router.telemetry.tracing import AttributeValue, Span, Tracer
from tunnel_protocol.head import HeaderList
from tunnel_protocol.limit import Limit

REQUEST: Final = "proxy_openai_request"
ATTEMPT: Final = "proxy_upstream_http_request"

ATTRIBUTE_TEXT: Final = Limit("tracing.attribute_text", bytes=1024)
"""Longest text in an attribute; spans wait in a queue, so that what clients choose is bounded."""

_MAX_TEXT: Final = ATTRIBUTE_TEXT.bytes or 0
_CONTEXT: Final = (TRACEPARENT, TRACESTATE)
_MAX_INTEGER: Final = (1 << 63) - 1
"""What an attribute can hold; a worker may report larger estimates, and the whole batch could not be sent."""
_SERVER_ERROR: Final = 500
_ROUTING_METHOD: Final = b"x-routing-method"
_TEXTUAL: Final = bytes(range(0x20, 0x7F)) + b"\t"


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float:
        """Now."""


class RequestTrace:
    """A request that is not recorded, but whose workers have to be told so; all methods but `headers` do nothing."""

    __slots__ = ("_bare", "_keeps_state", "_traceparent")

    def __init__(self, forwarded: TraceContext, *, keeps_state: bool, bare: bool = False) -> None:
        """Forward this context; `keeps_state`: with the client's `tracestate`, `bare`: the client has sent no context."""
        self._traceparent = forwarded.traceparent()
        self._keeps_state = keeps_state
        self._bare = bare

    def headers(self, headers: HeaderList) -> HeaderList:
        """`headers` of the current attempt with the context that its worker gets."""
        if self._bare:
            return [*headers, (TRACEPARENT, self._traceparent)]
        return _with_context(headers, self._traceparent, None if self._keeps_state else b"")

    def chosen(self, chosen: RoutedChoice, now: float) -> None:
        """A cluster was chosen."""

    def not_admitted(self, reason: str) -> None:
        """Input-work admission refused the request."""

    def attempt_begins(self, backend: Backend) -> None:
        """An attempt on this worker begins."""

    def attempt_failed(self, reason: str, held_bytes: int) -> None:
        """The attempt got no response head."""

    def attempt_answered(self, status: int, held_bytes: int, now: float) -> None:
        """The attempt got a response head."""

    def retried(self, reason: str) -> None:
        """Another attempt follows because of `reason`."""

    def broken_off(self, reason: str) -> None:
        """The response failed after its head was sent."""

    def finished(self, response: ResponseWriter, end: str, now: float) -> None:
        """The request has ended; `end` is one of the values in `AccessLog`."""


class SampledRequest(RequestTrace):
    """A request that is recorded. `now` is in monotonic seconds."""

    __slots__ = (
        "_attempt",
        "_attempt_attributes",
        "_attempt_began_at",
        "_attributes",
        "_chosen",
        "_clock",
        "_failure",
        "_received_at",
        "_received_ns",
        "_registry",
        "_request",
        "_retries",
        "_span",
        "_valid",
    )

    def __init__(
        self,
        span: Span,
        request: ClientRequest,
        valid: ValidRequest,
        retries: RetryState,
        registry: Registry,
        clock: Clock,
        received_ns: int,
    ) -> None:
        super().__init__(span.context, keeps_state=False)
        self._clock = clock
        self._span = span
        self._request = request
        self._valid = valid
        self._retries = retries
        self._registry = registry
        self._received_at = request.received_at
        self._received_ns = received_ns
        self._attributes: dict[str, AttributeValue] = _request_attributes(request, valid)
        self._chosen: RoutedChoice | None = None
        self._attempt: Span | None = None
        self._attempt_began_at = 0.0
        self._attempt_attributes: dict[str, AttributeValue] = {}
        self._failure: str | None = None

    def headers(self, headers: HeaderList) -> HeaderList:
        """See `RequestTrace.headers`: the worker's spans belong below that of the attempt."""
        span = self._span if self._attempt is None else self._attempt
        return _with_context(headers, span.context.traceparent(), span.tracestate)

    def chosen(self, chosen: RoutedChoice, now: float) -> None:
        """See `RequestTrace.chosen`."""
        self._chosen = chosen
        routing, candidate = self._valid.routing, chosen.candidate
        target = self._registry.target(TargetKey(routing.routing_key, routing.model))
        clusters = 0 if target is None else len(target.candidates())
        found = self._attributes
        found["routing.num_candidates"] = str(clusters)
        found["routing.rank_depth"] = chosen.rank_depth
        found["routing.selected_after_kv_free_tokens_skip"] = chosen.skipped_for_kv
        settings = getattr(self._valid.effective.built, "settings", None)
        comparator = getattr(settings, "comparator", None)
        if isinstance(comparator, str):
            found["routing.comparator"] = comparator
        samples = getattr(settings, "sample_count", None)
        if isinstance(samples, int):
            found["routing.sample_count_configured"] = str(samples)
            found["routing.sample_count_effective"] = str(min(samples, clusters))
        found["selected_cluster.id"] = _text(candidate.cluster_id)
        found["selected_inst.output_tps"] = float(candidate.output_tps)
        found["selected_inst.last_mean_input_tps"] = float(candidate.last_mean_input_tps)
        found["selected_inst.max_output_tps"] = float(candidate.max_output_tps)
        found["selected_inst.queue_size"] = str(candidate.queue_size)
        found["selected_inst.queued_input_size"] = str(candidate.queued_input_size)
        found["selected_inst.num_running_queries"] = str(candidate.num_running_queries)
        found["selected_inst.max_engine_concurrency"] = str(candidate.max_engine_concurrency)
        found["selected_inst.total_query_input_size"] = str(candidate.total_query_input_size)
        found["selected_inst.kv_cache_capacity_tokens"] = str(candidate.kv_cache_capacity_tokens)
        found["selected_inst.kv_cache_used_tokens"] = str(candidate.kv_cache_used_tokens)
        found["selected_inst.kv_cache_free_tokens"] = str(candidate.kv_cache_free_tokens)
        found["selected_inst.rtt_ms"] = candidate.rtt_ns / 1e6
        reported_at = getattr(candidate, "received_at", now)
        found["selected_inst.snapshot_age_ms"] = max(now - reported_at, 0.0) * 1000

    def not_admitted(self, reason: str) -> None:
        """See `RequestTrace.not_admitted`."""
        self._attributes["routing.admission_rejection_reason"] = reason

    def attempt_begins(self, backend: Backend) -> None:
        """See `RequestTrace.attempt_begins`."""
        expected_ms = None if self._chosen is None else self._chosen.expected_queue_ms
        server_id = _text(backend.inference_server_id)
        found = self._attributes
        found["selected_inst.id"] = server_id
        shown_ms = min(expected_ms or 0, _MAX_INTEGER)
        found["proxy.queue.expected_ms"] = shown_ms
        self._attempt_began_at = self._clock()
        self._attempt_attributes = {}
        self._failure = None
        self._attempt = self._span.child(
            ATTEMPT,
            {
                "request.endpoint": found["request.endpoint"],
                "http.method": _text(self._request.method.decode("latin-1")),
                "http.path": _text(self._request.target.decode("latin-1")),
                "proxy.attempt": self._retries.attempts,
                "selected_cluster.id": _text(backend.cluster_id),
                "selected_inst.id": server_id,
                "routing.algorithm": self._valid.effective.algorithm,
                "proxy.queue.expected_ms": shown_ms,
                "proxy.queue.expected_present": expected_ms is not None,
            },
            self._wall_ns(self._attempt_began_at),
        )

    def attempt_failed(self, reason: str, held_bytes: int) -> None:
        """See `RequestTrace.attempt_failed`."""
        self._attributes["proxy.upstream_status"] = "502"
        self._attributes["proxy.replay_body_bytes"] = held_bytes
        self._attempt_attributes["proxy.error"] = "502"
        self._failure = _text(reason)
        self._end_attempt(self._clock())

    def attempt_answered(self, status: int, held_bytes: int, now: float) -> None:
        """See `RequestTrace.attempt_answered`."""
        found, of_attempt = self._attributes, self._attempt_attributes
        found["proxy.upstream_status"] = of_attempt["proxy.upstream_status"] = str(status)
        of_attempt["http.response.status_code"] = status
        of_attempt["proxy.time_to_first_byte_ms"] = (now - self._attempt_began_at) * 1000
        found["proxy.time_to_first_byte_ms"] = (now - self._received_at) * 1000
        found["proxy.replay_body_bytes"] = held_bytes
        if status >= _SERVER_ERROR:
            self._failure = f"status {status}"

    def retried(self, reason: str) -> None:
        """See `RequestTrace.retried`."""
        now = self._clock()
        self._attributes["proxy.retry_reason"] = _text(reason)
        self._span.event("retry", {"proxy.retry_reason": _text(reason)}, self._wall_ns(now))
        self._end_attempt(now)

    def broken_off(self, reason: str) -> None:
        """See `RequestTrace.broken_off`."""
        self._failure = _text(reason)

    def finished(self, response: ResponseWriter, end: str, now: float) -> None:
        """See `RequestTrace.finished`."""
        self._end_attempt(now)
        found, retries = self._attributes, self._retries
        found["routing.retry_attempts"] = str(retries.routing_retries)
        found["proxy.attempt"] = retries.attempts
        found["proxy.connect_attempts"] = retries.connect_retries
        found["proxy.request_retries"] = retries.request_retries
        found["proxy.failed_backends"] = len(retries.failed_backends)
        found["proxy.end"] = end
        error = self._failure if end == "truncated" else None
        if response.started:
            found["http.response.status_code"] = response.status
            if response.status >= _SERVER_ERROR:
                error = self._failure or f"status {response.status}"
        self._span.end(found, self._wall_ns(now), error=error)

    def _end_attempt(self, now: float) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end(self._attempt_attributes, self._wall_ns(now), error=self._failure)

    def _wall_ns(self, now: float) -> int:
        return self._received_ns + int((now - self._received_at) * 1e9)


class ProxyTracing:
    """Decides which requests are recorded, and begins their spans."""

    def __init__(self, tracer: Tracer, registry: Registry, clock: Clock) -> None:
        self._tracer = tracer
        self._sampling = tracer.sampling
        self._registry = registry
        self._clock = clock

    def begin(self, request: ClientRequest, valid: ValidRequest, retries: RetryState) -> RequestTrace | None:
        """The trace of a valid request; None if its headers are forwarded as they came and nothing is recorded."""
        traceparent = request.first.get(TRACEPARENT)
        if traceparent is not None and self._sampling.passes_on(traceparent):
            return None
        caller = parse_traceparent(traceparent)
        decided = self._sampling.decide(caller)
        if not decided.sampled:
            if decided is caller:
                return None
            bare = traceparent is None and TRACESTATE not in request.first
            return RequestTrace(decided, keeps_state=bare or caller is not None, bare=bare)
        received_ns = self._received_ns(request)
        span = self._start(request, caller, decided, received_ns)
        return SampledRequest(span, request, valid, retries, self._registry, self._clock, received_ns)

    def refused(self, request: ClientRequest, error: InvalidRequestError) -> None:
        """Record a request that is not valid."""
        caller = parse_traceparent(request.first.get(TRACEPARENT))
        decided = self._sampling.decide(caller)
        if not decided.sampled:
            return
        found: dict[str, AttributeValue] = {
            "request.endpoint": _endpoint(request.path),
            "request.path": _text(request.path.decode("latin-1")),
            "http.response.status_code": error.status,
            "proxy.end": "refused",
            "proxy.refusal_reason": _text(error.reason),
        }
        method = request.first.get(_ROUTING_METHOD)
        if method is not None:
            requested = "<invalid-utf8>" if method.translate(None, _TEXTUAL) else _text(method.strip(b" \t").decode())
            found["routing.requested_algorithm"] = requested
            if "x-routing-method" in error.reason:
                found["routing.invalid_requested_algorithm"] = requested
        received_ns = self._received_ns(request)
        self._start(request, caller, decided, received_ns).end(found, time.time_ns())

    def _start(
        self, request: ClientRequest, caller: TraceContext | None, decided: TraceContext, received_ns: int
    ) -> Span:
        state = [value for name, value in request.headers if name == TRACESTATE] if TRACESTATE in request.first else []
        return self._tracer.start(REQUEST, caller, decided, state, received_ns)

    def _received_ns(self, request: ClientRequest) -> int:
        return time.time_ns() - int((self._clock() - request.received_at) * 1e9)


def _with_context(headers: HeaderList, traceparent: bytes, tracestate: bytes | None) -> HeaderList:
    """`headers` with this `traceparent`, and with this `tracestate`: empty for none, None for the one they have."""
    removed = _CONTEXT if tracestate is not None else (TRACEPARENT,)
    found = [entry for entry in headers if entry[0] not in removed]
    found.append((TRACEPARENT, traceparent))
    if tracestate:
        found.append((TRACESTATE, tracestate))
    return found


def _request_attributes(request: ClientRequest, valid: ValidRequest) -> dict[str, AttributeValue]:
    routing = valid.routing
    return {
        "request.endpoint": _endpoint(request.path),
        "request.routing_key": _text(routing.routing_key or ""),
        "request.model_id": _text(routing.model),
        "request.path": _text(request.path.decode("latin-1")),
        "request.input_tokens": str(routing.input_tokens or 0),
        "request.priority": str(routing.priority),
        "request.max_wait_ms": str(routing.max_wait_ms or 0),
        "request.slo_ms": str(routing.request_slo_ms or 0),
        "request.cache_affinity_key_present": routing.affinity_key is not None,
        "routing.requested_algorithm": _text(valid.requested_method),
        "routing.algorithm": valid.effective.algorithm,
    }


def _endpoint(path: bytes) -> str:
    return path.removeprefix(b"/v1/").replace(b"/", b"_").decode("latin-1")


def _text(value: str) -> str:
    """`value` as an attribute can hold it: not too long, and with a form in UTF-8, or its whole batch could not be sent."""
    if len(value) > _MAX_TEXT:
        value = value[:_MAX_TEXT]
    return value if value.isascii() else value.encode("utf-8", "replace").decode()
