"""Usage for people who pay: counters by key id and model, and a log with one JSON line a request. No content, no keys."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog

from router.openai.ports import UsageRecord, UsageSink
from router.telemetry.families import BoundCounter
from router.telemetry.metrics import Metrics
from tunnel_protocol.limit import Limit
from tunnel_protocol.observers.line_writer import LineWriter

_log = structlog.get_logger()
_OK: Final = 200


USAGE_SERIES: Final = Limit("openai.usage_series", pieces=10_000)
"""Keys and models whose series are kept at hand; beyond that all are found anew."""

_MOST_SERIES: Final = USAGE_SERIES.pieces or 0


class _CallerSeries:
    """The series of one key and target."""

    __slots__ = ("_labels", "_requests", "cached", "input", "output", "reasoning", "unreported")

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str]) -> None:
        """`labels` are key id, routing key and model."""
        self._labels = labels
        self._requests: dict[int, BoundCounter] = {}
        tokens = metrics.openai_tokens_total
        self.input = BoundCounter(tokens, (*labels, "input"))
        self.output = BoundCounter(tokens, (*labels, "output"))
        self.cached = BoundCounter(tokens, (*labels, "cached"))
        self.reasoning = BoundCounter(tokens, (*labels, "reasoning"))
        self.unreported = BoundCounter(metrics.openai_unreported_requests_total, labels)

    def count_request(self, metrics: Metrics, status: int) -> None:
        """A request has ended with this status."""
        found = self._requests.get(status)
        if found is None:
            labels = (*self._labels, str(status))
            found = self._requests[status] = BoundCounter(metrics.openai_requests_total, labels)
        found.inc()


class UsageCounters(UsageSink):
    """Counts requests and reported tokens. Models that no worker serves have an empty label."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._series: dict[tuple[str, str, str], _CallerSeries] = {}

    def __len__(self) -> int:
        return len(self._series)

    def record(self, record: UsageRecord) -> None:
        """See `UsageSink.record`."""
        labels = (
            (record.key_id, record.routing_key or "", record.model) if record.registered else (record.key_id, "", "")
        )
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= _MOST_SERIES:
                self._series.clear()
            series = self._series[labels] = _CallerSeries(self._metrics, labels)
        series.count_request(self._metrics, record.status)
        usage = record.usage
        if usage is None:
            if record.status == _OK:
                series.unreported.inc()
            return
        if usage.input_tokens > 0:
            series.input.add(usage.input_tokens)
        if usage.output_tokens > 0:
            series.output.add(usage.output_tokens)
        if usage.cached_tokens > 0:
            series.cached.add(usage.cached_tokens)
        if usage.reasoning_tokens > 0:
            series.reasoning.add(usage.reasoning_tokens)


class UsageLog(UsageSink):
    """Counters, and a line a request in a file. A disk that is full or a reader that is gone costs lines, and nothing else."""

    def __init__(
        self, path: Path, counters: UsageCounters, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Opens the file. Raises OSError."""
        self._counters = counters
        self._now = now
        self._encoder = msgspec.json.Encoder()
        self._path = path
        self._writer = LineWriter(path, _lost_line, name="usage log", failed=self._failed)

    def record(self, record: UsageRecord) -> None:
        """See `UsageSink.record`."""
        self._counters.record(record)
        self._writer.write(self._encoder.encode(self._line(record)).decode())

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return self._writer.dropped

    def reopen(self) -> None:
        """Open the file again, after log rotation."""
        self._writer.reopen()

    def close(self) -> None:
        """Write what is queued, within a second, and close the file."""
        self._writer.close()

    def _line(self, record: UsageRecord) -> dict[str, object]:
        usage = record.usage
        return {
            "time": self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": _plain(record.request_id),
            "key_id": record.key_id,
            "path": record.path,
            "routing_key": _plain(record.routing_key),
            "model": _plain(record.model),
            "stream": record.stream,
            "status": record.status,
            "code": record.code,
            "end": record.end.value,
            "estimated_input_tokens": record.estimated_input_tokens,
            "input_tokens": None if usage is None else usage.input_tokens,
            "output_tokens": None if usage is None else usage.output_tokens,
            "cached_tokens": None if usage is None else usage.cached_tokens,
            "reasoning_tokens": None if usage is None else usage.reasoning_tokens,
            "output_seen": record.output_seen,
            "first_token_ms": None if record.first_token_ms is None else round(record.first_token_ms, 3),
            "duration_ms": round(record.duration_ms, 3),
        }

    def _failed(self, error: OSError) -> None:
        _log.warning(
            "the usage log cannot be written; its lines are lost until it can", path=str(self._path), error=str(error)
        )


def _lost_line(lost: int) -> str:
    return msgspec.json.encode({"lost_lines": lost}).decode()


def _plain(text: str | None) -> str | None:
    """A text that JSON can hold: lone surrogates are replaced, and it is cut at 512 characters."""
    return None if text is None else text[:512].encode("utf-8", "replace").decode()
