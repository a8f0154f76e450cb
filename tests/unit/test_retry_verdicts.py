"""The order in which reasons against another attempt are looked at; docs/proxy.md, "Retries"."""

import itertools

import pytest

from router.proxy.replay import ReplayState
from router.proxy.retry import Verdict, verdict

ORDER = (
    (Verdict.BUDGET_OVER, {"budget_over": True}),
    (Verdict.RETRIES_USED_UP, {"retries_left": False}),
    (Verdict.TOO_LARGE, {"replay": ReplayState.TOO_LARGE}),
    (Verdict.INCOMPLETE, {"replay": ReplayState.COPYING}),
    (Verdict.INCOMPLETE, {"replay": ReplayState.LOST}),
    (Verdict.ACCEPTED, {"accepted": True}),
)
NOTHING_AGAINST_IT = {"budget_over": False, "retries_left": True, "replay": ReplayState.UNTOUCHED, "accepted": False}


def test_nothing_against_it_is_another_attempt():
    assert verdict(**NOTHING_AGAINST_IT) is Verdict.AGAIN


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(ORDER, 2), *zip(ORDER, ORDER, strict=True)])
def test_the_first_reason_in_the_promised_order_counts(first, second):
    expected, facts = first
    assert verdict(**{**NOTHING_AGAINST_IT, **second[1], **facts}) is expected
