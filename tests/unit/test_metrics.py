"""The metrics page: spelling, bounds of labels, and what is shown where."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import router
from router.telemetry.families import (
    OVERFLOW,
    SERIES,
    Counter,
    Description,
    Family,
    Gauge,
    Histogram,
    MetricNameError,
    number,
)
from router.telemetry.metrics import REASONS, REGISTERED_TARGETS, UNREGISTERED_TARGETS, LabelBounds, Metrics


def page(metrics: Metrics, *, additional: bool = False) -> str:
    return metrics.render(additional=additional).decode()


RELOADS = [
    'stargate_tls_reloads_total{material_type="server_identity",result="rejected"} 0',
    'stargate_tls_reloads_total{material_type="server_identity",result="success"} 0',
]


def test_a_fresh_process_shows_the_series_that_dashboards_know_from_the_start() -> None:
    lines = page(Metrics()).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "stargate_proxy_ambiguous_delivery_total 0",
        'stargate_requests_total{inference_server_id="",model="",routing_key="",status="404"} 0',
        *RELOADS,
    ]


def test_with_the_older_release_line_a_fresh_process_shows_the_two_reload_counters_only() -> None:
    lines = page(Metrics(as_of_0_18=False)).splitlines()
    assert [line for line in lines if not line.startswith("#")] == RELOADS
    assert [line.split()[1] for line in lines if line.startswith("#")] == ["HELP", "TYPE"]


@pytest.mark.parametrize(
    ("as_of_0_18", "longest_duration", "longest_routing"), [(True, "120", "120"), (False, "10", "0.1")]
)
def test_the_greatest_bounds_are_those_of_the_release_line(
    as_of_0_18: bool, longest_duration: str, longest_routing: str
) -> None:
    metrics = Metrics(as_of_0_18=as_of_0_18)
    metrics.proxy_duration_seconds.observe(1, ("", "m", "w"))
    metrics.routing_duration_seconds.observe(1, ("", "m"))
    for family, longest in (("proxy", longest_duration), ("routing", longest_routing)):
        bounds = re.findall(rf'^stargate_{family}_duration_seconds_bucket.*le="(.+?)"', page(metrics), re.MULTILINE)
        assert bounds[-2:] == [longest, "+Inf"]


def test_labels_are_sorted_and_whole_numbers_have_no_fraction() -> None:
    metrics = Metrics()
    metrics.requests_total.inc(("key", "m", "w-1", "200"))
    metrics.requests_total.inc(("key", "m", "w-1", "200"))
    assert 'stargate_requests_total{inference_server_id="w-1",model="m",routing_key="key",status="200"} 2\n' in page(
        metrics
    )


def test_bucket_bounds_stand_last_and_in_shortest_decimal_form() -> None:
    metrics = Metrics()
    metrics.proxy_replay_buffer_bytes.observe(1024, ("m",))
    metrics.routing_duration_seconds.observe(0.00005, ("", "m"))
    shown = page(metrics)
    for bound in ("0", "1024", "67108864", "+Inf"):
        assert f'stargate_proxy_replay_buffer_bytes_bucket{{model="m",le="{bound}"}}' in shown
    assert 'le="0.0001"' in shown
    assert 'stargate_routing_duration_seconds_sum{model="m",routing_key=""} 0.00005\n' in shown


def test_a_value_equal_to_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram("", Description("h", "help"), (1, 2))
    for value in (1, 1.5, 2, 3):
        histogram.observe(value)
    out: list[str] = []
    histogram.lines(out)
    assert "".join(out).splitlines()[2:] == [
        'h_bucket{le="1"} 1',
        'h_bucket{le="2"} 3',
        'h_bucket{le="+Inf"} 4',
        "h_sum 7.5",
        "h_count 4",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (0.005, "0.005"),
        (1e-05, "0.00001"),
        (1e22, "1" + "0" * 22),
        (float("inf"), "+Inf"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_never_have_an_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_every_page_is_understood_by_the_reference_parser() -> None:
    metrics = Metrics("zz_")
    metrics.set_active_inference_servers("key", 'a "quoted"\nmodel\\', 3)
    metrics.proxy_duration_seconds.observe(0.3, ("key", "m", "w"))
    metrics.build_info.set(1, ("1", "abc"))
    families = {family.name: family for family in text_string_to_metric_families(page(metrics, additional=True))}
    gauge = families["zz_active_inference_servers"].samples[0]
    assert gauge.labels == {"model": 'a "quoted"\nmodel\\', "routing_key": "key"}
    assert gauge.value == 3
    assert families["zz_proxy_duration_seconds"].type == "histogram"
    assert not any(name.startswith("stargate_") for name in families)


def test_additional_families_stand_on_their_own_page() -> None:
    metrics = Metrics()
    metrics.client_aborts_total.inc(("", "m", "body"))
    assert "client_aborts_total" not in page(metrics)
    assert "stargate_client_aborts_total{" in page(metrics, additional=True)


def test_an_illegal_prefix_is_refused() -> None:
    with pytest.raises(MetricNameError):
        Metrics("9-")


def test_models_nobody_registered_are_counted_together_beyond_a_bound() -> None:
    metrics = Metrics()
    metrics.set_active_inference_servers(None, "known", 1)
    for i in range(UNREGISTERED_TARGETS.pieces + 50):
        metrics.requests_total.inc(("", f"typo-{i}", "", "404"))
    metrics.requests_total.inc(("", "known", "w", "200"))
    assert metrics.requests_total.value(("", "typo-0", "", "404")) == 1
    assert metrics.requests_total.value((OVERFLOW, OVERFLOW, "", "404")) == 50
    assert metrics.requests_total.value(("", "known", "w", "200")) == 1


def test_a_target_that_registers_after_the_bound_was_reached_keeps_its_name() -> None:
    metrics = Metrics()
    for i in range(UNREGISTERED_TARGETS.pieces + 1):
        metrics.requests_total.inc(("", f"typo-{i}", "", "404"))
    metrics.set_active_inference_servers("key", "late", 1)
    metrics.requests_total.inc(("key", "late", "w", "200"))
    assert metrics.requests_total.value(("key", "late", "w", "200")) == 1


def test_targets_that_workers_make_up_are_bounded_too() -> None:
    bounds = LabelBounds()
    limit = REGISTERED_TARGETS.pieces + UNREGISTERED_TARGETS.pieces
    names = set()
    for i in range(limit + 3):
        bounds.register("", f"m-{i}")
        names.add(bounds.admit("f", ("routing_key", "model"), ("", f"m-{i}")))
    assert len(names) == limit + 1
    assert (OVERFLOW, OVERFLOW) in names


def test_reasons_invented_by_workers_are_bounded() -> None:
    metrics = Metrics()
    metrics.set_active_inference_servers(None, "m", 1)
    for i in range(REASONS.pieces + 7):
        metrics.proxy_retries_total.inc(("", "m", f"reason-{i}"))
    assert metrics.proxy_retries_total.value(("", "m", OVERFLOW)) == 7


def test_a_family_holds_a_bounded_number_of_series() -> None:
    counter = Counter("", Description("c", "help", ("id",)))
    for i in range(SERIES.pieces + 3):
        counter.inc((str(i),))
    assert counter.series() == SERIES.pieces + 1
    assert counter.value((OVERFLOW,)) == 3


def test_a_tracked_gauge_is_read_at_each_scrape() -> None:
    gauge = Gauge("", Description("g", "help"))
    values = iter([3, 4])
    gauge.track(lambda: next(values))
    first: list[str] = []
    second: list[str] = []
    gauge.lines(first)
    gauge.lines(second)
    assert first[-1] == "g 3\n"
    assert second[-1] == "g 4\n"


def test_a_gauge_without_workers_stays_at_zero() -> None:
    metrics = Metrics()
    metrics.set_active_inference_servers(None, "m", 1)
    metrics.set_active_inference_servers(None, "m", 0)
    assert 'stargate_active_inference_servers{model="m",routing_key=""} 0\n' in page(metrics)


def test_the_wrong_number_of_labels_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="takes labels"):
        Metrics().requests_total.inc(("only one",))


def test_every_family_stands_in_the_documentation() -> None:
    documented = (Path(router.__file__).parents[1] / "docs" / "operations.md").read_text()
    families = [name for name, value in vars(Metrics()).items() if isinstance(value, Family)]
    assert [name for name in families if f"`{name}`" not in documented] == []


def test_every_family_is_fed_by_some_package() -> None:
    root = Path(router.__file__).parent
    source = "\n".join(path.read_text() for path in root.rglob("*.py") if path.name != "metrics.py")
    families = [name for name, value in vars(Metrics()).items() if isinstance(value, Family)]
    assert families
    unfed = [name for name in families if f".{name}" not in source]
    assert unfed == ["active_inference_servers"]  # through `set_active_inference_servers`
