"""What the proxy reports of each request that ends, for the page of the operators; docs/api.md, "Requests"."""

import pytest

from router.ports.request_ends import RequestEnd
from support.gateway_in_memory import gateway_in_memory
from support.http_client import post
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


class Ends:
    def __init__(self):
        self.told: list[RequestEnd] = []

    def request_ended(self, end):
        self.told.append(end)


async def one(harness):
    ends = harness.proxy.request_ends
    await eventually(lambda: ends.told)
    (end,) = ends.told
    return end


async def test_a_complete_request_is_reported_once_with_the_time_of_its_first_byte_of_body():
    async with gateway_in_memory() as harness:
        harness.proxy.request_ends = Ends()
        worker = harness.worker(cluster="c1")
        client = await harness.client()
        client.send(post(x_request_id="mine", x_input_tokens="12", x_priority="2", x_routing_method="round-robin"))
        exchange = await worker.next()
        assert harness.proxy.in_flight() == [(None, "m", "w1")]
        exchange.head()
        exchange.body(b"to")
        exchange.body(b"ken")
        exchange.end()
        await client.answer()
        end = await one(harness)
        assert (end.request_id, end.routing_key, end.model) == ("mine", None, "m")
        assert (end.inference_server_id, end.cluster_id, end.attempts, end.status) == ("w1", "c1", 1, 200)
        assert (end.end, end.reason, end.requested_method, end.input_tokens, end.priority) == (
            "complete",
            "",
            "round-robin",
            12,
            2,
        )
        assert end.first_token_s is not None
        assert 0 <= end.first_token_s <= end.duration_s
        assert harness.proxy.in_flight() == []


async def test_a_request_that_waits_for_a_worker_is_in_flight_without_one():
    async with gateway_in_memory() as harness:
        worker = harness.worker()
        worker.free = 0
        client = await harness.client()
        client.send(post())
        await eventually(lambda: harness.proxy.in_flight())
        assert harness.proxy.in_flight() == [(None, "m", "w1")]


async def test_what_the_router_answers_itself_is_reported_with_its_reason():
    async with gateway_in_memory() as harness:
        harness.proxy.request_ends = Ends()
        harness.worker(active=False)
        assert (await harness.ask(post())).status == 503
        end = await one(harness)
        assert (end.status, end.end, end.inference_server_id, end.attempts) == (503, "refused", "", 0)
        assert end.reason == "no worker can take the request now"
        assert end.first_token_s is None


async def test_so_is_a_request_that_is_refused_before_it_is_routed_with_the_names_it_gave():
    async with gateway_in_memory() as harness:
        harness.proxy.request_ends = Ends()
        assert (await harness.ask(post(x_request_id="mine", x_model=None))).status == 400
        end = await one(harness)
        assert (end.request_id, end.model, end.status, end.reason) == ("mine", "", 400, "missing x-model")


async def test_a_client_that_left_is_reported_as_gone():
    async with gateway_in_memory() as harness:
        harness.proxy.request_ends = Ends()
        worker = harness.worker()
        client = await harness.client()
        client.send(post())
        await worker.next()
        client.leave()
        end = await one(harness)
        assert (end.end, end.status, end.inference_server_id) == ("client_gone", 0, "w1")
