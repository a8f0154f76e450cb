"""W3C trace context: what counts as a context, and which requests are sampled."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.trace_context import Sampling, TraceContext, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
LOW_TRACE = "f" * 16 + "0" * 15 + "1"
HIGH_TRACE = "0" * 15 + "1" + "f" * 16


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f" \t00-{TRACE}-{SPAN}-01\t ", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True),
        (f"01-{TRACE}-{SPAN}-09", True),
    ],
)
def test_a_context_is_read(value: str, sampled: bool) -> None:
    assert parse_traceparent(value.encode()) == TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"  ",
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01-".encode(),
        f"00-{TRACE}-{SPAN}-0".encode(),
        f"00-{TRACE}-{SPAN}".encode(),
        f"00-{TRACE}-{SPAN}-011".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode(),
        b"\xff" * 55,
    ],
)
def test_what_is_not_valid_counts_as_absent(value: bytes | None) -> None:
    assert parse_traceparent(value) is None


@given(
    st.binary(max_size=80)
    | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{30,33}-[0-9a-f]{15,17}-[0-9a-f]{2}.?", fullmatch=True)
)
def test_any_bytes_are_a_context_or_none(value: bytes) -> None:
    found = parse_traceparent(value)
    if found is not None:
        assert parse_traceparent(found.traceparent()) == found
        assert found.traceparent()[3:52] in value


@given(
    st.binary(max_size=80)
    | st.from_regex(rb"0[0-1]-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)
    | st.just(f"00-{'0' * 32}-{SPAN}-00".encode())
    | st.just(f"00-{TRACE}-{SPAN}-00".encode())
)
def test_what_is_passed_on_without_a_decision_would_not_be_sampled(value: bytes) -> None:
    if Sampling(1.0, Random(1), parent_based=True).passes_on(value):
        found = parse_traceparent(value)
        assert found is not None
        assert not found.sampled


def test_a_context_that_is_not_sampled_is_passed_on_only_by_parent_based_samplers() -> None:
    value = f"00-{TRACE}-{SPAN}-00".encode()
    assert Sampling(1.0, Random(1), parent_based=True).passes_on(value)
    assert not Sampling(1.0, Random(1), parent_based=False).passes_on(value)
    assert not Sampling(1.0, Random(1), parent_based=True).passes_on(value[:-1] + b"1")


def test_workers_see_no_flag_but_sampled() -> None:
    for flags, sent in (("03", "01"), ("02", "00")):
        found = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}".encode())
        assert found is not None
        assert found.traceparent() == f"00-{TRACE}-{SPAN}-{sent}".encode()


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_parent_based_sampler_keeps_the_decision_of_the_caller(sampled: bool, share: float) -> None:
    caller = TraceContext(TRACE, SPAN, sampled)
    assert Sampling(share, Random(1), parent_based=True).decide(caller) is caller


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize(("trace_id", "decided"), [(LOW_TRACE, True), (HIGH_TRACE, False)])
def test_a_ratio_decides_by_the_trace_id(trace_id: str, sampled: bool, decided: bool) -> None:
    found = Sampling(0.5, Random(1), parent_based=False).decide(TraceContext(trace_id, SPAN, sampled))
    assert found == TraceContext(trace_id, SPAN, decided)


def test_every_trace_or_none() -> None:
    caller = TraceContext("f" * 32, SPAN, sampled=False)
    assert Sampling(1.0, Random(1), parent_based=False).decide(caller).sampled
    assert not Sampling(0.0, Random(1), parent_based=False).decide(TraceContext(LOW_TRACE, SPAN, sampled=True)).sampled


def test_one_in_a_hundred_of_the_traces_that_begin_here_is_sampled() -> None:
    sampling = Sampling(0.01, Random(7), parent_based=True)
    found = [sampling.decide(None) for _ in range(20_000)]
    assert 140 < sum(context.sampled for context in found) < 260
    assert len({context.trace_id for context in found}) == len(found)
    assert all(parse_traceparent(context.traceparent()) == context for context in found)
