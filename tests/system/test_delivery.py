"""Release line 0.18 on both harnesses: a request is delivered once, and a lack of capacity has one answer."""

import pytest


async def whole(tunnel):
    """The next request of this worker, with all of its body."""
    request = await tunnel.next_request()
    await request.until(lambda it: it.complete)
    return request


@pytest.mark.parametrize("same_cluster", [True, False])
async def test_a_stream_that_is_reset_after_the_hand_over_is_502_and_no_second_worker_is_asked(case, same_cluster):
    first, other = await case.pair(same_cluster=same_cluster)
    client = await case.send(case.post(body=b"generate"))
    (await whole(first)).break_off()
    got = await client.answer()
    assert (got.status, got.is_empty) == (502, True)
    assert not other.requests


@pytest.mark.gateway(request_timeout_ms=400)
async def test_a_head_that_is_late_after_the_hand_over_is_502_and_no_second_worker_is_asked(case):
    first, other = await case.pair()
    client = await case.send(case.post(body=b"generate"))
    await whole(first)
    got = await client.answer()
    assert (got.status, got.is_empty) == (502, True)
    assert not other.requests


async def test_a_retryable_answer_is_retried_and_at_last_the_overload_answer(case):
    mismatch = {"x_stargate_retryable": "true", "x_stargate_retry_reason": "queue_estimate_mismatch"}
    first, other = await case.pair()
    client = await case.send(case.post())
    (await whole(first)).answer(429, b"no", **mismatch)
    (await whole(other)).answer(429, b"no", **mismatch)
    got = await client.answer()
    assert (got.status, got.header("x-stargate-error-code")) == (503, "overloaded_error")
    assert got.header("x-inference-server-id") is None
    assert got.body == (
        b'{"error":{"code":"overloaded_error","message":"Inference capacity is temporarily unavailable.","param":"",'
        b'"type":"overloaded_error"}}'
    )
