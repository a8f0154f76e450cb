"""A tracer that keeps its spans in memory, for tests of what is recorded without the OpenTelemetry SDK."""

from collections.abc import Sequence
from random import Random
from typing import Any

from router.telemetry.trace_context import Sampling, TraceContext
from router.telemetry.tracing import Attributes


class RecordedSpan:
    """One span; `ended` once it has ended."""

    def __init__(
        self, tracer: "RecordingTracer", name: str, context: TraceContext, tracestate: bytes, start_ns: int
    ) -> None:
        self._tracer = tracer
        self.name = name
        self.context = context
        self.tracestate = tracestate
        self.start_ns = start_ns
        self.end_ns = 0
        self.ended = False
        self.parent: str | None = None
        self.attributes: dict[str, Any] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.error: str | None = None

    def child(self, name: str, attributes: Attributes, start_ns: int) -> "RecordedSpan":
        assert not self.ended
        context = TraceContext(self.context.trace_id, self._tracer.span_id(), sampled=True)
        span = self._tracer.keep(RecordedSpan(self._tracer, name, context, self.tracestate, start_ns))
        span.parent = self.context.span_id
        span.attributes.update(attributes)
        return span

    def event(self, name: str, attributes: Attributes, at_ns: int) -> None:
        assert self.start_ns <= at_ns
        self.events.append((name, dict(attributes)))

    def end(self, attributes: Attributes, end_ns: int, *, error: str | None = None) -> None:
        assert not self.ended
        assert end_ns >= self.start_ns
        self.attributes.update(attributes)
        self.end_ns = end_ns
        self.error = error
        self.ended = True


class RecordingTracer:
    """`spans` holds all spans in the order of their start."""

    def __init__(self, share: float = 1.0, *, parent_based: bool = True) -> None:
        self._random = Random(1)
        self.sampling = Sampling(share, self._random, parent_based=parent_based)
        self.spans: list[RecordedSpan] = []

    def start(
        self, name: str, caller: TraceContext | None, decided: TraceContext, tracestate: Sequence[bytes], start_ns: int
    ) -> RecordedSpan:
        assert decided.sampled
        context = TraceContext(decided.trace_id, self.span_id(), sampled=True)
        state = b"" if caller is None else b",".join(tracestate)
        span = self.keep(RecordedSpan(self, name, context, state, start_ns))
        span.parent = None if caller is None else caller.span_id
        return span

    def span_id(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    def keep(self, span: RecordedSpan) -> RecordedSpan:
        self.spans.append(span)
        return span

    def named(self, name: str) -> list[RecordedSpan]:
        """The spans of this name; all of them have ended."""
        found = [span for span in self.spans if span.name == name]
        assert all(span.ended for span in found)
        return found
