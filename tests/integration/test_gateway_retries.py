"""Which failures and answers lead to another attempt, where it goes, and what the client sees; docs/proxy.md, "Retries"."""

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import post
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


BODY = bytes(range(256)) * 40


def ok(exchange):
    exchange.answer()


def broken(exchange):
    exchange.fail()


def rejecting(reason="upstream_admission_rejected", status=429, **headers):
    def answer(exchange):
        exchange.answer(status, b"no", **{"x_stargate_retryable": "true", "x_stargate_retry_reason": reason, **headers})

    return answer


BUSY = {"queue_size": 9, "queued_input_size": 9000}
"""Figures of a worker that is only chosen once no other is left."""

# --- transport failures


async def test_a_failure_goes_on_at_a_sibling_of_the_same_cluster_with_identical_bytes():
    async with gateway_in_memory() as harness:
        first = harness.worker("a", cluster="shared", on_request=broken)
        second = harness.worker("b", cluster="shared", on_request=ok)
        other = harness.worker("c", on_request=ok, **BUSY)
        got = await harness.ask(post(body=BODY))
        assert (got.status, got.header("x-inference-server-id")) == (200, "b")
        assert got.header("x-stargate-cluster-id") == "shared"
        assert not other.exchanges
        assert first.exchanges[0].received == second.exchanges[0].received == BODY
        one, two = (worker.exchanges[0].request for worker in (first, second))
        assert (one.path, one.headers) == (two.path, two.headers)
        assert harness.count("proxy_retries_total", 'reason="connect_failover"') == 1
        assert harness.count("routing_selections_total") == 1
        assert harness.count("requests_total") == harness.count("requests_total", 'inference_server_id="b"') == 1


async def test_without_a_sibling_a_failure_goes_on_in_another_cluster():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=broken)
        harness.worker("b", on_request=ok, **BUSY)
        assert (await harness.ask(post())).header("x-inference-server-id") == "b"
        assert harness.count("routing_selections_total") == 2


async def test_when_everyone_has_failed_the_answer_is_an_empty_503():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=broken)
        harness.worker("b", on_request=broken)
        got = await harness.ask(post())
        assert (got.status, got.is_empty) == (503, True)
        assert harness.count("proxy_retry_exhausted_total", 'reason="no_eligible_backend"') == 1
        assert harness.count("requests_total", 'inference_server_id=""', 'status="503"') == 1


async def test_admission_is_asked_again_before_another_choice():
    policy = b"""{"models": {"m": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5}}}"""
    async with gateway_in_memory(policy) as harness:
        harness.worker("a", on_request=broken)
        harness.worker("b", on_request=ok, queued_input_size=100, last_mean_input_tps=100.0)
        got = await harness.ask(post(x_input_tokens="50"))
        assert (got.status, got.header("x-stargate-error-code")) == (503, "input_work_limit_exceeded")
        assert harness.count("admission_rejections_total") == 1


async def test_connect_retries_used_up_is_an_empty_502():
    async with gateway_in_memory() as harness:
        workers = [harness.worker(name, cluster="c", on_request=broken) for name in "abcd"]
        got = await harness.ask(post())
        assert (got.status, got.is_empty) == (502, True)
        assert sum(len(worker.exchanges) for worker in workers) == 3
        assert harness.count("proxy_retry_exhausted_total", 'reason="connect_retries_exhausted"') == 1
        assert harness.count("requests_total", 'inference_server_id="b"', 'status="502"') == 1  # the turn goes a, c, b


async def test_a_spent_budget_forbids_another_attempt_after_a_failure():
    async with gateway_in_memory() as harness:
        harness.worker("a", cluster="c", on_request=broken)
        harness.worker("b", cluster="c", on_request=ok)
        assert (await harness.ask(post(x_stargate_max_wait_ms="0"))).status == 502
        assert harness.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"') == 1
        assert harness.count("proxy_retry_exhausted_total") == 1


async def test_the_budget_comes_before_the_connect_limit():
    async with gateway_in_memory(max_connect_retries=0) as harness:
        harness.worker("a", on_request=broken)
        assert (await harness.ask(post(x_stargate_max_wait_ms="0"))).status == 502
        assert harness.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"') == 1


async def test_the_largest_budget_is_no_limit():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=broken)
        harness.worker("b", on_request=ok, **BUSY)
        assert (await harness.ask(post(x_stargate_max_wait_ms=str(2**64 - 1)))).status == 200


async def test_a_failure_with_an_overflowed_copy_is_413():
    async with gateway_in_memory(max_replay_body_bytes=8) as harness:
        worker = harness.worker("a")
        harness.worker("b", on_request=ok, **BUSY)
        client = await harness.client()
        client.send(post(body=b"fifteen bytes..", chunked=True))
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        assert exchange.received == b"fifteen bytes.."
        exchange.fail()
        got = await client.answer()
        assert (got.status, got.is_empty) == (413, True)
        assert harness.count("requests_total", 'inference_server_id="a"', 'status="413"') == 1


async def test_a_failure_in_the_middle_of_the_upload_is_502():
    async with gateway_in_memory() as harness:
        worker = harness.worker("a")
        harness.worker("b", on_request=ok, **BUSY)
        client = await harness.client()
        client.send(post(body=b"", content_length="9") + b"half")
        (await worker.next()).fail()
        got = await client.answer()
        assert (got.status, got.is_empty) == (502, True)
        assert harness.count("proxy_retry_exhausted_total") == 0
        assert harness.count("proxy_retries_total") == 0


async def test_a_stream_that_could_not_be_opened_leaves_the_body_untouched():
    async with gateway_in_memory() as harness:
        harness.worker("a").refusal = "connection closed"
        worker = harness.worker("b", **BUSY)
        client = await harness.client()
        client.send(post(body=b"", content_length="9") + b"half")
        exchange = await worker.next()
        client.send(b" five")
        await eventually(lambda: exchange.ended)
        assert exchange.received == b"half five"
        exchange.answer()
        assert (await client.answer()).status == 200


# --- dialled workers


async def test_a_dialled_worker_is_dialled_again_and_asked_again():
    async with gateway_in_memory() as harness:
        worker = harness.worker("a", direct=True, on_request=lambda one: broken(one) if first(one) else ok(one))

        def first(exchange):
            return exchange is worker.exchanges[0]

        assert (await harness.ask(post(body=BODY))).status == 200
        assert worker.reconnects == 1
        assert [exchange.received for exchange in worker.exchanges] == [BODY, BODY]
        assert harness.count("quic_connection_evictions_total", 'reason="proxy_error"') == 1
        assert harness.count("quic_hot_path_reconnect_total", 'result="success"') == 1
        assert harness.count("proxy_retries_total", 'reason="hot_path_reconnect"') == 1


async def test_a_dialled_worker_that_cannot_be_dialled_again_is_failed():
    async with gateway_in_memory() as harness:
        worker = harness.worker("a", cluster="c", direct=True, on_request=broken)
        worker.dialable = False
        harness.worker("b", cluster="c", direct=True, on_request=ok)
        assert (await harness.ask(post())).header("x-inference-server-id") == "b"
        assert harness.count("quic_hot_path_reconnect_total", 'result="error"') == 1
        assert harness.count("proxy_retries_total", 'reason="connect_failover"') == 1


async def test_a_stale_dialled_worker_is_dialled_before_the_attempt():
    async with gateway_in_memory() as harness:
        worker = harness.worker("a", direct=True, on_request=ok)
        worker.up = False
        assert (await harness.ask(post())).status == 200
        assert harness.count("quic_connection_evictions_total", 'reason="stale_connection"') == 1
        assert harness.count("quic_hot_path_reconnect_total", 'result="success"') == 1
        assert harness.count("proxy_attempts_total") == 1


async def test_three_stale_workers_use_up_the_redials_although_a_fourth_is_well():
    async with gateway_in_memory() as harness:
        for name in "abc":
            worker = harness.worker(name, cluster="c", direct=True)
            worker.up = worker.dialable = False
        harness.worker("d", cluster="c", direct=True, on_request=ok)
        got = await harness.ask(post())
        assert (got.status, got.is_empty) == (502, True)
        assert harness.count("quic_hot_path_reconnect_total", 'result="error"') == 2
        assert harness.count("proxy_attempts_total") == 1


async def test_no_connect_retries_means_no_dial_at_all():
    async with gateway_in_memory(max_connect_retries=0) as harness:
        worker = harness.worker("a", direct=True)
        worker.up = False
        assert (await harness.ask(post())).status == 502
        assert worker.reconnects == 0
        assert harness.count("quic_hot_path_reconnect_total") == 0
        assert harness.count("proxy_retry_exhausted_total", 'reason="connect_retries_exhausted"') == 1


# --- retryable answers


async def test_a_retryable_answer_goes_on_in_another_cluster_and_skips_siblings():
    async with gateway_in_memory() as harness:
        rejected = harness.worker("a", cluster="c", on_request=rejecting())
        sibling = harness.worker("b", cluster="c", on_request=ok)
        other = harness.worker("z", on_request=ok, **BUSY)
        got = await harness.ask(post(body=BODY))
        assert got.header("x-inference-server-id") == "z"
        assert not sibling.exchanges
        assert rejected.exchanges[0].received == other.exchanges[0].received == BODY
        assert rejected.exchanges[0].cancelled
        assert harness.count("proxy_retries_total", 'reason="upstream_admission_rejected"') == 1
        assert harness.count("proxy_attempts_total", 'result="upstream_429"') == 1
        assert harness.count("routing_selections_total") == 2
        assert harness.count("requests_total") == harness.count("requests_total", 'inference_server_id="z"') == 1
        assert harness.queue_size("c") == 1  # only a queue mismatch gives the reservation back


async def test_a_queue_mismatch_goes_on_at_a_sibling_and_gives_its_reservation_back():
    async with gateway_in_memory() as harness:
        harness.worker("a", cluster="c", on_request=rejecting("queue_estimate_mismatch"))
        harness.worker("b", cluster="c", on_request=ok)
        got = await harness.ask(post(body=BODY))
        assert got.header("x-inference-server-id") == "b"
        assert harness.queue_size("c") == 1
        assert harness.count("routing_selections_total") == 1
        assert harness.count("proxy_retries_total", 'reason="queue_estimate_mismatch"') == 1


async def test_a_queue_mismatch_without_budget_is_passed_on_and_still_gives_its_reservation_back():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=rejecting("queue_estimate_mismatch"))
        harness.worker("b", on_request=ok, **BUSY)
        got = await harness.ask(post(x_stargate_max_wait_ms="0"))
        assert (got.status, got.body) == (429, b"no")
        assert harness.queue_size("a") == 0
        assert harness.count("proxy_retries_total") == 0


async def test_a_queue_mismatch_without_a_sibling_goes_on_in_another_cluster():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=rejecting("queue_estimate_mismatch"))
        harness.worker("b", on_request=ok, **BUSY)
        assert (await harness.ask(post())).header("x-inference-server-id") == "b"
        assert harness.queue_size("a") == 0
        assert harness.count("proxy_retries_total", 'reason="queue_estimate_mismatch"') == 1


@pytest.mark.parametrize(
    ("status", "signal", "reason", "given_back"),
    [
        (429, "true", "queue_estimate_mismatch", True),
        (429, "TRUE", "queue_estimate_mismatch", True),
        (503, "true", "queue_estimate_mismatch", False),
        (429, "true", "queue_estimate_mismatch_", False),
        (429, "true", "upstream_admission_rejected", False),
        (429, "false", "queue_estimate_mismatch", False),
        (200, "true", "queue_estimate_mismatch", False),
    ],
)
async def test_only_a_queue_mismatch_gives_the_reservation_back(status, signal, reason, given_back):
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=rejecting(reason, status, x_stargate_retryable=signal))
        assert (await harness.ask(post(x_stargate_max_wait_ms="0"))).status == status
        assert harness.queue_size("a") == (0 if given_back else 1)


@pytest.mark.parametrize(
    ("status", "headers", "retried"),
    [
        (429, {}, False),
        (503, {}, False),
        (429, {"x_stargate_retryable": "true"}, True),
        (503, {"x_stargate_retryable": "TRUE"}, True),
        (429, {"x_stargate_retryable": "false"}, False),
        (400, {"x_stargate_retryable": "true"}, False),
        (500, {"x_stargate_retryable": "true"}, False),
        (502, {"x_stargate_retryable": "true"}, False),
    ],
)
async def test_only_marked_429_and_503_are_retried(status, headers, retried):
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=lambda exchange: exchange.answer(status, b"no", **headers))
        harness.worker("b", on_request=ok, **BUSY)
        got = await harness.ask(post())
        assert got.status == (200 if retried else status)
        assert harness.count("proxy_retries_total", 'reason="retryable_upstream_response"') == int(retried)


@pytest.mark.parametrize(("signal", "retried"), [(None, True), ("true", True), ("false", False), ("", False)])
async def test_where_no_signal_is_required_another_value_still_forbids(signal, retried):
    async with gateway_in_memory(require_retry_signal=False) as harness:
        headers = {} if signal is None else {"x_stargate_retryable": signal}
        harness.worker("a", on_request=lambda exchange: exchange.answer(503, b"no", **headers))
        harness.worker("b", on_request=ok, **BUSY)
        assert (await harness.ask(post())).status == (200 if retried else 503)


async def test_a_spent_budget_passes_the_rejection_on_without_its_signal():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=rejecting())
        harness.worker("b", on_request=ok, **BUSY)
        got = await harness.ask(post(x_stargate_max_wait_ms="0"))
        assert (got.status, got.body, got.header("x-stargate-retryable")) == (429, b"no", None)
        assert got.header("x-inference-server-id") == "a"
        assert harness.count("proxy_retry_exhausted_total") == 1
        assert harness.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"') == 1


async def test_the_budget_comes_before_the_request_limit_and_the_copy():
    async with gateway_in_memory(max_request_retries=0, max_replay_body_bytes=1) as harness:
        harness.worker("a", on_request=rejecting())
        got = await harness.ask(post(body=b"xy", chunked=True, x_stargate_max_wait_ms="0"))
        assert (got.status, got.body) == (429, b"no")
        assert harness.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"') == 1
        assert harness.count("proxy_retry_exhausted_total") == 1


async def test_the_request_limit_passes_the_last_rejection_on():
    async with gateway_in_memory(max_request_retries=1) as harness:
        harness.worker("a", on_request=rejecting())
        harness.worker("b", on_request=rejecting(status=503))
        harness.worker("c", on_request=rejecting())
        got = await harness.ask(post())
        assert got.body == b"no"
        assert got.header("x-stargate-retryable") is None
        assert harness.count("proxy_retry_exhausted_total", 'reason="upstream_admission_rejected"') == 1
        assert harness.count("proxy_attempts_total") == 2


async def test_a_rejection_by_the_only_cluster_is_an_empty_503():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=rejecting())
        got = await harness.ask(post())
        assert (got.status, got.is_empty) == (503, True)
        assert harness.count("proxy_retry_exhausted_total", 'reason="no_eligible_backend"') == 1


async def test_a_queue_mismatch_without_anyone_else_is_an_empty_503():
    async with gateway_in_memory() as harness:
        harness.worker("a", on_request=rejecting("queue_estimate_mismatch"))
        got = await harness.ask(post())
        assert (got.status, got.is_empty) == (503, True)


def after_upload(answer):
    """Answer once the body is complete, as a worker that reads it first."""

    async def play(worker):
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        answer(exchange)

    return play


async def test_a_retry_wanted_with_an_overflowed_copy_is_413():
    async with gateway_in_memory(max_replay_body_bytes=8) as harness:
        worker = harness.worker("a")
        client = await harness.client()
        client.send(post(body=b"fifteen bytes..", chunked=True))
        await after_upload(rejecting())(worker)
        got = await client.answer()
        assert (got.status, got.is_empty) == (413, True)
        assert harness.count("proxy_attempts_total", 'result="upstream_429"') == 1
        assert harness.count("requests_total", 'inference_server_id="a"', 'status="413"') == 1


async def test_the_limit_comes_before_the_overflowed_copy():
    async with gateway_in_memory(max_replay_body_bytes=8, max_request_retries=0) as harness:
        worker = harness.worker("a")
        client = await harness.client()
        client.send(post(body=b"fifteen bytes..", chunked=True))
        await after_upload(rejecting())(worker)
        assert (await client.answer()).status == 429


async def test_a_rejection_before_the_end_of_the_upload_is_passed_on():
    async with gateway_in_memory() as harness:
        worker = harness.worker("a")
        other = harness.worker("b", on_request=ok, **BUSY)
        client = await harness.client()
        client.send(post(body=b"", content_length="9") + b"half")
        rejecting()(await worker.next())
        assert (await client.answer()).status == 429
        assert not other.exchanges


async def test_the_two_kinds_of_retries_are_counted_apart():
    async with gateway_in_memory() as harness:
        harness.worker("a", cluster="1", on_request=broken)
        harness.worker("b", cluster="2", on_request=rejecting(), queue_size=1, queued_input_size=1000)
        harness.worker("c", cluster="3", on_request=broken, queue_size=2, queued_input_size=2000)
        harness.worker("d", cluster="4", on_request=rejecting(), queue_size=3, queued_input_size=3000)
        harness.worker("e", cluster="5", on_request=ok, queue_size=4, queued_input_size=4000)
        got = await harness.ask(post(body=BODY))
        assert got.header("x-inference-server-id") == "e"
        assert harness.count("proxy_attempts_total") == 5


async def test_a_failure_after_the_head_is_never_repeated():
    async with gateway_in_memory() as harness:
        worker = harness.worker("a")
        other = harness.worker("b", on_request=ok, **BUSY)
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        exchange.fail()
        assert (await client.head()).status == 200
        await eventually(lambda: not harness.http.in_flight)
        assert not other.exchanges
