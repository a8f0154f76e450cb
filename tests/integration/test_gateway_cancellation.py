"""Clients that leave at every stage, the copy of the body and its limits, drain; docs/proxy.md, "Cancellation" and "Replay"."""

import asyncio

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import HttpClient, post
from support.package_settings import connection_timeouts, http_settings
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


def ok(exchange):
    exchange.answer()


def leave(client):
    client.leave()


def half_close(client):
    client.half_close()


WAYS = pytest.mark.parametrize("go", [leave, half_close])


@WAYS
async def test_a_client_that_leaves_while_waiting_for_a_stream_gives_its_place_up(go):
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        worker.free = 0
        client = await harness.client()
        client.send(post())
        await eventually(lambda: worker.waiting)
        go(client)
        await eventually(lambda: not worker.waiting)
        assert not harness.proxy.running
        assert harness.count("requests_total") == harness.count("proxy_attempts_total") == 0


@WAYS
async def test_a_client_that_leaves_during_its_upload_cancels_the_exchange(go):
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"", content_length="9") + b"half")
        exchange = await worker.next()
        await eventually(lambda: exchange.received)
        go(client)
        await eventually(lambda: exchange.cancelled)
        assert not exchange.ended
        assert harness.proxy.replay_budget.used_bytes == 0
        assert harness.count("requests_total") == harness.count("proxy_attempts_total") == 0
        assert harness.count("client_aborts_total", 'phase="upload"') == 1


@WAYS
async def test_a_client_that_leaves_before_the_head_cancels_the_exchange_and_blames_nobody(go):
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        go(client)
        await eventually(lambda: exchange.cancelled)
        assert harness.count("requests_total") == harness.count("proxy_attempts_total") == 0
        assert harness.count("proxy_retries_total") == 0
        assert harness.queue_size("w1") == 1  # a reservation lives until the worker's next report
        worker.on_request = ok
        assert (await harness.ask(post())).status == 200


@WAYS
async def test_a_client_that_leaves_during_the_response_cancels_the_exchange(go):
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        exchange.body(b"data: [DONE]\n\n")
        await client.head()
        go(client)
        await eventually(lambda: exchange.cancelled)
        assert harness.count("requests_total", 'status="200"') == 1
        assert harness.count("midstream_failures_total") == 0


@WAYS
async def test_a_client_that_leaves_during_a_dial_abandons_it(go):
    async with gateway_in_memory() as harness:
        worker = harness.worker(direct=True)
        worker.up = False
        worker.reconnecting = asyncio.Event()
        client = await harness.client()
        client.send(post())
        await eventually(lambda: worker.reconnects)
        go(client)
        await eventually(lambda: not harness.proxy.running)
        worker.reconnecting.set()
        await eventually(lambda: not harness.http.connections)
        assert not worker.exchanges
        assert harness.count("quic_hot_path_reconnect_total") == 0


@WAYS
async def test_a_client_that_leaves_while_no_cluster_is_willing_ends_the_wait(go):
    policy = b"""{"models": {"m": {"algorithm": "pulsar", "consider_kv_free_tokens": true}}}"""

    async with gateway_in_memory(policy) as harness:
        worker = harness.worker(kv_cache_capacity_tokens=10, kv_cache_free_tokens=0, kv_cache_used_tokens=10)
        client = await harness.client()
        client.send(post(x_max_wait_ms="60000", x_cache_affinity_key="k"))
        await eventually(lambda: harness.proxy.running)
        go(client)
        await eventually(lambda: not harness.proxy.running)
        assert not worker.exchanges


async def test_requests_behind_one_whose_client_left_are_never_started():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post() * 5)
        exchange = await worker.next()
        client.leave()
        await eventually(lambda: exchange.cancelled)
        await eventually(lambda: not harness.http.connections)
        assert len(worker.exchanges) == 1


@WAYS
async def test_a_client_that_leaves_while_its_worker_takes_no_more_body_is_noticed(go):
    async with gateway_in_memory(http=http_settings(timeouts=connection_timeouts(watch=0.02))) as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"", content_length="9000000"))
        exchange = await worker.next()
        exchange.writable = False
        client.send(b"x" * 65536)
        await eventually(lambda: exchange.received)
        go(client)
        await eventually(lambda: exchange.cancelled)
        await eventually(lambda: not harness.http.connections)


async def test_late_callbacks_of_a_cancelled_exchange_reach_nobody():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        client.leave()
        await eventually(lambda: exchange.cancelled)
        exchange.sink.on_upload_writable()
        exchange.sink.on_upload_stopped()
        worker.on_request = ok
        assert (await harness.ask(post())).body == b"ok"


# --- the copy for another attempt


async def test_bodies_beyond_the_common_budget_are_forwarded_without_a_copy():
    async with gateway_in_memory(max_replay_total_bytes=10) as harness:
        worker = harness.worker()
        harness.worker("w2", cluster="w1")
        holder, other = await harness.client(), await harness.client()
        holder.send(post(body=b"nine byte"))
        first = await worker.next()
        other.send(post(body=b"another nine"))
        second = await harness.registry.live("w2").tunnels.next()
        await eventually(lambda: first.ended and second.ended)
        assert second.received == b"another nine"
        assert harness.count("replay_budget_exhausted_total") == 1
        second.fail()
        assert (await other.answer()).status == 502
        first.answer()
        assert (await holder.answer()).status == 200
        assert harness.proxy.replay_budget.used_bytes == 0


async def test_a_worker_that_accepted_the_request_in_full_is_not_doubled_if_so_configured():
    for switch, status, attempts in ((True, 502, 1), (False, 200, 2)):
        async with gateway_in_memory(no_repeat_accepted=switch, compat="0.11") as harness:
            harness.worker("a", cluster="c", on_request=lambda exchange: exchange.fail(accepted=True))
            harness.worker("b", cluster="c", on_request=ok)
            assert (await harness.ask(post())).status == status
            assert harness.count("proxy_attempts_total") == attempts
            assert harness.count("accepted_not_repeated_total") == int(switch)


async def test_a_timeout_after_acceptance_is_not_doubled_either_and_one_before_it_is_repeated():
    for accepted in (True, False):
        async with gateway_in_memory(no_repeat_accepted=True, request_timeout_ms=50, compat="0.11") as harness:
            worker = harness.worker("a", cluster="c")
            harness.worker("b", cluster="c", on_request=ok)
            client = await harness.client()
            client.send(post())
            (await worker.next()).acknowledged = accepted
            assert (await client.answer()).status == (502 if accepted else 200)


# --- drain


async def test_a_drain_lets_the_running_response_finish_and_refuses_what_follows():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        answer = await client.head()
        drained = asyncio.create_task(harness.http.drain(4))
        await eventually(lambda: harness.http.draining)
        exchange.body(b"to the end")
        exchange.end()
        assert (await client.rest(answer)).body == b"to the end"
        assert await client.closed()
        assert await drained
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await HttpClient.connect(harness.port)
