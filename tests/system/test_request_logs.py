"""What a router says about requests: a line per attempt, one per finished request if asked for, warnings; nothing of their content."""

import asyncio
import json

import pytest

from llm_request_router.testing import System
from support.http_client import BrokenOffError

pytestmark = pytest.mark.harness("tunnels")

SECRETS = ("Bearer very-secret", "a private question", "a private answer", "session-cookie")


@pytest.fixture(scope="module")
def system():
    options = ("--access-log", "--log-format=json", "--proxy-max-replay-body-bytes=100000")
    with System.start(*options, environment={"RUST_LOG": "debug"}) as system:
        yield system
        for secret in SECRETS:
            assert secret not in system.router.log()


class Logged(dict):
    """A line; what it does not name is None."""

    def __missing__(self, name):
        return None


async def lines(case, number, message):
    """The lines of this message about the model of the case, or its workers, as soon as there are so many."""
    async with asyncio.timeout(5):
        while True:
            found = [Logged(json.loads(line)) for line in case.system.router.log().splitlines() if case.model in line]
            found = [line for line in found if line["message"] == message]
            if len(found) >= number:
                return found
            await asyncio.sleep(0.01)


def private(case, **headers):
    fields = {"authorization": SECRETS[0], "cookie": SECRETS[3], **headers}
    return case.post(body=SECRETS[1].encode(), **fields)


async def test_one_line_per_attempt_and_one_when_the_request_is_finished(case):
    first, second = await case.pair(same_cluster=False)
    client = await case.send(private(case, x_request_id="id-1", x_routing_method="power_of_two"))
    (await first.next_request()).answer(429, b"", x_stargate_retryable="true", x_stargate_retry_reason="full")
    (await second.next_request()).answer(201, SECRETS[2].encode())
    assert (await client.answer()).status == 201
    tried = await lines(case, 2, "proxying request")
    assert [(one["inference_server_id"], one["connect_retries"], one["request_retries"]) for one in tried] == [
        (case.id("a"), 0, 0),
        (case.id("b"), 0, 1),
    ]
    assert tried[0]["requested_algorithm"] == "power_of_two"
    assert (tried[0]["routing_algorithm"], tried[0]["input_tokens"]) == ("power-of-n", 12)
    (finished,) = await lines(case, 1, "request finished")
    told = {name: finished[name] for name in ("request_id", "status", "attempts", "path", "body_bytes", "end")}
    assert told == {
        "request_id": "id-1",
        "status": 201,
        "attempts": 2,
        "path": "/v1/chat/completions",
        "body_bytes": len(SECRETS[2]),
        "end": "complete",
    }
    assert finished["inference_server_id"] == case.id("b")
    assert finished["reason"] is None
    assert 0 < finished["first_byte_ms"] <= finished["duration_ms"] < 30_000


async def test_the_line_says_how_a_request_ended(case):
    async def ended(number, how):
        line = (await lines(case, number, "request finished"))[-1]
        assert line["end"] == how
        return line

    got = await case.ask(private(case))
    assert got.status == 404
    line = await ended(1, "refused")
    assert (line["status"], line["attempts"], line["first_byte_ms"]) == (404, 0, None)
    assert line["reason"] == "no eligible candidates"

    tunnel = await case.worker()
    client = await case.send(private(case, x_stargate_max_wait_ms="0"))
    (await tunnel.next_request()).break_off()
    assert (await client.answer()).status == 502
    line = await ended(2, "failed")
    assert (line["status"], line["reason"]) == (502, "no answer from the worker, which may have processed the request")
    (failed,) = await lines(case, 1, "quic upstream request failed")
    assert failed["inference_server_id"] == case.id("a")
    (failed,) = await lines(case, 1, "proxied request failed")
    assert (failed["status"], failed["disposition"], failed["cluster_id"]) == (502, "ambiguous_delivery", case.id("a"))

    client = await case.send(private(case))
    request = await tunnel.next_request()
    request.send_head()
    request.send_body(b"12345")
    answer = await client.head()
    await client.chunk()
    request.break_off()
    with pytest.raises(BrokenOffError):
        await client.rest(answer)
    assert (await ended(3, "truncated"))["body_bytes"] == 5
    (broken_off,) = await lines(case, 1, "upstream response body stream failed")
    assert (broken_off["status"], broken_off["streamed_bytes"]) == (200, 5)

    client = await case.send(private(case))
    request = await tunnel.next_request()
    client.leave()
    await request.until(lambda it: it.stopped)
    line = await ended(4, "client_gone")
    assert (line["status"], line["inference_server_id"]) == (0, case.id("a"))


async def test_what_was_decided_against_a_request_is_a_warning(case):
    assert (await case.ask(private(case, x_routing_method="best"))).status == 400
    (line,) = await lines(case, 1, "invalid routing algorithm header")
    (refused,) = await lines(case, 1, "request refused")
    assert (refused["status"], refused["reason"]) == (400, "unknown x-routing-method")
    (finished,) = await lines(case, 1, "request finished")
    assert (finished["end"], finished["reason"], finished["attempts"]) == ("refused", refused["reason"], 0)
    assert (line["requested_algorithm"], line["rejection_reason"]) == ("best", "unknown_method")

    first, second = await case.pair(same_cluster=False)
    client = await case.send(private(case))
    signal = {"x_stargate_retryable": "true", "x_stargate_retry_reason": "full"}
    (await first.next_request()).answer(429, b"", **signal)
    (await second.next_request()).answer(503, b"", **signal)
    assert (await client.answer()).status == 503
    retried = await lines(case, 2, "retrying request after retryable upstream response")
    assert [(one["status"], one["retry_reason"], one["request_retries"]) for one in retried] == [
        (429, "full", 1),
        (503, "full", 2),
    ]
    (line,) = await lines(case, 1, "no inference server candidates for routing target")
    assert line["failed_backend_count"] == 0

    client = await case.send(case.unfinished())
    (await first.next_request()).break_off()
    assert (await client.answer()).status == 502
    (line,) = await lines(case, 1, "not retrying because request body replay buffer is incomplete")
    assert (line["status"], line["retry_reason"], line["source"]) == (502, "retryable_proxy_error", "proxy error")
