"""A client that leaves is noticed at every stage of its request, however it goes, and nothing of the request is left behind."""

import asyncio

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import HttpClient, get, post
from support.package_settings import connection_timeouts, http_settings
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


POLICY = b"""{"models": {"picky": {"algorithm": "pulsar", "consider_kv_free_tokens": true}}}"""
FULL = {"kv_cache_capacity_tokens": 10, "kv_cache_free_tokens": 0, "kv_cache_used_tokens": 10}
CHUNK = b"c" * 65_536


def reset(client):
    client.leave()


def close(client):
    client.close()


def half_close(client):
    client.half_close()


WAYS = pytest.mark.parametrize("go", [reset, close, half_close])

# --- stages: each brings a client's request that far


async def connected(harness, client):
    await eventually(lambda: harness.http.connections)


async def half_a_head(harness, client):
    client.send(b"POST /v1/chat/completions HTTP/1.1\r\nx-mod")
    await eventually(lambda: harness.http.in_flight)


async def idle_after_an_answer(harness, client):
    client.send(get("/healthz"))
    await client.answer()


async def inside_a_body_nobody_wants(harness, client):
    client.send(post("/nowhere", body=b"", content_length="9") + b"half")
    assert (await client.answer()).status == 404


async def no_cluster_is_willing(harness, client):
    harness.worker(model="picky", **FULL)
    client.send(post(model="picky", x_max_wait_ms="60000", x_cache_affinity_key="k"))
    await eventually(lambda: harness.proxy.running)


async def no_cluster_is_willing_and_the_body_waits(harness, client):
    harness.worker(model="picky", **FULL)
    client.send(post(model="picky", x_max_wait_ms="60000", x_cache_affinity_key="k", body=CHUNK * 3))
    await paused(harness)


async def worker_is_dialled(harness, client):
    worker = harness.worker(direct=True)
    worker.up = False
    worker.reconnecting = asyncio.Event()
    client.send(post())
    await eventually(lambda: worker.reconnects)


async def waiting_for_a_stream(harness, client):
    worker = harness.worker()
    worker.free = 0
    client.send(post())
    await eventually(lambda: worker.waiting)


async def waiting_for_a_stream_and_the_body_waits(harness, client):
    worker = harness.worker()
    worker.free = 0
    client.send(post(body=CHUNK * 3))
    await eventually(lambda: worker.waiting)
    await paused(harness)


async def uploading(harness, client):
    exchange = await asked(harness, client, post(body=b"", content_length="9") + b"half")
    await eventually(lambda: exchange.received)


async def upload_held_back(harness, client):
    exchange = await asked(harness, client, post(body=b"", content_length="900000"))
    exchange.writable = False
    client.send(CHUNK * 3)
    await eventually(lambda: exchange.received)
    await paused(harness)


async def invited_to_send_its_body(harness, client):
    await asked(harness, client, post(body=b"", content_length="9", expect="100-continue"))
    assert (await client.answer()).status == 100


async def waiting_for_the_head(harness, client):
    exchange = await asked(harness, client, post())
    await eventually(lambda: exchange.ended)


async def head_sent(harness, client):
    exchange = await asked(harness, client, post())
    exchange.head(200)
    await client.head()


async def in_the_response(harness, client):
    exchange = await asked(harness, client, post())
    exchange.head(200)
    exchange.body(b"data: [DONE]\n\n")
    await client.head()
    await client.chunk()


async def response_beside_the_upload(harness, client):
    exchange = await asked(harness, client, post(body=b"", content_length="9") + b"half")
    exchange.head(200)
    exchange.body(b"first")
    await client.head()


async def response_held_back(harness, client):
    exchange = await asked(harness, client, post())
    await fill(exchange)


async def response_and_upload_held_back(harness, client):
    exchange = await asked(harness, client, post(body=b"", content_length="900000"))
    exchange.writable = False
    client.send(CHUNK * 3)
    await eventually(lambda: exchange.received)
    await paused(harness)
    await fill(exchange)


async def response_complete_upload_held_back(harness, client):
    exchange = await asked(harness, client, post(body=b"", content_length="900000"))
    exchange.writable = False
    client.send(CHUNK * 3)
    await eventually(lambda: exchange.received)
    exchange.answer()
    await client.head()


async def requests_behind(harness, client):
    await asked(harness, client, post() * 5)


async def many_requests_behind(harness, client):
    await asked(harness, client, post() * 30)
    await paused(harness)


async def requests_behind_an_upload_held_back(harness, client):
    exchange = await asked(harness, client, post(body=b"", content_length="200000"))
    exchange.writable = False
    client.send(b"z" * 200_000 + post() * 3)
    await eventually(lambda: exchange.received)
    await paused(harness)


STAGES = pytest.mark.parametrize(
    "stage",
    [
        connected,
        half_a_head,
        idle_after_an_answer,
        inside_a_body_nobody_wants,
        no_cluster_is_willing,
        no_cluster_is_willing_and_the_body_waits,
        worker_is_dialled,
        waiting_for_a_stream,
        waiting_for_a_stream_and_the_body_waits,
        uploading,
        upload_held_back,
        invited_to_send_its_body,
        waiting_for_the_head,
        head_sent,
        in_the_response,
        response_beside_the_upload,
        response_held_back,
        response_and_upload_held_back,
        response_complete_upload_held_back,
        requests_behind,
        many_requests_behind,
        requests_behind_an_upload_held_back,
    ],
)


async def asked(harness, client, request):
    worker = harness.worker()
    client.send(request)
    return await worker.next()


async def paused(harness):
    """The client is not being read."""
    (one,) = harness.http._connections
    await eventually(lambda: not one._reading)


async def fill(exchange):
    exchange.head(200)
    async with asyncio.timeout(5):
        while not exchange.paused:
            exchange.body(CHUNK)
            await asyncio.sleep(0)


@STAGES
@WAYS
async def test_a_client_that_leaves_is_noticed(stage, go):
    async with gateway_in_memory(
        POLICY, http=http_settings(timeouts=connection_timeouts(watch=0.02, stalled=0.02))
    ) as harness:
        client = await HttpClient.connect(harness.port, limit=1 << 12)
        harness.clients.append(client)
        await stage(harness, client)
        workers = [one.tunnels for one in harness.registry.registrations()]
        go(client)
        await eventually(lambda: not harness.http.connections)
        assert not harness.proxy.running
        await eventually(lambda: not any(worker.waiting for worker in workers))
        assert all(one.cancelled for worker in workers for one in worker.exchanges)
        assert sum(len(worker.exchanges) for worker in workers) <= 1  # nothing behind it was begun
        assert harness.proxy.replay_budget.used_bytes == 0
        assert harness.count("midstream_failures_total") == 0


# --- closing behind bytes that nobody reads: no system can tell such a client from one that waits


async def hidden(harness, client, **timeouts):
    """A client that has closed with so much unsent that its end cannot have arrived."""
    exchange = await asked(harness, client, post(body=b"", content_length="64000000"))
    exchange.writable = False
    client.send(b"x" * 16_000_000)
    await eventually(lambda: exchange.received)
    await paused(harness)
    client.close()
    return exchange


async def test_a_client_hidden_behind_its_own_bytes_costs_no_more_than_the_deadline_of_its_attempt():
    async with gateway_in_memory(request_timeout_ms=300) as harness:
        exchange = await hidden(harness, await harness.client())
        await eventually(lambda: not harness.http.connections)
        assert exchange.cancelled


async def test_a_client_hidden_behind_its_own_bytes_is_seen_to_be_gone_by_the_first_byte_of_the_response():
    async with gateway_in_memory() as harness:
        exchange = await hidden(harness, await harness.client())
        exchange.head(200)
        await eventually(lambda: not harness.http.connections)
        assert exchange.cancelled
