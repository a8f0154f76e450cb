"""No request is delivered twice (docs/proxy.md, "Retries"), and what a request gets that nobody has capacity for."""

import pytest

from router.config import package_settings
from router.config.cli import parse
from support.gateway_in_memory import gateway_in_memory
from support.http_client import post
from support.package_settings import REQUIRED
from support.waiting import eventually

OVERLOADED = (
    b'{"error":{"code":"overloaded_error","message":"Inference capacity is temporarily unavailable.","param":"",'
    b'"type":"overloaded_error"}}'
)


def ok(exchange):
    exchange.answer()


def broken(exchange):
    exchange.fail()


def refusing(status=429, reason="queue_estimate_mismatch", body=b"no", **headers):
    signal = {"x_stargate_retryable": "true"} | headers
    return lambda exchange: exchange.answer(status, body, x_stargate_retry_reason=reason, **signal)


def is_overloaded(answer):
    ours = {"x-stargate-error-code": "overloaded_error", "content-type": "application/json"}
    names = {name for name, _ in answer.fields}
    return (
        (answer.status, answer.body) == (503, OVERLOADED)
        and all(answer.header(name) == value for name, value in ours.items())
        and not names & {"x-inference-server-id", "x-stargate-cluster-id", "x-worker", "retry-after"}
    )


# --- delivery


@pytest.mark.parametrize(("compat", "status", "attempts"), [("0.11", 200, 2), ("0.18", 502, 1)])
async def test_a_request_that_was_handed_over_is_not_sent_again(compat, status, attempts):
    async with gateway_in_memory(compat=compat) as harness:
        harness.worker("a", cluster="c", on_request=broken)
        second = harness.worker("b", cluster="c", on_request=ok)
        got = await harness.ask(post(body=b"generate"))
        assert (got.status, len(second.exchanges)) == (status, attempts - 1)
        assert harness.count("proxy_ambiguous_delivery_total") == (2 - attempts)


async def test_a_request_that_was_not_handed_over_as_a_whole_is_sent_again():
    async with gateway_in_memory() as harness:
        first, second = harness.worker("a", cluster="c"), harness.worker("b", cluster="c")
        client = await harness.client()
        client.send(post(body=b"", content_length="9") + b"half")
        exchange = await first.next()
        exchange.stop_upload()
        client.send(b" five")
        await eventually(lambda: harness.proxy.replay_budget.used_bytes == 9)
        exchange.fail()
        again = await second.next()
        await eventually(lambda: again.ended)
        assert again.received == b"half five"
        again.answer()
        assert (await client.answer()).status == 200
        assert harness.count("proxy_ambiguous_delivery_total") == 0


async def test_a_late_head_after_the_hand_over_is_502_and_nobody_else_is_asked():
    async with gateway_in_memory(request_timeout_ms=50) as harness:
        harness.worker("a", cluster="c")
        other = harness.worker("b", cluster="c", on_request=ok)
        assert (await harness.ask(post())).status == 502
        assert not other.exchanges
        assert harness.count("proxy_ambiguous_delivery_total") == 1


async def test_an_ambiguous_delivery_wins_over_spent_budget_and_retries():
    async with gateway_in_memory(max_connect_retries=0) as harness:
        harness.worker("a", on_request=broken)
        assert (await harness.ask(post(x_stargate_max_wait_ms="0"))).status == 502
        assert harness.count("proxy_ambiguous_delivery_total") == 1
        assert harness.count("proxy_retry_exhausted_total") == 0


async def test_a_request_without_a_body_is_handed_over_with_its_head():
    async with gateway_in_memory() as harness:
        harness.worker("a", cluster="c", on_request=broken)
        other = harness.worker("b", cluster="c", on_request=ok)
        assert (await harness.ask(post(body=b""))).status == 502
        assert not other.exchanges


# --- the retry signal


@pytest.mark.parametrize("signal_required", [True, False])
@pytest.mark.parametrize(("compat", "status"), [("0.11", 200), ("0.18", 429)])
async def test_a_signal_that_is_given_twice_allows_no_retry(compat, status, signal_required):
    twice = [(b"x-stargate-retryable", b"true"), (b"x-stargate-retryable", b"true")]
    async with gateway_in_memory(compat=compat, require_retry_signal=signal_required) as harness:
        harness.worker("a", on_request=lambda exchange: exchange.answer_raw(429, twice))
        harness.worker("b", on_request=ok, queue_size=9, queued_input_size=9_000)
        assert (await harness.ask(post())).status == status


# --- capacity


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("reason", ["queue_estimate_mismatch", "chat_usage_rewrite_saturated"])
async def test_a_final_refusal_for_capacity_is_the_overload_answer(status, reason):
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=refusing(status, reason, x_worker="1", retry_after="5"))
        assert is_overloaded(await harness.ask(post(x_stargate_max_wait_ms="0")))
        assert harness.count("requests_total", 'status="503"') == 1


async def test_the_last_refusal_for_capacity_is_the_overload_answer_when_nobody_is_left():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=refusing())
        assert is_overloaded(await harness.ask(post()))


async def test_no_capacity_for_any_candidate_is_the_overload_answer():
    policy = b'{"models": {"m": {"algorithm": "pulsar", "consider_kv_free_tokens": true}}}'
    async with gateway_in_memory(policy) as harness:
        harness.worker(kv_cache_capacity_tokens=10, kv_cache_free_tokens=0, kv_cache_used_tokens=10)
        assert is_overloaded(await harness.ask(post(x_cache_affinity_key="k")))
        assert harness.count("admission_rejections_total", 'reason="routing_capacity_unavailable"') == 1


async def test_too_much_input_work_is_the_overload_answer():
    policy = b'{"models": {"m": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5}}}'
    async with gateway_in_memory(policy) as harness:
        harness.worker(queued_input_size=100, last_mean_input_tps=100.0)
        assert is_overloaded(await harness.ask(post(x_input_tokens="50")))
        assert harness.count("admission_rejections_total", 'reason="input_work_limit_exceeded"') == 1


@pytest.mark.parametrize(
    "answer",
    [
        refusing(429, "upstream_admission_rejected"),
        refusing(429, x_stargate_retryable="false"),
        lambda exchange: exchange.answer(429, b"no"),
        lambda exchange: exchange.answer(503, b"no"),
    ],
    ids=["another reason", "not retryable", "429 of the application", "503 of the application"],
)
async def test_other_refusals_pass_unchanged(answer):
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=answer)
        got = await harness.ask(post(x_stargate_max_wait_ms="0"))
        assert (got.status in (429, 503), got.body, got.header("x-stargate-error-code")) == (True, b"no", None)


async def test_a_body_that_outgrew_its_copy_wins_over_the_overload_answer():
    async with gateway_in_memory(max_replay_body_bytes=1) as harness:
        harness.worker("a", on_request=refusing())
        got = await harness.ask(post(body=b"xy", chunked=True, x_stargate_max_wait_ms="0"))
        assert (got.status, got.is_empty) == (413, True)


async def test_with_the_older_release_line_a_final_refusal_passes_unchanged():
    async with gateway_in_memory(compat="0.11") as harness:
        harness.worker("a", on_request=refusing())
        got = await harness.ask(post(x_stargate_max_wait_ms="0"))
        assert (got.status, got.body) == (429, b"no")


async def test_nobody_left_after_failures_is_an_empty_503():
    async with gateway_in_memory() as harness:
        harness.worker("a").refusal = "connection closed"
        got = await harness.ask(post())
        assert got.is_empty
        assert got.status in (502, 503)


# --- labels, paths and methods


@pytest.mark.parametrize(("compat", "series"), [("0.11", 20), ("0.18", 0)])
async def test_unknown_targets_are_counted_without_their_names(compat, series):
    async with gateway_in_memory(compat=compat) as harness:
        for number in range(20):
            assert (await harness.ask(post(model=f"unknown-{number}", x_routing_key="k"))).status == 404
        assert len(harness.series("requests_total", 'routing_key="k"')) == series
        assert harness.count("requests_total", 'status="404"') == 20


async def test_a_thousand_unknown_targets_make_no_series():
    async with gateway_in_memory() as harness:
        before = harness.metrics.render().count(b"\n")
        client = await harness.client()
        for number in range(1_000):
            client.send(post(model=f"model-{number}", x_routing_key=f"tenant-{number}"))
            assert (await client.answer()).status == 404
        page = harness.metrics.render()
        assert page.count(b"\n") == before
        assert b"tenant-" not in page
        (series,) = harness.series("requests_total")
        assert 'routing_key=""' in series
        assert 'model=""' in series
        assert harness.count("requests_total") == 1_000


@pytest.mark.parametrize(("compat", "status"), [("0.11", 404), ("0.18", 200)])
async def test_messages_are_proxied(compat, status):
    async with gateway_in_memory(compat=compat) as harness:
        worker = harness.worker(on_request=ok)
        request = post().replace(b"/v1/chat/completions", b"/v1/messages", 1)
        assert (await harness.ask(request)).status == status
        assert [exchange.request.path for exchange in worker.exchanges] == [b"/v1/messages"] * (status == 200)
        got = await harness.ask(request.replace(b"POST", b"GET", 1))
        assert (got.status, got.header("allow")) == ((405, "POST") if status == 200 else (404, None))


@pytest.mark.parametrize(("trusted", "status"), [(True, 400), (False, 200)])
async def test_a_method_that_is_not_trusted_is_ignored_and_not_passed_on(trusted, status):
    async with gateway_in_memory(trust_routing_method=trusted) as harness:
        worker = harness.worker(on_request=ok)
        assert (await harness.ask(post(x_routing_method="no-such-algorithm"))).status == status
        assert [exchange.header("x-routing-method") for exchange in worker.exchanges] == [None] * (status == 200)


async def test_headers_that_steer_an_engine_can_be_kept_from_workers():
    dropped = package_settings.proxy(parse([*REQUIRED, "--proxy-drop-request-headers=X-Worker-Id,x-dp-rank"], {}))
    async with gateway_in_memory(not_to_worker=dropped.not_to_worker) as harness:
        worker = harness.worker(on_request=ok)
        asked = post(
            x_worker_id="7", x_dp_rank="1", x_worker_idle="2", connection="keep-alive, X-Private", x_private="3"
        )
        assert (await harness.ask(asked)).status == 200
        (exchange,) = worker.exchanges
        for name in ("x-worker-id", "x-dp-rank", "x-private", "connection", "host"):
            assert exchange.header(name) is None
        assert (exchange.header("x-worker-idle"), exchange.header("x-model")) == ("2", "m")


@pytest.mark.parametrize(("compat", "passed"), [("0.11", "1"), ("0.18", None)])
async def test_what_a_connection_header_lists_is_not_passed_on_in_either_direction(compat, passed):
    async with gateway_in_memory(compat=compat) as harness:
        answer = [(b"connection", b"X-Of-Worker"), (b"x-of-worker", b"1"), (b"x-kept", b"2")]
        worker = harness.worker(on_request=lambda exchange: exchange.answer_raw(200, answer))
        got = await harness.ask(post(connection="keep-alive, X-Private", x_private="1", x_public="2"))
        (exchange,) = worker.exchanges
        assert (exchange.header("x-private"), exchange.header("x-public")) == (passed, "2")
        assert (got.header("x-of-worker"), got.header("x-kept")) == (passed, "2")
