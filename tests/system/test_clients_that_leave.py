"""Clients that leave, at the level of sockets: raw bytes of a client on one side, real tunnels on the other; docs/proxy.md, "Cancellation"."""

import asyncio
import contextlib

import pytest

from support.http_client import BrokenOffError

pytestmark = pytest.mark.harness("tunnels")


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
