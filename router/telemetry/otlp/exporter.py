"""Hands batches of spans to the SDK's exporter, with the current token; counts them and tells of outages, once each.

Runs in the thread of the batch processor. Nothing raises out of it, and what a collector does, or does not do, is felt nowhere else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from router.telemetry.otlp.access_token import HEADER, AccessToken

_log = structlog.get_logger()

MakeExporter = Callable[[Mapping[str, str]], SpanExporter]
"""Creates the SDK's exporter with these headers."""


class CountingExporter(SpanExporter):
    """The exporter of the batch processor. The counters only increase and may be read from any thread."""

    def __init__(self, make: MakeExporter, headers: Mapping[str, str], token: AccessToken, endpoint: str) -> None:
        """Creates the SDK's exporter; raises what that raises. `endpoint` is for the log."""
        self._make = make
        self._headers = headers
        self._token = token
        self._endpoint = endpoint
        self._used_token = token.current()
        self._exporter = make(self._with_token())
        self._reasons = _Reasons()
        self._lost_in_outage = 0
        self._closed = False
        self.authenticated = self._used_token is not None
        """Whether there was a token at the start."""
        self.failing = False
        """Whether the last batch was not taken."""
        self.taken = 0
        """Spans that left the queue."""
        self.exported = 0
        """Spans that the collector has taken."""
        self.failed = 0
        """Spans that were lost because the collector did not take them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; waits for the collector until the SDK's timeout."""
        self.taken += len(spans)
        try:
            result = self._current().export(spans)
            reason = self._reasons.last
        except Exception as error:  # noqa: BLE001 - whatever the SDK or its exporter raises is a batch that is lost
            result, reason = SpanExportResult.FAILURE, repr(error)
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
            self._works()
        else:
            self.failed += len(spans)
            self._fails(len(spans), reason)
        return result

    def shutdown(self) -> None:
        """Close the connection; a running `export` ends soon."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - nothing is held here
        """There is nothing to flush: batches are sent at once."""
        return True

    def _current(self) -> SpanExporter:
        token = self._token.current()
        if token != self._used_token:
            self._used_token = token
            replaced, self._exporter = self._exporter, self._make(self._with_token())
            replaced.shutdown()
            _log.info("tracing access token replaced")
        return self._exporter

    def _with_token(self) -> dict[str, str]:
        return dict(self._headers) if self._used_token is None else {**self._headers, HEADER: self._used_token}

    def _works(self) -> None:
        if self.failing:
            self.failing = False
            _log.info("traces are exported again", endpoint=self._endpoint, lost_spans=self._lost_in_outage)

    def _fails(self, lost: int, reason: str) -> None:
        if self._closed:
            return
        if not self.failing:
            self.failing = True
            self._lost_in_outage = 0
            _log.warning("traces cannot be exported; spans are lost", endpoint=self._endpoint, error=reason)
        self._lost_in_outage += lost


class _Reasons(logging.Handler):
    """Keeps the last text that the SDK's exporters log, instead of several lines for each batch of an outage."""

    _NAMES = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = "no reason given"
        for name in self._NAMES:
            logger = logging.getLogger(name)
            logger.addHandler(self)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text; a record whose arguments do not fit is kept without them."""
        try:
            self.last = record.getMessage()
        except (TypeError, ValueError):
            self.last = str(record.msg)
