"""What happens to a connection whose request body the gateway did not read to its end (docs/proxy.md, "Connections")."""

import pytest

from support.gateway_in_memory import gateway_in_memory
from support.http_client import post
from support.package_settings import http_settings

LARGE = 10_000_000


async def test_a_refusal_before_a_large_body_was_read_closes_and_can_be_read():
    async with gateway_in_memory() as harness:
        client = await harness.client()
        client.send(post(body=b"", content_length=str(LARGE), x_request_id="") + b"x" * 100_000)
        got = await client.answer()
        assert (got.status, got.header("connection")) == (400, "close")
        client.send(b"x" * 1_000_000)  # no reset takes the answer away
        assert await client.closed()


@pytest.mark.parametrize("body", [b"", b"whole"], ids=["no body", "all of the body"])
async def test_a_refusal_after_the_whole_body_has_arrived_keeps_the_connection(body):
    async with gateway_in_memory() as harness:
        client = await harness.client()
        for _ in range(2):
            client.send(post(body=body, x_request_id=""))
            got = await client.answer()
            assert (got.status, got.header("connection")) == (400, None)


@pytest.mark.parametrize(("status", "closes"), [(200, False), (299, False), (300, True), (404, True)])
async def test_an_early_answer_closes_unless_it_is_a_success(status, closes):
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        client = await harness.client()
        client.send(post(body=b"", content_length="9") + b"half")
        (await worker.next()).answer(status)
        client.send(b" five")
        got = await client.answer()
        assert (got.status, got.header("connection")) == (status, "close" if closes else None)


async def test_with_the_older_release_line_the_rest_of_the_body_is_dropped_and_the_connection_kept():
    async with gateway_in_memory(http=http_settings(close_unread=False)) as harness:
        client = await harness.client()
        client.send(post(body=b"", content_length="9", x_request_id="") + b"half")
        got = await client.answer()
        assert (got.status, got.header("connection")) == (400, None)
        client.send(b" five" + post(x_request_id=""))
        assert (await client.answer()).status == 400
