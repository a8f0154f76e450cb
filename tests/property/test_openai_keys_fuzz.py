"""Whatever stands in the key file, in limit rules or in the Authorization header: an error that is declared, or a value that holds."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.openai.keys.authenticator import KeyAuthenticator
from router.openai.keys.bearer import PRESENTED_KEY, presented_key
from router.openai.keys.caller import GrantedCaller
from router.openai.keys.key_file import KeyFile, KeyFileError, decode, encode
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_table import KeyTable
from router.openai.limits.rule import MAX_AMOUNT, Rule, RuleError, Unit, parse_rules
from router.openai.limits.token_bucket import refilled, taken, until_full_ms, wait_ms
from router.openai.ports import KeyRefused
from router.telemetry.metrics import Metrics

VALID = json.dumps(
    {
        "version": 1,
        "keys": [
            {
                "id": "team-a",
                "digest": "sha256:" + "ab" * 32,
                "created": "2026-01-01T00:00:00Z",
                "expires": "2027-01-01T00:00:00+01:00",
                "priority": 3,
                "routing_keys": ["a", ""],
                "models": ["m-*"],
                "limits": {"requests": "60-M", "tokens": "1000-M,5-D", "concurrency": 4},
                "model_limits": {"*": {"tokens": "5-H"}},
            }
        ],
    }
).encode()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def check(content: bytes) -> None:
    found: KeyFile | None = None
    told: tuple[str, str] | None = None
    try:
        found = decode(content)
    except KeyFileError as error:
        told = (error.reason, error.place)
    if found is None:
        assert told is not None
        assert all(told)
        return
    callers = found.callers()
    assert len(callers) == len(found.keys)
    for caller in callers.values():
        caller.may_use(None, "m")
        caller.limit_scopes("k", "m")
    assert decode(encode(found)) == found


@given(st.binary(max_size=400))
def test_any_bytes_as_key_file(content: bytes) -> None:
    check(content)


@settings(max_examples=400)
@given(st.data())
def test_a_key_file_with_bytes_changed(data: st.DataObject) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(("set", "cut", "insert", "end")))
        if how == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 8))]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(max_size=8))
        else:
            del content[at:]
        content = content or bytearray(b"x")
    check(bytes(content))


@settings(max_examples=300)
@given(st.data())
def test_a_key_file_with_other_values_in_its_members(data: st.DataObject) -> None:
    document = json.loads(VALID)
    entry = document["keys"][0]
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON)
    check(json.dumps(document).encode())


@given(st.text(max_size=40) | st.from_regex(r"[0-9]{1,18}-[SMHDWsmhdw](,[0-9]{1,4}-[SMHDW]){0,6}", fullmatch=True))
def test_any_text_as_rules(text: str) -> None:
    rules: tuple[Rule, ...] | None = None
    wrong_at = -1
    try:
        rules = parse_rules(text)
    except RuleError as error:
        wrong_at = error.position
    if rules is None:
        assert 0 <= wrong_at <= len(text)
        return
    assert len({rule.unit for rule in rules}) == len(rules) <= len(Unit)
    assert all(1 <= rule.amount <= MAX_AMOUNT for rule in rules)
    assert parse_rules(",".join(map(str, rules))) == rules


KEY = new_key()
TABLE = KeyTable({digest_of(KEY.encode()): GrantedCaller(key_id="a")})


@settings(max_examples=400)
@given(
    st.none()
    | st.binary(max_size=60)
    | st.builds(
        lambda scheme, gap, rest: scheme + gap + rest,
        st.sampled_from([b"Bearer", b"bEARER", b"Basic", b""]),
        st.sampled_from([b" ", b"", b"\t", b"  ", b"\x00", b","]),
        st.binary(max_size=80) | st.just(KEY.encode()),
    ),
    st.none() | st.binary(max_size=60),
)
def test_any_header_presents_a_bounded_key_or_none_and_only_the_key_itself_is_one(
    authorization: bytes | None, api_key: bytes | None
) -> None:
    found = presented_key(authorization, api_key)
    assert found is None or 0 < len(found) <= (PRESENTED_KEY.bytes or 0)
    gate = KeyAuthenticator(lambda: TABLE, Metrics().openai_key_refusals_total, hide=True, now=lambda: 0.0)
    answer = gate.authenticate(authorization, api_key)
    assert isinstance(answer, KeyRefused) == (found != KEY.encode())


CAPACITIES = st.integers(1, MAX_AMOUNT)
PERIODS = st.sampled_from([unit.period_ms for unit in Unit])


@given(CAPACITIES, PERIODS, st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e18, 1e18)), max_size=20))
def test_a_bucket_stays_within_its_capacity_whatever_is_taken_and_whenever(
    capacity: int, period_ms: int, turns: list[tuple[float, float]]
) -> None:
    level = float(capacity)
    for elapsed_ms, amount in turns:
        level = refilled(level, elapsed_ms, capacity, period_ms)
        level = taken(level, amount, capacity)
        assert -capacity <= level <= capacity
        assert 0 <= until_full_ms(level, capacity, period_ms) <= 2 * period_ms * 1.001


@given(st.integers(1, 10**6), PERIODS, st.data())
def test_after_the_wait_that_is_told_there_is_enough(capacity: int, period_ms: int, data: st.DataObject) -> None:
    level = data.draw(st.floats(-capacity, capacity))
    amount = data.draw(st.integers(0, capacity))
    wait = wait_ms(level, amount, capacity, period_ms)
    assert refilled(level, wait, capacity, period_ms) == pytest.approx(max(level, amount), abs=1e-6 * capacity)
