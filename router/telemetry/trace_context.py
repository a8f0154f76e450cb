"""W3C trace context in and out, and the sampling decision: cheap, because they run for every request while tracing is on.

Source: W3C Trace Context, sections 3.2 (`traceparent`) and 3.3 (`tracestate`); samplers of the OpenTelemetry specification.
"""

import re
from random import Random
from typing import Final, NamedTuple

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"

_FORM: Final = re.compile(rb"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?[ \t]*\Z", re.DOTALL)
_NOT_SAMPLED: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]\Z").match
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_EVERYTHING: Final = 1 << 64
_LOW: Final = _EVERYTHING - 1


class TraceContext(NamedTuple):
    """The position of a span in its trace, as it crosses processes. Ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    sampled: bool

    def traceparent(self) -> bytes:
        """The header value. Of the flags only `sampled` is sent: workers of version 00 refuse others."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}".encode()


def parse_traceparent(value: bytes | None) -> TraceContext | None:
    """The context in a `traceparent` header; None if it is absent or not valid (then it counts as absent)."""
    if value is None:
        return None
    found = _FORM.match(value)
    if found is None:
        return None
    version = found.group(1)
    if version == b"ff" or (version == b"00" and found.group(5) is not None):
        return None
    trace_id, span_id = found.group(2).decode(), found.group(3).decode()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(found.group(4), 16) & 1))


class Sampling:
    """The samplers of `OTEL_TRACES_SAMPLER`: a share of the traces by their id, and whether the caller's decision is kept."""

    def __init__(self, share: float, random: Random, *, parent_based: bool) -> None:
        """`share` of the traces that begin here is sampled, 0 to 1; with `parent_based` others are as their caller decided."""
        self._below = round(share * _EVERYTHING)
        self._parent_based = parent_based
        self._random = random

    def passes_on(self, traceparent: bytes) -> bool:
        """Whether this header is forwarded as it came and nothing is recorded: the quick way of most requests."""
        return self._parent_based and _NOT_SAMPLED(traceparent) is not None

    def decide(self, caller: TraceContext | None) -> TraceContext:
        """The context of the caller with our decision; for a trace that begins here a new one, whose span does not exist."""
        if caller is None:
            bits = self._random.getrandbits(192)
            ids = f"{bits:048x}"
            return TraceContext(ids[:32], ids[32:], (bits >> 64) & _LOW < self._below)
        if self._parent_based:
            return caller
        sampled = int(caller.trace_id[16:], 16) < self._below
        return caller if sampled == caller.sampled else TraceContext(caller.trace_id, caller.span_id, sampled)
