"""The series of a request are found once per target and worker, and what is kept of them is bounded."""

from router.proxy.request_series import FOUND_SERIES, RequestSeries
from router.telemetry.metrics import Metrics


def a_target(metrics, series, model="m"):
    metrics.set_active_inference_servers("key", model, 1)
    return series.of_target(("key", model))


def test_series_begin_with_their_first_update_and_add_up_over_requests():
    metrics = Metrics("")
    series = RequestSeries(metrics)
    target = a_target(metrics, series)
    server = target.of_server("w")
    assert b"proxy_attempts_total" not in metrics.render(additional=True)
    assert metrics.request_first_byte_seconds.series() == 0
    for _ in range(2):
        server.attempt_answered(200)
        server.answered(503)
        server.duration.observe(0.5)
        target.first_byte.observe(0.25)
        target.selected("power-of-n", fallback=False)
        target.selected("power-of-n", fallback=True)
    assert series.of_target(("key", "m")) is target
    assert target.of_server("w") is server
    assert metrics.proxy_attempts_total.value(("key", "m", "w", "upstream_200")) == 2
    assert metrics.requests_total.value(("key", "m", "w", "503")) == 2
    assert metrics.proxy_duration_seconds.count(("key", "m", "w")) == 2
    assert metrics.request_first_byte_seconds.count(("key", "m")) == 2
    for selection in ("primary", "fallback"):
        assert metrics.routing_selections_total.value(("key", "m", "power-of-n", selection)) == 2


def test_all_that_is_kept_is_let_go_at_the_limit_and_counts_go_on():
    metrics = Metrics("")
    series = RequestSeries(metrics)
    target = a_target(metrics, series)
    target.of_server("w").answered(200)
    for number in range(FOUND_SERIES.pieces + 1):
        series.of_target(("key", "m")).of_server(f"w{number}")
    assert series.of_target(("key", "m")) is not target
    series.of_target(("key", "m")).of_server("w").answered(200)
    assert metrics.requests_total.value(("key", "m", "w", "200")) == 2


def test_statuses_of_one_worker_count_too():
    metrics = Metrics("")
    series = RequestSeries(metrics)
    target = a_target(metrics, series)
    for number in range(FOUND_SERIES.pieces // 800 + 1):
        server = target.of_server(f"w{number}")
        for status in range(200, 1000):
            server.answered(status)
    assert series.of_target(("key", "m")) is not target
