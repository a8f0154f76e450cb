"""How much one registration may report, and what a worker beyond it is told."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.control_plane import message_limits as limits
from router.control_plane.message_limits import KEPT_REPORT, MessageLimitError, check_limits, worth_keeping
from router.control_plane.messages import model_updates
from tunnel_protocol.control.stargate_pb2 import (
    InferenceServerModelRegistration,
    InferenceServerRegistration,
    ModelStats,
)


def message(models=1, name="m", **fields):
    stats = ModelStats(**fields)
    named = {f"{name}{number}": InferenceServerModelRegistration(stats=stats) for number in range(models)}
    return InferenceServerRegistration(inference_server_id="w", inference_server_url="http://e:1", models=named)


def priorities(count):
    return dict.fromkeys(range(count), 1)


def too_long(limit, by=1):
    return "x" * (limit.bytes + by)


@pytest.mark.parametrize(
    ("refused", "limit"),
    [
        (message(models=16_385), limits.MODELS),
        (message(name=too_long(limits.MODEL_NAME, -1)), None),
        (message(name=too_long(limits.MODEL_NAME)), limits.MODEL_NAME),
        (message(name="\u00e9" * 513), limits.MODEL_NAME),
        (message(stats_capabilities=["x"] * 257), limits.STATS_WORDS),
        (message(stats_sources=["x" * 257]), limits.STATS_WORDS),
        (InferenceServerRegistration(inference_server_id=too_long(limits.IDENTIFIER)), limits.IDENTIFIER),
        (InferenceServerRegistration(cluster_id=too_long(limits.IDENTIFIER)), limits.IDENTIFIER),
        (InferenceServerRegistration(inference_server_url=too_long(limits.URL)), limits.URL),
        (message(models=16_384), None),
    ],
)
def test_a_message_beyond_a_bound_is_refused_and_the_bound_named(refused, limit):
    if limit is None:
        check_limits(refused)
        return
    with pytest.raises(MessageLimitError, match=limit.name) as caught:
        check_limits(refused)
    assert caught.value.limit is limit


@given(st.dictionaries(st.text(max_size=400), st.integers(0, 50), max_size=30))
def test_what_is_let_through_is_within_all_bounds(models):
    entries = {
        name: InferenceServerModelRegistration(
            stats=ModelStats(queue_time_estimate_ms_by_priority=priorities(count * 100))
        )
        for name, count in models.items()
        if name.isprintable()
    }
    report = InferenceServerRegistration(models=entries)
    try:
        check_limits(report)
    except MessageLimitError:
        return
    assert all(len(name.encode()) <= limits.MODEL_NAME.bytes for name in entries)
    for update in model_updates(report).values():
        assert len(update.stats.queue_time_estimate_ms_by_priority) <= limits.PRIORITIES.pieces


def test_of_250_000_priorities_the_most_urgent_are_kept():
    report = message(queue_time_estimate_ms_by_priority={number: number + 1 for number in range(250_000)})
    check_limits(report)
    (update,) = model_updates(report).values()
    kept = update.stats.queue_time_estimate_ms_by_priority
    assert kept == {number: number + 1 for number in range(limits.PRIORITIES.pieces)}


def test_looking_at_an_ordinary_report_costs_microseconds():
    report = message(models=3, queue_time_estimate_ms_by_priority=priorities(5))
    before = time.process_time()
    for _ in range(1_000):
        check_limits(report)
    assert time.process_time() - before < 1  # measured: 0.01


def test_large_reports_are_not_kept_for_comparison() -> None:
    report = InferenceServerRegistration(inference_server_url="x" * ((KEPT_REPORT.bytes or 0) - 4))
    assert worth_keeping(report.SerializeToString())
    report.inference_server_id = "w"
    assert not worth_keeping(report.SerializeToString())
