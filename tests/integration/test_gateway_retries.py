"""Retries: the order of limits, reservations and dials, which need settings of their own or a look inside; all else: tests/system/test_retries.py."""

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


async def test_admission_is_asked_again_before_another_choice():
    policy = b"""{"models": {"m": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5}}}"""
    async with gateway_in_memory(policy, compat="0.11") as harness:
        harness.worker("a", on_request=broken)
        harness.worker("b", on_request=ok, queued_input_size=100, last_mean_input_tps=100.0)
        got = await harness.ask(post(x_input_tokens="50"))
        assert (got.status, got.header("x-stargate-error-code")) == (503, "input_work_limit_exceeded")
        assert harness.count("admission_rejections_total") == 1


async def test_the_budget_comes_before_the_connect_limit():
    async with gateway_in_memory(max_connect_retries=0, compat="0.11") as harness:
        harness.worker("a", on_request=broken)
        assert (await harness.ask(post(x_stargate_max_wait_ms="0"))).status == 502
        assert harness.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"') == 1


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


async def test_a_dialled_worker_that_cannot_be_dialled_again_is_failed():
    async with gateway_in_memory(compat="0.11") as harness:
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


async def test_a_queue_mismatch_goes_on_at_a_sibling_and_gives_its_reservation_back():
    async with gateway_in_memory() as harness:
        rejected = harness.worker("a", cluster="c", on_request=rejecting("queue_estimate_mismatch"))
        harness.worker("b", cluster="c", on_request=ok)
        got = await harness.ask(post(body=BODY))
        assert got.header("x-inference-server-id") == "b"
        assert rejected.exchanges[0].cancelled
        assert harness.queue_size("c") == 1
        assert harness.count("routing_selections_total") == 1
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
        await harness.ask(post(x_stargate_max_wait_ms="0"))
        assert harness.queue_size("a") == (0 if given_back else 1)


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


def after_upload(answer):
    """Answer once the body is complete, as a worker that reads it first."""

    async def play(worker):
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        answer(exchange)

    return play


async def test_the_limit_comes_before_the_overflowed_copy():
    async with gateway_in_memory(max_replay_body_bytes=8, max_request_retries=0) as harness:
        worker = harness.worker("a")
        client = await harness.client()
        client.send(post(body=b"fifteen bytes..", chunked=True))
        await after_upload(rejecting())(worker)
        assert (await client.answer()).status == 429
