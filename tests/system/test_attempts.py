"""One attempt at one worker, on a gateway in memory and on a router with real tunnels; docs/proxy.md, "Attempts"."""

import asyncio

import pytest

from support.cases import BUSY
from support.http_client import BrokenOffError

TIMEOUT_MS = 600
pytestmark = pytest.mark.gateway(request_timeout_ms=TIMEOUT_MS, compat="0.11")
TUNNELS = pytest.mark.harness("tunnels")
BODY = bytes(range(256)) * 300
BROKEN_CHUNK = b"not-a-size\r\n"


# --- how a worker can fail


async def reset(tunnel, request):
    request.break_off()


async def end_at_once(tunnel, request):
    request.stream.write(b"", fin=True)


async def end_inside_a_message(tunnel, request):
    request.stream.write(b"\0\0\0\0\x04", fin=True)


async def garbage(tunnel, request):
    request.stream.write(b"HTTP/1.1 200 OK\r\n\r\n" * 20)


async def close_the_tunnel(tunnel, request):
    tunnel.connection.close(0, "restarting")


async def lose_the_tunnel(tunnel, request):
    tunnel.connection.close(7, "defect")


async def stop_and_reset(tunnel, request):
    request.stop_upload()
    request.break_off()


async def silence(tunnel, request):
    """Until the deadline."""


async def second_head(tunnel, request):
    request.send_head(200)


async def fails_before_the_head(case, fail):
    first, second = await case.pair()
    other = await case.worker("z", stats=BUSY)
    client = await case.send(case.post("/v1/responses?x=%20", BODY, authorization="Bearer t"))
    failing = await first.next_request()
    await failing.until(lambda it: it.complete)
    await fail(first, failing)
    again = await second.next_request()
    await again.until(lambda it: it.complete)
    assert failing.body == again.body == BODY
    assert (again.head.path, again.head.headers) == (failing.head.path, failing.head.headers)
    again.answer(200, b"from the sibling")
    got = await client.answer()
    assert (got.status, got.body, got.header("x-inference-server-id")) == (200, b"from the sibling", case.id("b"))
    assert got.header("x-stargate-cluster-id") == case.id("c")
    assert not other.requests
    assert await case.count("proxy_retries_total", 'reason="connect_failover"') == 1
    assert await case.count("proxy_attempts_total", 'result="proxy_502"') == 1
    assert await case.count("routing_selections_total") == 1
    assert await case.count("requests_total") == await case.count("requests_total", case.id("b"), 'status="200"') == 1
    return failing


@pytest.mark.parametrize("fail", [reset, stop_and_reset])
async def test_a_failure_before_the_head_goes_on_at_a_sibling_with_identical_bytes(case, fail):
    await fails_before_the_head(case, fail)


async def test_a_head_that_does_not_come_within_the_deadline_is_such_a_failure(case):
    assert (await fails_before_the_head(case, silence)).codes == [0]


@TUNNELS
@pytest.mark.parametrize("fail", [end_at_once, end_inside_a_message, close_the_tunnel, lose_the_tunnel])
async def test_so_is_the_end_of_the_stream_or_the_tunnel(case, fail):
    await fails_before_the_head(case, fail)


@TUNNELS
@pytest.mark.parametrize("fail", [garbage, 100, 101, 102, 103, 199])
async def test_so_is_what_breaks_the_protocol_and_the_stream_is_stopped(case, fail):
    async def interim_status(tunnel, request):
        request.send_head(fail)

    failing = await fails_before_the_head(case, fail if callable(fail) else interim_status)
    await failing.until(lambda it: it.stopped)
    assert failing.codes == [0]


async def fails_after_the_head(case, fail):
    first, second = await case.pair()
    client = await case.send(case.post())
    request = await first.next_request()
    request.send_head(200)
    request.send_body(b"data: 1\n\n")
    answer = await client.head()
    assert await client.chunk() == b"data: 1\n\n"
    request.send_body(b"data: 2\n\n")
    assert await client.chunk() == b"data: 2\n\n"
    await fail(first, request)
    with pytest.raises(BrokenOffError) as broken:
        await client.rest(answer)
    assert broken.value.answer.chunks == []
    assert broken.value.answer.status == 200
    assert not second.requests
    assert await case.count("midstream_failures_total") == 1
    assert await case.count("proxy_attempts_total") == 1


async def test_a_failure_after_the_head_delivers_what_came_and_ends_abnormally(case):
    await fails_after_the_head(case, reset)


@TUNNELS
@pytest.mark.parametrize("fail", [end_inside_a_message, garbage, second_head, close_the_tunnel, lose_the_tunnel])
async def test_whatever_a_tunnel_does_after_the_head_is_such_a_failure(case, fail):
    await fails_after_the_head(case, fail)


@TUNNELS
@pytest.mark.parametrize("together", [end_inside_a_message, garbage, second_head])
async def test_a_failure_in_the_same_flight_as_the_head_comes_after_it(case, together):
    tunnel = await case.worker()
    client = await case.send(case.post())
    request = await tunnel.next_request()
    request.send_head(201)
    request.send_body(b"data: 1\n\n")
    await together(tunnel, request)
    with pytest.raises(BrokenOffError) as broken:
        await client.answer()
    assert (broken.value.answer.status, broken.value.answer.body) == (201, b"data: 1\n\n")


async def test_chunks_pass_one_by_one_and_the_head_before_them(case):
    tunnel = await case.worker()
    client = await case.send(case.post())
    request = await tunnel.next_request()
    request.send_head(200)
    answer = await client.head()
    for number in range(5):
        request.send_body(b"data: %d\n\n" % number)
        assert await client.chunk() == b"data: %d\n\n" % number
    request.end()
    assert (await client.rest(answer)).body == b""
    client.send(case.post())  # the connection is fit for another one
    (await tunnel.next_request()).answer()
    assert (await client.answer()).body == b"ok"


async def test_every_answer_of_a_worker_names_it_and_nothing_internal(case):
    tunnel = await case.worker(cluster="c")
    client = await case.send(case.post())
    own = ("x_inference_server_id", "x_inference_server_url", "x_stargate_cluster_id", "x_stargate_error_code")
    forged = dict.fromkeys(own, "forged")
    request = await tunnel.next_request()
    request.answer(418, b"tea", x_stargate_retryable="true", connection="close", retry_after=7, **forged)
    got = await client.answer()
    assert (got.status, got.body, got.header("retry-after")) == (418, b"tea", "7")
    assert got.header("x-inference-server-id") == case.id("a")
    assert got.header("x-inference-server-url") == case.url("a")
    assert got.header("x-stargate-cluster-id") == case.id("c")
    for name in ("x-stargate-error-code", "x-stargate-retryable", "connection"):
        assert got.header(name) is None


async def test_query_headers_and_body_reach_the_worker_as_they_came_the_routers_own_excepted(case):
    tunnel = await case.worker()
    passed = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "a=b",
        "baggage": "c=d",
        "accept-encoding": "gzip",
        "proxy-authorization": "p",
        "authorization": "Bearer t",
        "x-named": "named by connection",
    }
    dropped = {
        "connection": "x-named",
        "te": "trailers",
        "keep-alive": "timeout=3",
        "proxy-connection": "x",
        "x-stargate-retryable": "true",
        "x-stargate-error-code": "forged",
    }
    fields = {name.replace("-", "_"): value for name, value in {**passed, **dropped}.items()}
    own = {"x_routing_method": "random", "x_priority": " +007 ", "x_stargate_expected_queue_ms": "forged"}
    client = await case.send(case.post("/v1/chat/completions?q=%41&+", b'{"stream": true}', **own, **fields))
    request = await tunnel.next_request()
    await request.until(lambda it: it.complete)
    assert (request.head.method, request.head.path) == (b"POST", b"/v1/chat/completions?q=%41&+")
    assert request.body == b'{"stream": true}'
    assert request.header("x-priority") == "+007"
    assert {name: request.header(name) for name in passed} == passed
    for name in (*dropped, "host", "x-routing-method", "via", "x-forwarded-for", "forwarded"):
        assert request.header(name) is None
    assert request.header("x-stargate-expected-queue-ms") == "0"
    request.answer()
    assert (await client.answer()).status == 200


@TUNNELS
@pytest.mark.parametrize(("budget", "status"), [(None, 503), ("0", 502)])
async def test_a_header_the_tunnel_cannot_carry_is_a_failed_attempt(case, budget, status):
    tunnel = await case.worker()
    got = await case.ask(case.post(x_note="caf\xe9", x_stargate_max_wait_ms=budget))
    assert (got.status, got.is_empty) == (status, True)
    assert not tunnel.requests
    assert await case.count("proxy_attempts_total", 'result="proxy_502"') == 1


# --- upload and answer beside each other


async def test_upload_finishes_first_and_the_head_is_still_waited_for(case):
    tunnel = await case.worker()
    client = await case.send(case.post(body=b"all"))
    request = await tunnel.next_request()
    await request.until(lambda it: it.complete)
    request.answer(200, b"late")
    assert (await client.answer()).body == b"late"


async def test_no_deadline_applies_after_the_head(case):
    tunnel = await case.worker()
    client = await case.send(case.post())
    request = await tunnel.next_request()
    request.send_head(200)
    answer = await client.head()
    await asyncio.sleep(TIMEOUT_MS / 1000 + 0.1)  # the thing under test: more than the deadline passes
    request.send_body(b"late")
    request.end()
    assert (await client.rest(answer)).body == b"late"


async def test_success_first_and_the_upload_goes_on_beside_the_response(case):
    tunnel = await case.worker()
    client = await case.send(case.unfinished(10))
    request = await tunnel.next_request()
    request.send_head(200)
    answer = await client.head()
    request.send_body(b"one")
    assert await client.chunk() == b"one"
    client.send(b"ended")
    await request.until(lambda it: it.complete)
    assert request.body == b"begunended"
    request.end()
    await client.rest(answer)


@pytest.mark.parametrize("status", [400, 429, 503, 302])
async def test_any_other_status_first_abandons_the_upload_and_cannot_be_retried(case, status):
    first, second = await case.pair(same_cluster=False)
    client = await case.send(case.unfinished())
    request = await first.next_request()
    request.answer(status, b"early", x_stargate_retryable="true")
    got = await client.answer()
    assert (got.status, got.body, got.header("x-stargate-retryable")) == (status, b"early", None)
    await request.until(lambda it: it.reset)
    assert request.codes == [0]
    assert not second.requests


async def test_a_worker_that_stops_the_upload_and_answers_is_passed_on(case):
    tunnel = await case.worker()
    client = await case.send(case.unfinished(10))
    request = await tunnel.next_request()
    request.stop_upload()
    client.send(b"ended")
    request.answer(200, b"enough")
    assert (await client.answer()).body == b"enough"


async def test_what_a_client_sends_to_a_worker_that_stopped_it_is_kept_for_the_next_one(case):
    first, second = await case.pair()
    client = await case.send(case.unfinished(10))
    request = await first.next_request()
    request.stop_upload()
    client.send(b"ended")
    # The first worker says no more, so its deadline has to pass.
    other = await second.next_request()
    await other.until(lambda it: it.complete)
    assert other.body == b"begunended"
    other.answer()
    assert (await client.answer()).status == 200


async def test_a_response_does_not_wait_for_its_upload_longer_than_for_a_head(case):
    tunnel = await case.worker()
    client = await case.send(case.unfinished())
    request = await tunnel.next_request()
    began = asyncio.get_running_loop().time()
    request.answer(200, b"all of it")
    assert (await client.answer()).body == b"all of it"
    assert TIMEOUT_MS / 2000 < asyncio.get_running_loop().time() - began < TIMEOUT_MS / 1000 + 1
    await request.until(lambda it: it.reset)


async def test_an_upload_that_breaks_before_the_head_is_502_at_once(case):
    first, second = await case.pair()
    client = await case.send(case.post(chunked=True).removesuffix(b"0\r\n\r\n"))
    request = await first.next_request()
    client.send(BROKEN_CHUNK)
    got = await client.answer()
    assert (got.status, got.is_empty) == (502, True)
    await request.until(lambda it: it.reset and it.stopped)
    assert request.codes == [0, 0]
    assert not request.complete
    assert not second.requests
    assert await case.count("proxy_attempts_total", 'result="proxy_502"') == 1
    assert await case.count("proxy_retries_total") == await case.count("proxy_retry_exhausted_total") == 0


async def test_an_upload_that_breaks_after_the_head_breaks_the_response_at_its_end(case):
    tunnel = await case.worker()
    client = await case.send(case.post(chunked=True).removesuffix(b"0\r\n\r\n"))
    request = await tunnel.next_request()
    request.send_head(200)
    answer = await client.head()
    client.send(BROKEN_CHUNK)
    await request.until(lambda it: it.reset)
    request.send_body(b"still passed on")
    assert await client.chunk() == b"still passed on"
    request.end()
    with pytest.raises(BrokenOffError):
        await client.rest(answer)


async def test_an_upload_that_breaks_after_the_last_byte_of_the_response_breaks_the_response(case):
    tunnel = await case.worker()
    client = await case.send(case.post(body=b"", content_length=None, transfer_encoding="chunked") + b"3\r\nabc\r\n")
    request = await tunnel.next_request()
    request.answer(200, b"almost")
    answer = await client.head()
    assert await client.chunk() == b"almost"
    client.send(BROKEN_CHUNK)
    with pytest.raises(BrokenOffError):
        await client.rest(answer)


async def fails_in_the_middle_of_the_upload(case, fail):
    first, second = await case.pair()
    client = await case.send(case.unfinished())
    await fail(first, await first.next_request())
    got = await client.answer()
    assert (got.status, got.is_empty) == (502, True)
    assert not second.requests
    assert await case.count("proxy_retries_total") == await case.count("proxy_retry_exhausted_total") == 0


async def test_a_failure_in_the_middle_of_the_upload_is_502(case):
    await fails_in_the_middle_of_the_upload(case, reset)


@TUNNELS
async def test_a_tunnel_lost_in_the_middle_of_an_upload_is_502(case):
    await fails_in_the_middle_of_the_upload(case, lose_the_tunnel)


async def test_the_body_is_asked_for_once_a_stream_is_open(case):
    tunnel = await case.worker()
    client = await case.send(case.post(body=b"", content_length="4", expect="100-continue"))
    request = await tunnel.next_request()
    assert (await client.head()).status == 100
    assert not request.complete
    client.send(b"body")
    await request.until(lambda it: it.complete)
    request.answer()
    assert (await client.answer()).status == 200


# --- declared lengths


async def test_a_response_longer_than_declared_is_cut_to_its_length_and_the_worker_stopped(case):
    tunnel = await case.worker()
    client = await case.send(case.post())
    request = await tunnel.next_request()
    request.send_head(200, content_length=3)
    request.send_body(b"abcdef")
    assert (await client.answer()).body == b"abc"
    await request.until(lambda it: it.stopped)
    client.send(case.post())
    (await tunnel.next_request()).answer()
    assert (await client.answer()).status == 200


async def test_a_response_shorter_than_declared_breaks_the_connection(case):
    tunnel = await case.worker()
    client = await case.send(case.post())
    (await tunnel.next_request()).answer(200, b"abc", content_length=9)
    with pytest.raises(BrokenOffError) as broken:
        await client.answer()
    assert broken.value.answer.status == 200


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body_have_none_and_the_connection_goes_on(case, status):
    tunnel = await case.worker()
    client = await case.client()
    for _ in range(2):
        client.send(case.post())
        (await tunnel.next_request()).answer(status, b"must not be sent")
        got = await client.answer()
        assert (got.status, got.header("transfer-encoding")) == (status, None)


@pytest.mark.gateway(response_idle_timeout_ms=200, compat="0.11")
async def test_a_silent_response_is_ended_by_the_idle_limit(case):
    tunnel = await case.worker()
    client = await case.send(case.post())
    request = await tunnel.next_request()
    request.send_head(200)
    request.send_body(b"1")
    with pytest.raises(BrokenOffError) as broken:
        await client.answer()
    assert broken.value.answer.body == b"1"
    await request.until(lambda it: it.stopped)


# --- streams that are all in use


@TUNNELS
async def test_requests_beyond_a_workers_streams_go_to_another_worker_or_wait_their_turn(case):
    full, other = await case.worker("a", streams=2), await case.worker("b", stats=BUSY, streams=2)
    clients = [await case.send(case.post(x_input_tokens="0", x_request_id=str(number))) for number in range(12)]
    held = {full: [await full.next_request(), await full.next_request()], other: [await other.next_request()]}

    async def answer(tunnel):
        while True:
            request = held[tunnel].pop() if held[tunnel] else await tunnel.next_request()
            await request.until(lambda it: it.complete)
            request.answer(200, request.header("x-request-id").encode())

    playing = [asyncio.create_task(answer(tunnel)) for tunnel in (full, other)]
    got = [await client.answer() for client in clients]
    for task in playing:
        task.cancel()
    await asyncio.wait(playing)
    assert [one.body for one in got] == [b"%d" % number for number in range(12)]
    assert await case.count("spills_total") >= 1


@TUNNELS
async def test_waiting_for_a_stream_counts_towards_the_deadline_of_the_attempt(case):
    tunnel = await case.worker(streams=1)
    holder = await case.send(case.post())
    held = await tunnel.next_request()
    held.send_head(200)
    await holder.head()
    began = asyncio.get_running_loop().time()
    got = await case.ask(case.post())
    assert (got.status, got.is_empty) == (503, True)  # a failed attempt, and nobody else to ask
    assert TIMEOUT_MS / 1000 - 0.1 < asyncio.get_running_loop().time() - began < TIMEOUT_MS / 1000 + 1
    held.end()
    assert await holder.chunk() == b""
