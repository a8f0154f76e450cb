"""The pages of several processes as one page."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.supervisor.metric_page import MetricFamily, MetricPageError, parse_page, render_page
from router.supervisor.metric_sum import HIGHEST, LOWEST, MetricSum, counted
from router.telemetry.families import Gauge
from router.telemetry.metrics import Metrics

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def page(requests: int, *, in_flight: int = 0, expiry: int = 5, servers: int = 1) -> dict[str, MetricFamily]:
    metrics = Metrics()
    for _ in range(requests):
        metrics.requests_total.inc(("", "m", "w", "200"))
        metrics.proxy_duration_seconds.observe(0.3, ("", "m", "w"))
    metrics.requests_in_flight.set(in_flight)
    metrics.tls_certificate_expiry_seconds.set(expiry, ("server_identity",))
    metrics.set_active_inference_servers(None, "m", servers)
    return parse_page(metrics.render(additional=True).decode())


def values(total: dict[str, MetricFamily]) -> dict[str, float]:
    return {series: value for family in total.values() for series, value in family.samples.items()}


REQUESTS = 'stargate_requests_total{inference_server_id="w",model="m",routing_key="",status="200"}'
BUCKET = 'stargate_proxy_duration_seconds_bucket{inference_server_id="w",model="m",routing_key="",le="+Inf"}'


def test_counters_and_histograms_are_added_up_and_gauges_follow_their_rule() -> None:
    total = values(
        MetricSum("stargate_").total([page(3, in_flight=2, expiry=9, servers=4), page(5, in_flight=1, servers=3)])
    )
    assert total[REQUESTS] == total[BUCKET] == 8
    assert total["stargate_requests_in_flight"] == 3
    assert total['stargate_tls_certificate_expiry_seconds{material_type="server_identity"}'] == 5
    assert total['stargate_active_inference_servers{model="m",routing_key=""}'] == 4


def test_what_a_process_has_counted_stays_when_it_ends_and_its_gauges_do_not() -> None:
    metrics = MetricSum("stargate_")
    metrics.retire(page(3, in_flight=2))
    metrics.retire(page(1))
    total = values(metrics.total([page(5, in_flight=1)]))
    assert total[REQUESTS] == total[BUCKET] == 9
    assert total["stargate_requests_in_flight"] == 1
    assert values(metrics.total([counted(page(5, in_flight=1))]))[REQUESTS] == 9
    assert "stargate_requests_in_flight" not in counted(page(1, in_flight=1))


def test_every_gauge_with_a_rule_exists_and_is_told_to_operators() -> None:
    gauges = {value.description.name for value in vars(Metrics()).values() if isinstance(value, Gauge)}
    assert gauges >= HIGHEST | LOWEST
    section = OPERATIONS.read_text().partition("## Several processes")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9_]+)`", section))
    assert named >= HIGHEST | LOWEST


def test_one_page_is_read_and_written_without_a_change() -> None:
    metrics = Metrics()
    metrics.requests_total.inc(('a "b"\n', "m{}", "w 1", "200"))
    metrics.routing_wait_seconds.observe(0.25, ("", "m"))
    shown = metrics.render(additional=True).decode()
    assert render_page(parse_page(shown).values()) == shown


def test_values_of_other_writers_are_understood() -> None:
    text = '# HELP a_seconds x\n# TYPE a_seconds gauge\na_seconds 1.5e+09\n# EOF\na_seconds{b="c"} +Inf\n'
    assert parse_page(text)["a_seconds"].samples == {"a_seconds": 1_500_000_000, 'a_seconds{b="c"}': float("inf")}
    assert parse_page("# TYPE a counter")["a"].kind == "counter"


@pytest.mark.parametrize("line", ["a", "a b", "a 1_0", "b 1", "a infinity", " 1"])
def test_what_is_no_page_is_refused(line: str) -> None:
    with pytest.raises(MetricPageError) as caught:
        parse_page(f"# TYPE a counter\n{line}\n")
    assert caught.value.line == line


@given(st.text())
def test_any_text_is_a_page_or_refused(text: str) -> None:
    try:
        families = parse_page(text)
    except MetricPageError:
        return
    render_page(families.values())


@given(st.lists(st.sampled_from('abc 1.5+Ine#\n{}"HELPTY'), max_size=60))
def test_any_text_that_is_nearly_a_page_is_a_page_or_refused(pieces: list[str]) -> None:
    test_any_text_is_a_page_or_refused.hypothesis.inner_test("# TYPE a counter\n" + "".join(pieces))  # type: ignore[attr-defined]
