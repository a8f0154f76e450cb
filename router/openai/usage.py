"""Usage for people who pay: counters by key id and model, and a log with one JSON line a request. No content, no keys."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog

from router.openai.ports import Usage, UsageRecord
from router.telemetry.families import Labels
from router.telemetry.metrics import Metrics
from tunnel_protocol.observers.line_writer import LineWriter

_log = structlog.get_logger()
_OK: Final = 200


class UsageCounters:
    """Counts requests and reported tokens. Models that no worker serves have an empty label."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.openai_requests_total
        self._tokens = metrics.openai_tokens_total
        self._unreported = metrics.openai_unreported_requests_total

    def record(self, record: UsageRecord) -> None:
        """See `UsageSink.record`."""
        routing_key, model = (record.routing_key or "", record.model) if record.registered else ("", "")
        caller = (record.key_id, routing_key, model)
        self._requests.inc((*caller, str(record.status)))
        if record.usage is not None:
            self._add(caller, record.usage)
        elif record.status == _OK:
            self._unreported.inc(caller)

    def _add(self, caller: Labels, usage: Usage) -> None:
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens > 0:
                self._tokens.inc((*caller, kind), tokens)


class UsageLog:
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
