"""One attempt at one worker: deadline, upload beside the answer, what a client sees of each outcome; docs/proxy.md, "Attempts"."""

import asyncio
import os
import types

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import BrokenOffError, post
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


def unfinished(length=100, **headers) -> bytes:
    """A request whose body is announced and begun, not finished."""
    return post(body=b"", content_length=str(length), **headers) + b"begun"


async def test_query_headers_and_body_reach_the_worker_as_sent():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=lambda exchange: exchange.answer())
        request = post(
            "/v1/chat/completions?trace=%20chat&b=+",
            b'{"stream": true}',
            authorization="Bearer t",
            accept_encoding="gzip",
            x_priority=" +007 ",
            connection="x-named",
            x_named="kept",
            te="trailers",
            keep_alive="timeout=3",
            upgrade_insecure_requests="1",
            x_stargate_retryable="true",
            x_stargate_error_code="forged",
            x_stargate_expected_queue_ms="forged",
            x_routing_method="power_of_two",
        )
        assert (await harness.ask(request)).status == 200
        (exchange,) = worker.exchanges
        assert exchange.request.path == b"/v1/chat/completions?trace=%20chat&b=+"
        assert exchange.request.method == b"POST"
        assert exchange.received == b'{"stream": true}'
        for name, value in {"authorization": "Bearer t", "accept-encoding": "gzip", "x-named": "kept"}.items():
            assert exchange.header(name) == value
        assert exchange.header("x-priority") == "+007"
        for name in ("host", "connection", "te", "keep-alive", "x-stargate-retryable", "x-routing-method"):
            assert exchange.header(name) is None
        assert exchange.header("x-stargate-error-code") is None
        assert exchange.header("x-stargate-expected-queue-ms") == "0"


async def test_every_answer_of_a_worker_names_it_and_nothing_internal():
    async with gateway_in_memory() as harness:

        def answer(exchange):
            exchange.answer(
                418,
                b"tea",
                x_inference_server_id="forged",
                x_inference_server_url="forged",
                x_stargate_cluster_id="forged",
                x_stargate_error_code="forged",
                x_stargate_retryable="true",
                connection="close",
                retry_after="7",
            )

        worker = harness.worker(cluster="hdr-cluster", on_request=answer)
        got = await harness.ask(post())
        assert (got.status, got.body) == (418, b"tea")
        assert got.header("x-inference-server-id") == "w1"
        assert got.header("x-inference-server-url") == worker.url
        assert got.header("x-stargate-cluster-id") == "hdr-cluster"
        assert got.header("retry-after") == "7"
        for name in ("x-stargate-error-code", "x-stargate-retryable", "connection"):
            assert got.header(name) is None


async def test_upload_finishes_first_and_the_head_is_still_waited_for():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"all"))
        exchange = await worker.next()
        await eventually(lambda: exchange.ended)
        exchange.answer(200, b"late")
        assert (await client.answer()).body == b"late"


async def test_upload_that_breaks_before_the_head_fails_at_once_without_another_attempt():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        harness.worker("w2", queue_size=9, queued_input_size=900)
        client = await harness.client()
        client.send(post(body=b"", content_length=None, transfer_encoding="chunked") + b"3\r\nabc\r\nnot-a-size\r\n")
        got = await client.answer()
        assert got.status == 502
        assert got.is_empty
        assert harness.count("proxy_attempts_total", 'result="proxy_502"') == 1
        assert worker.exchanges[0].cancelled
        assert harness.count("proxy_retries_total") == 0


async def test_success_first_then_the_upload_goes_on_beside_the_response():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(unfinished(10))
        exchange = await worker.next()
        exchange.head(200)
        answer = await client.head()
        exchange.body(b"one")
        assert await client.chunk() == b"one"
        client.send(b"ended")
        await eventually(lambda: exchange.ended)
        assert exchange.received == b"begunended"
        exchange.end()
        await client.rest(answer)


async def test_any_other_status_first_aborts_the_upload():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(unfinished())
        exchange = await worker.next()
        exchange.answer(400, b"bad")
        assert (await client.answer()).body == b"bad"
        assert exchange.upload_aborted
        assert not exchange.ended


async def test_the_response_ends_although_the_upload_stalls_once_the_head_deadline_is_over():
    async with gateway_in_memory(request_timeout_ms=60) as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(unfinished())
        exchange = await worker.next()
        exchange.answer(200, b"all of it")
        assert (await client.answer()).body == b"all of it"
        assert exchange.upload_aborted


async def test_an_upload_that_breaks_after_the_last_byte_of_the_response_breaks_the_response():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"", content_length=None, transfer_encoding="chunked") + b"3\r\nabc\r\n")
        exchange = await worker.next()
        exchange.answer(200, b"almost")
        answer = await client.head()
        assert await client.chunk() == b"almost"
        client.send(b"zz\r\n")
        with pytest.raises(BrokenOffError):
            await client.rest(answer)


async def test_the_head_must_come_within_the_deadline_of_the_attempt():
    async with gateway_in_memory(request_timeout_ms=30, max_connect_retries=0) as harness:
        worker = harness.worker()
        got = await harness.ask(post())
        assert got.status == 502
        assert got.is_empty
        assert got.header("x-inference-server-id") is None
        assert worker.exchanges[0].cancelled
        assert harness.count("proxy_retry_exhausted_total", "connect_retries_exhausted") == 1


async def test_waiting_for_a_stream_counts_towards_the_same_deadline():
    async with gateway_in_memory(request_timeout_ms=200, max_connect_retries=0) as harness:
        worker = harness.worker()
        worker.free = 0
        loop = asyncio.get_running_loop()
        client = await harness.client()
        started = loop.time()
        client.send(post())
        await eventually(lambda: worker.waiting)
        loop.call_later(0.1, worker.release_streams, 1)
        assert (await client.answer()).status == 502
        assert loop.time() - started < 0.29
        assert worker.exchanges[0].cancelled


async def test_no_deadline_applies_after_the_head():
    async with gateway_in_memory(request_timeout_ms=20) as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        answer = await client.head()
        await asyncio.sleep(0.05)  # the thing under test: more than the deadline passes
        exchange.body(b"late")
        exchange.end()
        assert (await client.rest(answer)).body == b"late"


@pytest.mark.parametrize("status", [100, 101, 102, 199])
async def test_a_worker_that_breaks_the_protocol_is_a_transport_failure(status):
    async with gateway_in_memory() as harness:
        harness.worker(on_request=lambda exchange: exchange.fail(f"interim status {status}"))
        harness.worker("w2", cluster="w1", on_request=lambda exchange: exchange.answer())
        assert (await harness.ask(post())).status == 200


async def test_an_error_after_the_head_is_an_abnormal_end_after_everything_that_came():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        exchange.body(b"data: 1\n\n")
        exchange.fail()
        with pytest.raises(BrokenOffError) as broken:
            await client.answer()
        assert broken.value.answer.body == b"data: 1\n\n"
        assert broken.value.answer.status == 200
        assert len(worker.exchanges) == 1
        assert harness.count("midstream_failures_total") == 1


async def test_a_worker_header_that_is_no_header_value_becomes_500():
    async with gateway_in_memory() as harness:
        harness.worker("w\n1", on_request=lambda exchange: exchange.answer())
        got = await harness.ask(post())
        assert (got.status, got.is_empty) == (500, True)


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body_have_none_and_the_connection_goes_on(status):
    async with gateway_in_memory() as harness:
        harness.worker(on_request=lambda exchange: exchange.answer(status, b"must not be sent"))
        client = await harness.client()
        for _ in range(2):
            client.send(post())
            got = await client.answer()
            assert got.status == status
            assert got.header("transfer-encoding") is None


async def test_a_response_longer_than_its_content_length_is_cut_to_it():
    async with gateway_in_memory() as harness:
        worker = harness.worker(on_request=lambda exchange: exchange.answer(200, b"abcdef", content_length=3))
        client = await harness.client()
        client.send(post() + post())
        assert (await client.answer()).body == b"abc"
        assert (await client.answer()).body == b"abc"
        assert all(exchange.cancelled for exchange in worker.exchanges)


async def test_a_response_shorter_than_its_content_length_breaks_the_connection():
    async with gateway_in_memory() as harness:
        harness.worker(on_request=lambda exchange: exchange.answer(200, b"abc", content_length=9))
        with pytest.raises(BrokenOffError):
            await harness.ask(post())


async def test_a_worker_that_wants_no_more_body_but_answers_is_passed_on():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(unfinished(10))
        exchange = await worker.next()
        exchange.sink.on_upload_stopped()
        client.send(b"ended")
        exchange.answer(200, b"fine")
        assert (await client.answer()).body == b"fine"


async def test_a_silent_response_is_ended_by_the_idle_limit_and_never_without_one():
    async with gateway_in_memory(response_idle_timeout_ms=30) as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head(200)
        exchange.body(b"1")
        with pytest.raises(BrokenOffError) as broken:
            await client.answer()
        assert broken.value.answer.body == b"1"
        assert exchange.cancelled


async def test_neither_a_request_nor_its_chunks_cost_a_task():
    tasks = []

    def make(loop, coroutine, **options):
        compiled = not isinstance(coroutine, types.CoroutineType)
        if compiled or f"{os.sep}router{os.sep}" in coroutine.cr_code.co_filename:
            tasks.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async with gateway_in_memory() as harness:
        worker = harness.worker()
        asyncio.get_running_loop().set_task_factory(make)
        client = await harness.client()
        client.send(unfinished(10))
        exchange = await worker.next()
        client.send(b"ended")
        await eventually(lambda: exchange.ended)
        exchange.head()
        answer = await client.head()
        for number in range(50):
            exchange.body(b"%d" % number)
            assert await client.chunk() == b"%d" % number
        exchange.end()
        await client.rest(answer)
        assert not tasks
        worker.free = 0  # waiting for a stream does cost one, so they are seen
        client.send(post())
        await eventually(lambda: tasks)
