"""Retries and failover, on a gateway in memory and on a router with real tunnels; docs/proxy.md, "Retries" and "Replay"."""

import asyncio

import pytest

from support.cases import BUSY
from support.scripted_worker import ScriptedWorker
from tunnel_protocol.head import EXPECTED_QUEUE_MS

REPLAY_LIMIT = 100_000
pytestmark = pytest.mark.gateway(max_replay_body_bytes=REPLAY_LIMIT, compat="0.11")
OVER_THE_LIMIT = b"0123456789" * 20_000
SIGNAL = {"x_stargate_retryable": "true", "x_stargate_retry_reason": "upstream_admission_rejected"}
MISMATCH = {"x_stargate_retryable": "true", "x_stargate_retry_reason": "queue_estimate_mismatch"}


async def whole(tunnel):
    """The next request of a worker, once all of it is there."""
    request = await tunnel.next_request()
    await request.until(lambda it: it.complete)
    return request


# --- answers that ask for another attempt


async def test_a_retryable_answer_goes_to_another_cluster_with_the_same_bytes(case):
    first, sibling = await case.pair()
    other = await case.worker("z", stats=BUSY)
    client = await case.send(case.post("/v1/embeddings?a=b", b"\0\xff" * 20_000, chunked=True))
    rejecting = await whole(first)
    rejecting.answer(429, b"no", **SIGNAL)
    request = await whole(other)
    assert rejecting.body == request.body == b"\0\xff" * 20_000
    estimates = (rejecting.header("x-stargate-expected-queue-ms"), request.header("x-stargate-expected-queue-ms"))
    assert estimates == ("0", "90000")
    others = [[one for one in it.head.headers if one[0] != EXPECTED_QUEUE_MS] for it in (rejecting, request)]
    assert others[0] == others[1]
    assert request.head.path == b"/v1/embeddings?a=b"
    request.answer(200, b"yes")
    got = await client.answer()
    assert (got.status, got.body, got.header("x-stargate-cluster-id")) == (200, b"yes", case.id("z"))
    assert not sibling.requests
    assert await case.count("proxy_attempts_total", 'result="upstream_429"') == 1
    assert await case.count("proxy_retries_total", 'reason="upstream_admission_rejected"') == 1
    assert await case.count("routing_selections_total") == 2
    assert await case.count("requests_total") == 1


async def test_a_queue_mismatch_without_a_sibling_goes_to_another_cluster(case):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post())
    (await whole(first)).answer(429, b"no", **MISMATCH)
    (await whole(other)).answer(200, b"yes")
    assert (await client.answer()).header("x-inference-server-id") == case.id("b")
    assert await case.count("proxy_retries_total", 'reason="queue_estimate_mismatch"') == 1


async def test_a_queue_mismatch_goes_to_the_sibling(case):
    first, sibling = await case.pair()
    client = await case.send(case.post())
    (await whole(first)).answer(429, b"no", **MISMATCH)
    (await whole(sibling)).answer(200, b"yes")
    got = await client.answer()
    assert (got.body, got.header("x-stargate-cluster-id")) == (b"yes", case.id("c"))
    chosen = ("routing_selections_total", 'algorithm="power-of-n"', 'selection="primary"')
    assert await case.count("routing_selections_total") == await case.count(*chosen) == 1
    assert await case.count("proxy_retries_total", 'reason="queue_estimate_mismatch"') == 1


@pytest.mark.parametrize("signal", [SIGNAL, MISMATCH], ids=["rejection", "mismatch"])
async def test_a_rejection_by_the_only_worker_becomes_an_empty_503(case, signal):
    tunnel = await case.worker()
    client = await case.send(case.post())
    (await whole(tunnel)).answer(429, b"no", **signal)
    got = await client.answer()
    assert (got.status, got.is_empty, got.header("x-inference-server-id")) == (503, True, None)
    assert await case.count("proxy_retry_exhausted_total", 'reason="no_eligible_backend"') == 1


@pytest.mark.parametrize("signal", [SIGNAL, MISMATCH], ids=["rejection", "mismatch"])
async def test_without_a_budget_the_rejection_itself_is_the_answer(case, signal):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post(x_stargate_max_wait_ms="0"))
    (await whole(first)).answer(429, b"no", **signal)
    got = await client.answer()
    assert (got.status, got.body, got.header("x-stargate-retryable")) == (429, b"no", None)
    assert got.header("x-inference-server-id") == case.id("a")
    assert not other.requests
    spent = await case.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"')
    assert spent == await case.count("proxy_retry_exhausted_total") == 1
    assert await case.count("proxy_retries_total") == 0


async def test_after_two_retries_the_third_rejection_is_the_answer(case):
    tunnels = [await case.worker(name) for name in "abcd"]

    async def reject(tunnel):
        (await whole(tunnel)).answer(503, b"no", **SIGNAL)

    rejecting = [asyncio.create_task(reject(tunnel)) for tunnel in tunnels]
    got = await case.ask(case.post())
    assert (got.status, got.body, got.header("x-stargate-retryable")) == (503, b"no", None)
    assert await case.count("proxy_attempts_total", 'result="upstream_503"') == 3
    assert await case.count("proxy_retry_exhausted_total", 'reason="upstream_admission_rejected"') == 1
    for task in rejecting:
        task.cancel()
    await asyncio.wait(rejecting)


async def answers(case, status, headers, retried):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post())
    (await whole(first)).answer(status, b'{"error":"busy"}', **headers)
    if retried:
        (await whole(other)).answer()
    got = await client.answer()
    assert (got.status, got.body) == ((200, b"ok") if retried else (status, b'{"error":"busy"}'))
    assert not other.requests
    assert await case.count("proxy_retries_total", 'reason="retryable_upstream_response"') == int(retried)


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
async def test_only_marked_429_and_503_are_retried(case, status, headers, retried):
    await answers(case, status, headers, retried)


@pytest.mark.gateway(require_retry_signal=False, compat="0.11")
@pytest.mark.parametrize(("signal", "retried"), [(None, True), ("true", True), ("false", False), ("", False)])
async def test_where_no_signal_is_required_another_value_still_forbids(case, signal, retried):
    headers = {} if signal is None else {"x_stargate_retryable": signal}
    await answers(case, 503, headers, retried)


async def test_the_two_kinds_of_retries_are_counted_apart(case):
    asked = []

    async def play(name, worker):
        request = await whole(worker)
        asked.append(name)
        if len(asked) == 5:
            request.answer()
        elif len(asked) % 2:
            request.break_off()
        else:
            request.answer(429, b"no", **SIGNAL)

    workers = {name: await case.worker(name) for name in "abcde"}
    playing = [asyncio.create_task(play(name, worker)) for name, worker in workers.items()]
    got = await case.ask(case.post(body=b"body" * 100))
    await asyncio.gather(*playing)
    assert (got.status, got.header("x-inference-server-id")) == (200, case.id(asked[-1]))
    assert await case.count("proxy_attempts_total") == 5


# --- bodies that outgrow their copy


async def test_a_body_beyond_the_limit_is_served_as_long_as_nobody_wants_it_again(case):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post(body=OVER_THE_LIMIT, chunked=True))
    request = await whole(first)
    assert request.body == OVER_THE_LIMIT
    request.answer()
    assert (await client.answer()).status == 200
    for fail in (lambda it: it.answer(429, b"no", **SIGNAL), lambda it: it.break_off()):
        client.send(case.post(body=OVER_THE_LIMIT, chunked=True))
        fail(await whole(first))
        got = await client.answer()
        assert (got.status, got.is_empty) == (413, True)
    assert not other.requests
    assert await case.count("requests_total", 'status="413"', case.id("a")) == 2
    assert (await case.ask(case.post(body=OVER_THE_LIMIT))).status == 413
    assert await case.count("proxy_attempts_total") == 3


# --- failures


@pytest.mark.parametrize("budget", [None, str(2**64 - 1)], ids=["no budget", "the largest budget"])
async def test_without_a_sibling_a_failure_goes_on_in_another_cluster(case, budget):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post(x_stargate_max_wait_ms=budget))
    (await whole(first)).break_off()
    (await whole(other)).answer()
    assert (await client.answer()).header("x-inference-server-id") == case.id("b")
    assert await case.count("routing_selections_total") == 2


async def test_a_failure_after_the_head_is_never_repeated(case):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post())
    request = await whole(first)
    request.send_head(200)
    assert (await client.head()).status == 200
    request.break_off()
    assert await client.closed()
    assert not other.requests


async def test_after_two_failovers_the_third_failure_is_502(case):
    failed = []

    async def fail(name, tunnel):
        (await whole(tunnel)).break_off()
        failed.append(name)

    workers = {name: await case.worker(name, cluster="c") for name in "abcd"}
    failing = [asyncio.create_task(fail(name, tunnel)) for name, tunnel in workers.items()]
    got = await case.ask(case.post())
    assert (got.status, got.is_empty, got.header("x-inference-server-id")) == (502, True, None)
    assert len(failed) == 3
    assert await case.count("proxy_attempts_total", 'result="proxy_502"') == 3
    assert await case.count("proxy_retry_exhausted_total", 'reason="connect_retries_exhausted"') == 1
    assert await case.count("requests_total", 'status="502"', case.id(failed[-1])) == 1
    for task in failing:
        task.cancel()
    await asyncio.wait(failing)


async def test_when_everybody_has_failed_the_answer_is_an_empty_503(case):
    first, second = await case.pair(same_cluster=False)
    client = await case.send(case.post())
    (await whole(first)).break_off()
    (await whole(second)).break_off()
    got = await client.answer()
    assert (got.status, got.is_empty) == (503, True)
    assert await case.count("proxy_retry_exhausted_total", 'reason="no_eligible_backend"') == 1
    assert await case.count("requests_total", 'inference_server_id=""', 'status="503"') == 1


async def test_without_a_budget_a_failure_is_502(case):
    first, second = await case.pair()
    client = await case.send(case.post(x_stargate_max_wait_ms="0"))
    (await whole(first)).break_off()
    got = await client.answer()
    assert (got.status, got.is_empty) == (502, True)
    assert not second.requests
    spent = await case.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"')
    assert spent == await case.count("proxy_retry_exhausted_total") == 1


@pytest.mark.harness("tunnels")
@pytest.mark.gateway(no_repeat_accepted=True, compat="0.11")
async def test_a_request_that_a_worker_has_accepted_in_full_is_not_repeated_if_so_configured(case):
    first, other = await case.pair()
    client = await case.send(case.post())
    (await whole(first)).break_off()
    got = await client.answer()
    assert (got.status, got.is_empty) == (502, True)
    assert not other.requests
    assert await case.count("accepted_not_repeated_total") == 1


# --- dialled workers


@pytest.mark.gateway(reverse=False, compat="0.11")
async def test_a_dialled_worker_that_fails_is_dialled_anew_and_asked_again(case):
    tunnel = await case.worker()
    client = await case.send(case.post(body=b"same bytes"))
    request = await whole(tunnel)
    request.break_off()
    again = await whole(tunnel)
    assert (again.body, again.head.headers) == (b"same bytes", request.head.headers)
    again.answer(200, b"second time")
    assert (await client.answer()).body == b"second time"
    assert await case.count("quic_connection_evictions_total", 'reason="proxy_error"', worker="a") == 1
    assert await case.count("quic_hot_path_reconnect_total", 'result="success"', worker="a") == 1
    assert await case.count("proxy_retries_total", 'reason="hot_path_reconnect"') == 1


@pytest.mark.harness("tunnels")
@pytest.mark.gateway(reverse=False, compat="0.11")
async def test_a_dialled_worker_that_came_back_on_its_port_is_dialled_before_the_attempt(case):
    tunnel = await case.worker()
    port = tunnel.port
    await tunnel.close()
    case.workers[0].tunnel = tunnel = await ScriptedWorker.listen(port)
    client = await case.send(case.post())
    (await whole(tunnel)).answer(200, b"back")
    assert (await client.answer()).body == b"back"
    assert await case.count("quic_connection_evictions_total", 'reason="stale_connection"', worker="a") == 1
    assert await case.count("quic_hot_path_reconnect_total", 'result="success"', worker="a") == 1
