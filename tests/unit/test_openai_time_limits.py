"""The times at which a request of the front is ended or its stream gets a comment."""

from dataclasses import replace

import pytest

from router.config import package_settings
from router.openai.settings import FrontSettings
from router.openai.time_limits import NO_HEAD, SILENT, TOO_LONG, TimeLimits, tick_s
from support.package_settings import DEFAULTS

NONE = replace(
    package_settings.openai_front(DEFAULTS), head_timeout_ms=0, idle_timeout_ms=0, total_timeout_ms=0, keepalive_ms=0
)


def limits(settings: FrontSettings) -> TimeLimits:
    found = TimeLimits(settings)
    found.read_at = found.worker_sent_at = 100.0
    return found


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        (NONE, 0.0),
        (replace(NONE, keepalive_ms=15_000), 1.0),
        (replace(NONE, keepalive_ms=15_000, head_timeout_ms=2_000), 0.2),
        (replace(NONE, total_timeout_ms=1), 0.005),
    ],
)
def test_limits_are_looked_at_ten_times_within_the_shortest_and_once_a_second(
    settings: FrontSettings, seconds: float
) -> None:
    assert tick_s(settings) == seconds


def test_without_limits_no_time_is_too_long() -> None:
    found = limits(NONE)
    assert found.reached(1e9, answered=False) is None
    assert found.reached(1e9, answered=True) is None
    assert not found.comment_is_due(1e9)


def test_each_limit_has_its_message() -> None:
    total = limits(replace(NONE, total_timeout_ms=1_000, head_timeout_ms=5_000, idle_timeout_ms=5_000))
    assert total.reached(100.9, answered=True) is None
    assert total.reached(101.0, answered=False) == total.reached(101.0, answered=True) == TOO_LONG
    head = limits(replace(NONE, head_timeout_ms=1_000))
    assert (head.reached(100.9, answered=False), head.reached(101.0, answered=False)) == (None, NO_HEAD)
    assert head.reached(200.0, answered=True) is None
    idle = limits(replace(NONE, idle_timeout_ms=1_000))
    assert idle.reached(101.0, answered=False) is None
    assert (idle.reached(100.9, answered=True), idle.reached(101.0, answered=True)) == (None, SILENT)


def test_a_comment_is_due_after_silence_since_the_worker_or_the_last_comment() -> None:
    found = limits(replace(NONE, keepalive_ms=1_000))
    assert (found.comment_is_due(100.9), found.comment_is_due(101.0)) == (False, True)
    found.commented_at = 101.0
    assert (found.comment_is_due(101.9), found.comment_is_due(102.0)) == (False, True)
    found.worker_sent_at = 101.5
    assert not found.comment_is_due(102.0)
