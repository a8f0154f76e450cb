"""Limits by key and model: what is admitted, what is refused and with which fields, and how charges are corrected."""

import asyncio
import itertools

import pytest

from router.openai.keys.caller import GrantedCaller
from router.openai.limits import limiter as limiter_module
from router.openai.limits import memory_counter
from router.openai.limits.counter import Bucket, Charge, Kind, Outcome, Slots, Verdict
from router.openai.limits.fields import duration_text, retry_fields
from router.openai.limits.limit_set import LimitSet
from router.openai.limits.limiter import PLANS, UNLIMITED, KeyLimiter
from router.openai.limits.memory_counter import BUCKETS, MemoryCounter
from router.openai.limits.rule import MAX_AMOUNT, Rule, RuleError, Unit, parse_rules
from router.openai.ports import OPEN, Admission, Caller, LimitRefusal, Usage
from router.telemetry.metrics import Metrics
from tunnel_protocol.limit import Limit


class Setup:
    """A limiter that counts in memory by a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.counter = MemoryCounter(lambda: self.now)
        self.limiter = KeyLimiter(self.counter, self.metrics.openai_limit_refusals_total, open_if_unknown=True)

    def admit(
        self, caller: Caller, input_tokens: int = 1, output: int | None = 0, model: str = "m"
    ) -> Admission | LimitRefusal:
        found = self.limiter.admit(caller, None, model, input_tokens, output)
        assert not isinstance(found, asyncio.Future)
        return found


def admitted(found: Admission | LimitRefusal) -> Admission:
    assert not isinstance(found, LimitRefusal), found
    return found


def refused(found: Admission | LimitRefusal) -> LimitRefusal:
    assert isinstance(found, LimitRefusal)
    return found


def fields(found: Admission | LimitRefusal) -> dict[str, str]:
    headers = {name.decode(): value.decode() for name, value in found.headers}
    assert len(headers) == len(found.headers), "no field twice"
    return headers


def caller(requests: str = "", tokens: str = "", concurrency: int | None = None, name: str = "a") -> GrantedCaller:
    limits = LimitSet(parse_rules(requests), parse_rules(tokens), concurrency)
    return GrantedCaller(key_id=name, limits=limits)


# --- rules -------------------------------------------------------------------------------------------------------------


def test_rules_are_read_in_the_order_of_their_periods() -> None:
    assert parse_rules("") == ()
    assert parse_rules("1000-D, 60-M ,5-S") == (Rule(5, Unit.SECOND), Rule(60, Unit.MINUTE), Rule(1000, Unit.DAY))
    assert [unit.period_ms for unit in Unit] == [1_000, 60_000, 3_600_000, 86_400_000, 604_800_000]
    assert str(Rule(7, Unit.WEEK)) == "7-W"
    assert parse_rules(f"{MAX_AMOUNT}-W") == (Rule(MAX_AMOUNT, Unit.WEEK),)


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ("100-m", "'100-m' is not <number>-<S|M|H|D|W>", 0),
        ("100", "is not", 0),
        ("60-M,", "'' is not", 5),
        ("60-M,5-X", "'5-X'", 5),
        ("60-M,61-M", "a second rule for the minute", 5),
        ("0-M", "0 is not in", 0),
        ("-1-M", "is not", 0),
        ("1.5-M", "is not", 0),
        (f"{MAX_AMOUNT + 1}-M", "is not in", 0),
        ("9" * 500 + "-M", "9...'", 0),
        ("٣-M", "is not", 0),
    ],
)
def test_a_rule_that_is_wrong_is_refused_with_its_position(text: str, reason: str, position: int) -> None:
    with pytest.raises(RuleError) as found:
        parse_rules(text)
    assert reason in found.value.reason
    assert found.value.position == position
    assert f"at character {position + 1}" in str(found.value)


# --- admission ---------------------------------------------------------------------------------------------------------


def test_who_has_no_limits_is_admitted_without_fields() -> None:
    setup = Setup()
    for one in (GrantedCaller(key_id=OPEN), GrantedCaller(key_id="a", model_limits={"other": LimitSet(concurrency=1)})):
        found = admitted(setup.admit(one, 10**9))
        assert found is UNLIMITED
        assert found.headers == ()
        found.finish(None)
    assert len(setup.counter) == 0


def test_the_numbers_of_the_gateways_example() -> None:
    """Limit `100-M`, an estimate of 5, no output limit, real usage 11 + 2: 94 are left, then 81, then 68."""
    setup = Setup()
    left = []
    for _ in range(3):
        found = admitted(setup.admit(caller(tokens="100-M"), 5, None))
        headers = fields(found)
        left.append(headers["x-ratelimit-remaining-tokens"])
        assert headers["x-ratelimit-limit-tokens"] == "100"
        found.finish(Usage(11, 2))
    assert left == ["94", "81", "68"]


def test_all_six_fields_are_on_an_admission() -> None:
    headers = fields(Setup().admit(caller("10-M", "100-M"), 5, 1))
    assert headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "94",
        "x-ratelimit-reset-tokens": "3.6s",
    }


def test_requests_beyond_the_limit_are_429_as_the_sdk_understands_it_until_the_bucket_has_refilled() -> None:
    setup = Setup()
    one = caller("2-M")
    for _ in range(2):
        admitted(setup.admit(one)).finish(None)
    found = refused(setup.admit(one))
    assert (found.status, found.type, found.code) == (429, "requests", "rate_limit_exceeded")
    assert fields(found) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "retry-after": "30",
        "retry-after-ms": "30000",
    }
    assert found.message == (
        "Rate limit reached for this API key on requests per minute: limit 2, remaining 0, requested 1. Try again in 30s."
    )
    setup.now += 29.9
    refused(setup.admit(one))
    setup.now += 0.1
    admitted(setup.admit(one))
    assert setup.metrics.openai_limit_refusals_total.value(("a", "requests")) == 2


def test_fractions_are_kept_so_that_a_slow_bucket_under_steady_use_refills() -> None:
    setup = Setup()
    one = caller("24-D")
    for _ in range(24):
        admitted(setup.admit(one))
    for _ in range(3_600):
        refused(setup.admit(one))
        setup.now += 1
    admitted(setup.admit(one))


def test_of_several_rules_the_one_that_takes_longest_is_told_with_its_own_numbers() -> None:
    setup = Setup()
    one = caller(tokens="1000-S,2000-D")
    for _ in range(2):
        admitted(setup.admit(one, 1000))
        setup.now += 1
    found = refused(setup.admit(one, 500))
    headers = fields(found)
    assert headers["x-ratelimit-limit-tokens"] == "2000"
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-should-retry"] == "false"
    assert int(headers["retry-after"]) == -(-int(headers["retry-after-ms"]) // 1000) > 20_000
    assert "tokens per day" in found.message


def test_what_is_refused_by_one_rule_is_charged_to_none() -> None:
    setup = Setup()
    one = caller("10-M", "100-M")
    admitted(setup.admit(one, 95))
    for _ in range(20):
        assert refused(setup.admit(one, 50)).type == "tokens"
    assert fields(admitted(setup.admit(one, 1)))["x-ratelimit-remaining-requests"] == "8"


def test_a_request_that_can_never_pass_is_400_and_not_an_endless_429() -> None:
    setup = Setup()
    found = refused(setup.admit(caller(tokens="10-S"), 105, None))
    assert (found.status, found.type, found.code) == (400, "invalid_request_error", "rate_limit_request_too_large")
    assert fields(found) == {"x-should-retry": "false"}
    assert "105 input tokens" in found.message
    assert "10 tokens per second" in found.message
    assert len(setup.counter) == 0


def test_running_requests_are_bounded_by_key() -> None:
    setup = Setup()
    one, other = caller(concurrency=2), caller(concurrency=2, name="b")
    first, second = (admitted(setup.admit(one)) for _ in range(2))
    found = refused(setup.admit(one))
    assert (found.status, found.type, found.code) == (429, "concurrency", "rate_limit_exceeded")
    assert fields(found) == {"retry-after": "1", "retry-after-ms": "1000"}
    assert "limit 2" in found.message
    admitted(setup.admit(other)).finish(None)
    first.finish(None)
    first.finish(None)  # a second call has no effect
    admitted(setup.admit(one)).finish(None)
    second.finish(Usage(1, 1))
    assert setup.counter.running == 0


def test_limits_of_a_model_are_beside_those_of_the_key() -> None:
    setup = Setup()
    one = GrantedCaller(
        key_id="a",
        limits=LimitSet(requests=parse_rules("3-M")),
        model_limits={"big": LimitSet(requests=parse_rules("1-M")), "*": LimitSet(requests=parse_rules("2-M"))},
    )
    admitted(setup.admit(one, model="big"))
    assert "this API key and the model `big`" in refused(setup.admit(one, model="big")).message
    admitted(setup.admit(one, model="x"))
    headers = fields(admitted(setup.admit(one, model="y")))
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert "this API key on" in refused(setup.admit(one, model="z")).message


@pytest.mark.parametrize(
    ("usage", "seen", "served", "left"),
    [
        (Usage(10, 20), 7, True, 70),  # what is reported
        (Usage(0, 20), 0, True, 70),  # an engine that reports output only
        (None, 20, True, 70),  # the estimate, and what was seen
        (None, 0, True, 90),  # the output reservation is returned
        (None, 0, False, 100),  # no worker had it
    ],
)
def test_a_charge_is_corrected_at_the_end(usage: Usage | None, seen: int, served: bool, left: int) -> None:
    setup = Setup()
    one = caller("100-M", "100-D")
    admitted(setup.admit(one, 10, 50)).finish(usage, seen, served=served)
    headers = fields(setup.admit(one, 0, 0))
    assert headers["x-ratelimit-remaining-tokens"] == str(left)
    assert headers["x-ratelimit-remaining-requests"] == ("98" if served else "99")


def test_usage_beyond_the_estimate_is_owed_but_not_more_than_a_whole_period() -> None:
    setup = Setup()
    one = caller(tokens="100-M")
    admitted(setup.admit(one, 10, 0)).finish(Usage(10, 10_000))
    found = refused(setup.admit(one, 10, 0))
    assert fields(found)["x-ratelimit-remaining-tokens"] == "0"
    setup.now += 60 + 5
    refused(setup.admit(one, 10, 0))
    setup.now += 2
    admitted(setup.admit(one, 10, 0))


def test_a_clock_that_stands_still_or_goes_back_refills_nothing() -> None:
    setup = Setup()
    one = caller("2-S")
    admitted(setup.admit(one))
    setup.now -= 500
    admitted(setup.admit(one))
    refused(setup.admit(one))
    setup.now += 500
    refused(setup.admit(one))


def test_a_rule_that_changes_keeps_what_was_used() -> None:
    setup = Setup()
    admitted(setup.admit(caller("10-M")))
    admitted(setup.admit(caller("10-M")))
    assert fields(setup.admit(caller("100-M")))["x-ratelimit-remaining-requests"] == "97"
    assert fields(setup.admit(caller("4-M")))["x-ratelimit-remaining-requests"] == "0"


# --- bounds ------------------------------------------------------------------------------------------------------------


def test_buckets_are_bounded_and_full_ones_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BUCKETS.pieces is not None
    monkeypatch.setattr(memory_counter, "_MAX_BUCKETS", 10)
    now = [0.0]
    counter = MemoryCounter(lambda: now[0])

    def use(name: str) -> float:
        (level,) = counter.reserve("", (Charge(Bucket(name, Kind.REQUESTS, 5, 1_000), 1),), (), "x").levels
        return level

    for i in range(50):
        use(f"bucket-{i}")
        assert len(counter) <= 10
    assert use("bucket-49") == 3  # one used lately is kept
    now[0] += 10
    use("new")
    assert len(counter) <= 10
    for i in range(20):
        now[0] += 10
        use(f"slow-{i}")
    assert len(counter) <= 3, "full buckets make way before the limit"


def test_the_plans_of_scopes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PLANS.pieces is not None
    monkeypatch.setattr(limiter_module, "PLANS", Limit("plans", pieces=10))
    setup = Setup()
    one = GrantedCaller(key_id="a", model_limits={"*": LimitSet(concurrency=1)})
    for i in range(50):
        admitted(setup.admit(one, model=f"m{i}")).finish(None)
    assert len(setup.limiter._plans) == 10


# --- a counter that has to be asked ------------------------------------------------------------------------------------


class SlowCounter:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Outcome]] = []
        self.settled: list[tuple[tuple[Charge, ...], tuple[Slots, ...], str]] = []

    def reserve(
        self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str
    ) -> asyncio.Future[Outcome]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def settle(self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str) -> None:
        self.settled.append((charges, slots, lease))


def slow(*, open_if_unknown: bool) -> tuple[SlowCounter, KeyLimiter, Metrics]:
    counter, metrics = SlowCounter(), Metrics()
    return counter, KeyLimiter(counter, metrics.openai_limit_refusals_total, open_if_unknown=open_if_unknown), metrics


async def test_an_answer_that_comes_later_is_the_result_of_a_future() -> None:
    counter, limiter, _ = slow(open_if_unknown=True)
    found = limiter.admit(caller("5-M"), None, "m", 1, 1)
    assert isinstance(found, asyncio.Future)
    counter.asked[0].set_result(Outcome(Verdict.GRANTED, (4.0,), ()))
    assert fields(await found)["x-ratelimit-remaining-requests"] == "4"


async def test_a_request_that_is_given_up_while_the_counter_is_asked_gives_back_what_it_took() -> None:
    counter, limiter, _ = slow(open_if_unknown=True)
    for outcome in (Outcome(Verdict.GRANTED, (4.0,), (1,)), Outcome(Verdict.DENIED, (0.0,), (2,))):
        found = limiter.admit(caller("5-M", concurrency=2), None, "m", 1, 1)
        assert isinstance(found, asyncio.Future)
        await asyncio.sleep(0)
        found.cancel()
        await asyncio.wait([found])
        assert found.cancelled()
        counter.asked[-1].set_result(outcome)
        await asyncio.sleep(0)
    ((charges, slots, _lease),) = counter.settled
    assert [charge.amount for charge in charges] == [-1]
    assert len(slots) == 1


async def test_while_the_counter_cannot_be_asked_requests_are_admitted_or_refused_as_is_set() -> None:
    for open_if_unknown in (True, False):
        counter, limiter, metrics = slow(open_if_unknown=open_if_unknown)
        found = limiter.admit(caller("5-M"), None, "m", 1, 1)
        assert isinstance(found, asyncio.Future)
        counter.asked[0].set_result(Outcome(Verdict.UNKNOWN))
        result = await found
        if open_if_unknown:
            assert result is UNLIMITED
        else:
            assert isinstance(result, LimitRefusal)
            assert (result.status, result.code) == (503, "rate_limit_unavailable")
            assert fields(result)["retry-after"] == "1"
            assert metrics.openai_limit_refusals_total.value(("a", "unknown")) == 1


# --- fields ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "1ms"),
        (0.2, "1ms"),
        (600, "600ms"),
        (3_599.9, "3.599s"),
        (1_000, "1s"),
        (1_050, "1.05s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (90_061_500, "25h1m1.5s"),
    ],
)
def test_durations_are_written_as_go_does(milliseconds: float, text: str) -> None:
    assert duration_text(milliseconds) == text


def test_retry_fields_are_never_zero_and_a_long_pause_is_not_for_clients() -> None:
    assert dict(retry_fields(0.0)) == {b"retry-after": b"1", b"retry-after-ms": b"1"}
    assert dict(retry_fields(4_000.5)) == {b"retry-after": b"5", b"retry-after-ms": b"4001"}
    assert b"x-should-retry" not in dict(retry_fields(60_000))
    assert dict(retry_fields(60_001))[b"x-should-retry"] == b"false"


def test_leases_are_unique_over_limiters() -> None:
    one, other = Setup(), Setup()
    assert one.limiter._lease_prefix != other.limiter._lease_prefix
    assert isinstance(one.limiter._leases, itertools.count)
