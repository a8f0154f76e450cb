"""What the operators' pages know of requests: the last ones, and the history of a minute."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.operators.durations import BOUNDS_S, quantiles, step_of
from router.operators.live_document import SECONDS
from router.operators.request_log import LAST, NAME, RequestLog
from router.ports.request_ends import NO_REQUEST_ENDS, RequestEnd

UNIX = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def end(at: float, **changed: Any) -> RequestEnd:
    fields: dict[str, Any] = {
        "ended_at": at,
        "duration_s": 0.2,
        "first_token_s": 0.05,
        "request_id": "r",
        "routing_key": None,
        "model": "m",
        "inference_server_id": "w",
        "cluster_id": "c",
        "attempts": 1,
        "status": 200,
        "end": "complete",
        "reason": "",
        "requested_method": "",
        "input_tokens": 3,
        "priority": 0,
    }
    return RequestEnd(**{**fields, **changed})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> RequestLog:
    return RequestLog("r-0", clock, lambda: UNIX + clock.now)


def test_the_last_requests_are_kept_newest_first_with_growing_numbers(log: RequestLog, clock: Clock) -> None:
    for number in range((LAST.pieces or 0) + 5):
        log.request_ended(end(clock.now, request_id=f"r{number}"))
    shown = log.requests()
    assert [one.request_id for one in shown] == [f"r{number}" for number in range(54, 4, -1)]
    assert [one.number for one in shown] == sorted((one.number for one in shown), reverse=True)
    assert log.requests(after=shown[2].number) == shown[:2]
    assert log.requests(after=shown[0].number) == []
    assert shown[0].at == UNIX + clock.now
    assert (shown[0].first_token_ms, shown[0].duration_ms, shown[0].process) == (50.0, 200.0, "r-0")


def test_numbers_grow_from_one_start_to_the_next(log: RequestLog, clock: Clock) -> None:
    for _ in range(1000):
        log.request_ended(end(clock.now))
    clock.now += 1
    later = RequestLog("r-0", clock, lambda: UNIX + clock.now)
    later.request_ended(end(clock.now))
    assert later.requests()[0].number > log.requests()[0].number
    assert later.newest < 2**53


def test_names_that_clients_chose_are_cut(log: RequestLog) -> None:
    long = "x" * ((NAME.bytes or 0) + 1)
    log.request_ended(end(100.0, request_id=long, model=long, routing_key=long, requested_method=long))
    shown = log.requests()[0]
    assert {len(shown.request_id), len(shown.model), len(shown.routing_key or ""), len(shown.requested_method)} == {
        1_024
    }


def test_each_second_has_its_requests_errors_and_quantiles(log: RequestLog, clock: Clock) -> None:
    for _ in range(99):
        log.request_ended(end(100.5))
    log.request_ended(end(100.9, status=503, first_token_s=None, duration_s=2.0))
    log.request_ended(end(101.1, end="truncated"))
    clock.now = 102.0
    before, latest = log.history(2)
    assert (before.at, before.requests, before.errors) == (int(UNIX) + 100, 100, 1)
    assert before.total_ms is not None
    assert before.total_ms.p50 == pytest.approx(200, rel=0.05)
    assert before.total_ms.p99 == pytest.approx(200, rel=0.05)
    assert before.first_token_ms is not None
    assert before.first_token_ms.p50 == pytest.approx(50, rel=0.05)
    assert (latest.at, latest.requests, latest.errors) == (int(UNIX) + 101, 1, 1)
    counted = log.history(2, countable=True)[0]
    assert (sum((counted.total_counts or {}).values()), sum((counted.first_token_counts or {}).values())) == (100, 99)
    assert counted.total_ms is None


def test_the_history_is_a_minute_and_forgets_what_is_older(log: RequestLog, clock: Clock) -> None:
    log.request_ended(end(100.0))
    clock.now = 100.0 + SECONDS
    assert [one.requests for one in log.history()] == [1] + [0] * (SECONDS - 1)
    clock.now += 1
    assert sum(one.requests for one in log.history(1000)) == 0
    assert len(log.history(1000)) == SECONDS
    clock.now += 1
    log.request_ended(end(clock.now))  # in the place of the first
    clock.now += 1
    assert log.history(1)[0].requests == 1


def test_nothing_is_told_where_nobody_asks() -> None:
    NO_REQUEST_ENDS.request_ended(end(1.0))


def test_without_a_duration_there_is_no_quantile() -> None:
    assert quantiles({}) is None


@given(st.lists(st.floats(min_value=0.0002, max_value=15_000), min_size=1, max_size=50))
def test_quantiles_are_within_five_percent(seconds: list[float]) -> None:
    counts: dict[int, int] = {}
    for each in seconds:
        counts[step_of(each)] = counts.get(step_of(each), 0) + 1
    found = quantiles(counts)
    assert found is not None
    ordered = sorted(seconds)
    assert found.p50 == pytest.approx(ordered[(len(ordered) + 1) // 2 - 1] * 1000, rel=0.05)
    assert found.p99 == pytest.approx(ordered[-1] * 1000, rel=0.05)


def test_a_duration_beyond_the_scale_counts_as_the_longest() -> None:
    assert step_of(float("inf")) == len(BOUNDS_S) - 1
    assert step_of(0.0) == 0
