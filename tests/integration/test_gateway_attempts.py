"""One attempt at one worker: what needs a certain moment or a look inside; all else about attempts: tests/system/test_attempts.py."""

import asyncio
import os
import types

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import post
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


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


async def test_a_worker_header_that_is_no_header_value_becomes_500():
    async with gateway_in_memory() as harness:
        harness.worker("w\n1", on_request=lambda exchange: exchange.answer())
        got = await harness.ask(post())
        assert (got.status, got.is_empty) == (500, True)


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
        client.send(post(body=b"", content_length="10") + b"begun")
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
