"""Retries, failover and clients that leave, at the level of sockets: raw bytes of a client on one side, real tunnels on the other;
docs/proxy.md, "Retries", "Replay" and "Cancellation".
"""

import asyncio
import contextlib

import pytest

from support.gateway_over_tunnels import BUSY
from support.http_client import BrokenOffError
from support.scripted_worker import ScriptedWorker
from tunnel_protocol.head import EXPECTED_QUEUE_MS

REPLAY_LIMIT = 100_000
pytestmark = [pytest.mark.loop("grpc"), pytest.mark.llm_router_options(f"--proxy-max-replay-body-bytes={REPLAY_LIMIT}")]
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


async def test_without_a_budget_the_rejection_itself_is_the_answer(case):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post(x_stargate_max_wait_ms="0"))
    (await whole(first)).answer(429, b"no", **SIGNAL)
    got = await client.answer()
    assert (got.status, got.body, got.header("x-stargate-retryable")) == (429, b"no", None)
    assert got.header("x-inference-server-id") == case.id("a")
    assert not other.requests
    assert await case.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"') == 1


async def test_after_two_retries_the_third_rejection_is_the_answer(case):
    tunnels = [await case.worker(name) for name in "abcd"]

    async def reject(tunnel):
        (await whole(tunnel)).answer(503, b"no", **SIGNAL)

    rejecting = [asyncio.create_task(reject(tunnel)) for tunnel in tunnels]
    got = await case.ask(case.post())
    assert (got.status, got.body) == (503, b"no")
    assert await case.count("proxy_attempts_total", 'result="upstream_503"') == 3
    assert await case.count("proxy_retry_exhausted_total", 'reason="upstream_admission_rejected"') == 1
    for task in rejecting:
        task.cancel()
    await asyncio.wait(rejecting)


@pytest.mark.parametrize("headers", [{}, {"x_stargate_retryable": "false"}], ids=["unmarked", "forbidden"])
async def test_an_answer_that_is_not_marked_is_passed_on(case, headers):
    first, other = await case.pair(same_cluster=False)
    client = await case.send(case.post())
    (await whole(first)).answer(503, b'{"error":"busy"}', **headers)
    got = await client.answer()
    assert (got.status, got.body) == (503, b'{"error":"busy"}')
    assert not other.requests


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


async def test_after_two_failovers_the_third_failure_is_502(case):
    tunnels = [await case.worker(name, cluster="c") for name in "abcd"]

    async def fail(tunnel):
        (await whole(tunnel)).break_off()

    failing = [asyncio.create_task(fail(tunnel)) for tunnel in tunnels]
    got = await case.ask(case.post())
    assert (got.status, got.is_empty, got.header("x-inference-server-id")) == (502, True, None)
    assert sum(task.done() for task in failing) == 3
    assert await case.count("proxy_attempts_total", 'result="proxy_502"') == 3
    assert await case.count("proxy_retry_exhausted_total", 'reason="connect_retries_exhausted"') == 1
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
    assert await case.count("proxy_retry_exhausted_total", 'reason="retry_budget_exhausted"') == 1


@pytest.mark.llm_router_options("--proxy-no-repeat-accepted")
async def test_a_request_that_a_worker_has_accepted_in_full_is_not_repeated_if_so_configured(case):
    first, other = await case.pair()
    client = await case.send(case.post())
    (await whole(first)).break_off()
    got = await client.answer()
    assert (got.status, got.is_empty) == (502, True)
    assert not other.requests
    assert await case.count("accepted_not_repeated_total") == 1


# --- dialled workers


@pytest.mark.llm_router_options(reverse=False)
async def test_a_dialled_worker_that_fails_is_dialled_anew_and_asked_again(case):
    tunnel = await case.worker()
    before = tunnel.connection
    client = await case.send(case.post(body=b"same bytes"))
    request = await whole(tunnel)
    request.break_off()
    again = await whole(tunnel)
    assert tunnel.connection is not before
    assert (again.body, again.head.headers) == (b"same bytes", request.head.headers)
    again.answer(200, b"second time")
    assert (await client.answer()).body == b"second time"
    assert await case.count("proxy_retries_total", 'reason="hot_path_reconnect"') == 1


@pytest.mark.llm_router_options(reverse=False)
async def test_a_dialled_worker_that_came_back_on_its_port_is_dialled_before_the_attempt(case):
    tunnel = await case.worker()
    port = tunnel.port
    await tunnel.close()
    case.workers[0].tunnel = tunnel = await ScriptedWorker.listen(port)
    client = await case.send(case.post())
    (await whole(tunnel)).answer(200, b"back")
    assert (await client.answer()).body == b"back"
    labels = f'{{inference_server_id="{case.id("a")}",re'
    samples = await asyncio.to_thread(case.system.metrics)
    assert samples[f'stargate_quic_connection_evictions_total{labels}ason="stale_connection"}}'] == 1
    assert samples[f'stargate_quic_hot_path_reconnect_total{labels}sult="success"}}'] == 1


# --- clients that leave


def by_reset(client):
    client.leave()


def by_close(client):
    client.close()


def by_half_close(client):
    client.half_close()


WAYS = pytest.mark.parametrize("go", [by_reset, by_close, by_half_close])


async def served(case, tunnel):
    """Nobody was blamed for what happened before."""
    client = await case.send(case.post(x_request_id="the next one"))
    request = await tunnel.next_request()
    assert request.header("x-request-id") == "the next one"
    request.answer()
    assert (await client.answer()).status == 200
    assert await case.count("proxy_retries_total") == await case.count("proxy_retry_exhausted_total") == 0


@WAYS
async def test_a_client_that_leaves_before_the_head_abandons_both_directions(case, go):
    tunnel = await case.worker()
    for request_bytes, phase in ((case.unfinished(), "upload"), (case.post(), "head")):
        client = await case.send(request_bytes)
        request = await tunnel.next_request()
        if phase == "head":
            await request.until(lambda it: it.complete)
        go(client)
        await request.until(lambda it: it.stopped)
        assert request.reset == (phase == "upload")
        assert set(request.codes) == {0}
        await case.counts(1, "client_aborts_total", f'phase="{phase}"')
    assert await case.count("proxy_attempts_total") == await case.count("requests_total") == 0
    await served(case, tunnel)


@WAYS
async def test_a_client_that_leaves_during_the_response_stops_its_worker(case, go):
    tunnel = await case.worker()
    client = await case.send(case.post())
    request = await tunnel.next_request()
    request.send_head()
    request.send_body(b"data: [DONE]\n\n")
    await client.head()
    await client.chunk()
    go(client)
    await request.until(lambda it: it.stopped)
    assert request.codes == [0]
    await case.counts(1, "client_aborts_total", 'phase="body"')
    assert await case.count("requests_total", 'status="200"') == 1
    assert await case.count("midstream_failures_total") == 0
    await served(case, tunnel)


@WAYS
async def test_a_client_that_leaves_while_its_worker_takes_no_more_is_noticed(case, go):
    tunnel = await case.worker()
    client = await case.send(case.post(chunked=True).removesuffix(b"0\r\n\r\n"))
    request = await tunnel.next_request()
    request.stream.pause_reading()
    # More than the stream's window, less than what two sockets hold besides: the client has nothing left to send.
    client.send(b"%x\r\n" % 4_000_000 + b"x" * 1_450_000)
    async with asyncio.timeout(5):
        await client.writer.drain()
    go(client)
    await case.counts(1, "client_aborts_total", 'phase="upload"')
    request.stream.resume_reading()
    await request.until(lambda it: it.reset)
    await served(case, tunnel)


@WAYS
async def test_a_client_that_leaves_without_reading_is_noticed_and_its_worker_stopped(case, go):
    tunnel = await case.worker()
    client = await case.send(case.post())
    request = await tunnel.next_request()
    request.send_head()
    client.writer.transport.pause_reading()
    for _ in range(160):
        request.send_body(b"y" * 100_000)
    await case.counts(1, "requests_total", 'status="200"')
    go(client)
    await request.until(lambda it: it.stopped)
    await case.counts(1, "client_aborts_total", 'phase="body"')
    await served(case, tunnel)


@WAYS
async def test_a_client_that_leaves_while_it_waits_for_a_stream_gives_its_place_up(case, go):
    tunnel = await case.worker(streams=1)
    holder = await case.send(case.post())
    held = await tunnel.next_request()
    held.send_head()
    await holder.head()
    waiting = await case.send(case.post(x_request_id="waits"))
    # The answer to another request on the same port: what was sent before it has been read.
    await asyncio.to_thread(case.system.request, "GET", "/healthz")
    go(waiting)
    await case.counts(1, "client_aborts_total", 'phase="head"')
    held.end()
    with contextlib.suppress(BrokenOffError):
        await holder.chunk()
    await served(case, tunnel)
