"""What the router asks of tracing. The implementation with the OpenTelemetry SDK is `router.telemetry.otlp`.

The proxy has no tracer if nothing is exported, so that tracing costs nothing then. It decides with `Tracer.sampling` whether a
request is recorded before it creates anything for it, and asks for spans only if it is.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from router.telemetry.trace_context import Sampling, TraceContext

AttributeValue = str | bool | int | float
Attributes = Mapping[str, AttributeValue]


class Span(Protocol):
    """One recorded span. All methods return at once and raise nothing; times are Unix nanoseconds."""

    @property
    def context(self) -> TraceContext:
        """The context for those who are called as a part of this span."""

    @property
    def tracestate(self) -> bytes:
        """The `tracestate` header for them; empty if there is none."""

    def child(self, name: str, attributes: Attributes, start_ns: int) -> "Span":
        """Start a span below this one, for a call to another process."""

    def event(self, name: str, attributes: Attributes, at_ns: int) -> None:
        """Add an event."""

    def end(self, attributes: Attributes, end_ns: int, *, error: str | None = None) -> None:
        """Add `attributes` and end the span; `error` describes its failure, None is no failure. Call it once."""


class Tracer(Protocol):
    """Creates recorded spans, which are exported by a thread of its own."""

    @property
    def sampling(self) -> Sampling:
        """Decides which requests are recorded."""

    def start(
        self, name: str, caller: TraceContext | None, decided: TraceContext, tracestate: Sequence[bytes], start_ns: int
    ) -> Span:
        """Start the first span of this process, for a request that `decided` says is sampled.

        `caller` is the context that came with the request, and `tracestate` the values of its headers of this name.
        """
