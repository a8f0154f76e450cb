"""Usage: counters by key and model with bounded labels, and the log that costs nothing when it cannot be written."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from router.openai.ports import End, Usage, UsageRecord
from router.openai.usage import USAGE_SERIES, UsageCounters, UsageLog
from router.telemetry.families import OVERFLOW
from router.telemetry.metrics import KEY_IDS, Metrics

FIELDS: dict[str, Any] = dict(  # noqa: C408 - as the constructor takes them
    request_id="r-1",
    key_id="alice",
    path="/v1/chat/completions",
    routing_key="tenant",
    model="m",
    registered=True,
    stream=True,
    status=200,
    code=None,
    end=End.COMPLETE,
    estimated_input_tokens=9,
    usage=Usage(11, 2, cached_tokens=4, reasoning_tokens=1),
    output_seen=2,
    first_token_ms=12.34567,
    duration_ms=100.0,
)


def recorded(**changes: Any) -> UsageRecord:
    return UsageRecord(**(FIELDS | changes))


def test_requests_and_tokens_are_counted_by_key_and_model() -> None:
    metrics = Metrics()
    counters = UsageCounters(metrics)
    counters.record(recorded())
    counters.record(recorded())
    counters.record(recorded(usage=None))
    counters.record(recorded(usage=None, status=429, end=End.REFUSED))
    caller = ("alice", "tenant", "m")
    assert metrics.openai_requests_total.value((*caller, "200")) == 3
    assert metrics.openai_requests_total.value((*caller, "429")) == 1
    tokens = {kind: metrics.openai_tokens_total.value((*caller, kind)) for kind in ("input", "output", "cached")}
    assert tokens == {"input": 22, "output": 4, "cached": 8}
    assert metrics.openai_tokens_total.value((*caller, "reasoning")) == 2
    assert metrics.openai_unreported_requests_total.value(caller) == 1
    assert "stargate_openai_tokens_total{" in metrics.render(additional=True).decode()


def test_a_negative_report_takes_nothing_off_a_counter() -> None:
    metrics = Metrics()
    UsageCounters(metrics).record(recorded(usage=Usage(-5, 3)))
    assert metrics.openai_tokens_total.value(("alice", "tenant", "m", "input")) == 0
    assert metrics.openai_tokens_total.value(("alice", "tenant", "m", "output")) == 3


def test_models_that_no_worker_serves_are_no_labels_and_key_ids_are_bounded() -> None:
    metrics = Metrics()
    counters = UsageCounters(metrics)
    for i in range(50):
        counters.record(recorded(model=f"typo-{i}", registered=False, status=404, usage=None))
    assert metrics.openai_requests_total.series() == 1
    assert metrics.openai_requests_total.value(("alice", "", "", "404")) == 50
    assert KEY_IDS.pieces is not None
    for i in range(KEY_IDS.pieces + 20):
        counters.record(recorded(key_id=f"key-{i}", usage=None))
    assert metrics.openai_requests_total.value((OVERFLOW, "tenant", "m", "200")) == 21


def test_the_series_that_are_kept_at_hand_are_bounded() -> None:
    metrics = Metrics()
    counters = UsageCounters(metrics)
    counters.record(recorded())
    for i in range(USAGE_SERIES.pieces or 0):
        counters.record(recorded(model=f"m-{i}", usage=None))
        assert len(counters) <= (USAGE_SERIES.pieces or 0)
    assert len(counters) == 1
    counters.record(recorded())
    assert metrics.openai_tokens_total.value(("alice", "tenant", "m", "input")) == 22


@pytest.fixture
def log_path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "usage.jsonl"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_has_one_line_of_json_a_request_without_content(log_path: Path) -> None:
    metrics = Metrics()
    log = UsageLog(log_path, UsageCounters(metrics), lambda: datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC))
    log.record(recorded())
    log.record(recorded(usage=None, routing_key=None, first_token_ms=None, model="a\n\ud800", end=End.CUT))
    log.close()
    first, second = lines(log_path)
    assert first == {
        "time": "2026-01-02T03:04:05.678Z",
        "request_id": "r-1",
        "key_id": "alice",
        "path": "/v1/chat/completions",
        "routing_key": "tenant",
        "model": "m",
        "stream": True,
        "status": 200,
        "code": None,
        "end": "complete",
        "estimated_input_tokens": 9,
        "input_tokens": 11,
        "output_tokens": 2,
        "cached_tokens": 4,
        "reasoning_tokens": 1,
        "output_seen": 2,
        "first_token_ms": 12.346,
        "duration_ms": 100.0,
    }
    assert (second["model"], second["input_tokens"], second["end"]) == ("a\n?", None, "cut")
    assert metrics.openai_requests_total.value(("alice", "tenant", "m", "200")) == 1
    assert log_path.stat().st_mode & 0o777 == 0o600


def test_the_log_goes_on_in_a_new_file_after_rotation(log_path: Path) -> None:
    log = UsageLog(log_path, UsageCounters(Metrics()))
    log.record(recorded())
    assert log._writer.flush(5)
    log_path.rename(log_path.with_suffix(".1"))
    log.reopen()
    log.record(recorded())
    log.close()
    assert len(lines(log_path)) == 1
    assert len(lines(log_path.with_suffix(".1"))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is /dev/full")
def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    metrics = Metrics()
    log = UsageLog(Path("/dev/full"), UsageCounters(metrics))
    for _ in range(100):
        log.record(recorded())
    assert log._writer.flush(5)
    assert log.dropped == 100
    assert metrics.openai_requests_total.value(("alice", "tenant", "m", "200")) == 100
    log.close()


def test_a_reader_that_does_not_read_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = UsageLog(pipe, UsageCounters(Metrics()))
    try:
        for _ in range(25_000):
            log.record(recorded())
        assert log.dropped > 0
    finally:
        os.close(reader)
        log.close()


def test_a_file_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UsageLog(tmp_path / "missing" / "usage.jsonl", UsageCounters(Metrics()))
