"""The OpenAI front as a client of raw bytes sees it: requests, streams, errors, headers."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from router.openai import sse, worker_answer
from router.openai.engine_errors import BODY
from router.openai.front_context import BodyBudget
from router.openai.keys.caller import GrantedCaller
from router.openai.ports import Authenticator, LimitRefusal
from support.front_in_memory import (
    DONE,
    MESSAGES,
    SSE,
    chat,
    chunk,
    error_of,
    event,
    front_in_memory,
    get,
    hello,
    post,
    stream,
)
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


# --- what the worker gets


async def test_a_worker_gets_the_body_as_the_client_wrote_it_but_for_model_stream_and_usage():
    async with front_in_memory() as front:
        worker = front.worker(model="m", key="f")
        body = b' {"model" : "f/m", "temperature":1.50, "messages":[{"role":"user","content":"hi"}], "top_k":7,"x":{"a":1e400} } '
        client = await front.client()
        client.send(post(body=body))
        exchange = await worker.next()
        assert exchange.received == (
            b' {"model" : "m", "temperature":1.50, "messages":[{"role":"user","content":"hi"}], "top_k":7,"x":{"a":1e400} '
            b',"stream":true,"stream_options":{"include_usage":true}} '
        )
        assert exchange.request.path == b"/v1/chat/completions"
        hello(exchange)
        assert json.loads((await client.answer()).body)["model"] == "f/m"


async def test_a_worker_gets_the_headers_of_a_gateway_and_nothing_of_the_client_that_steers_or_identifies():
    async with front_in_memory() as front:
        worker = front.worker(model="m", key="f", on_request=hello)
        client = await front.client()
        steering = {
            "authorization": "Bearer secret",
            "cookie": "a=b",
            "x-api-key": "secret",
            "x-routing-key": "other",
            "x-routing-method": "random",
            "x-model": "other",
            "x-input-tokens": "1000000",
            "x-cache-affinity-key": "k",
            "x-priority": "0",
            "x-max-wait-ms": "1",
            "x-request-slo-ms": "1",
            "x-stargate-max-wait-ms": "1",
            "x-inference-server-id": "w9",
            "x-output-tokens": "1",
            "openai-organization": "o",
            "accept-encoding": "gzip",
            "user-agent": "test/1",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-request-id": "mine",
        }
        client.send(chat("f/m", headers=steering, max_tokens=9))
        exchange = await worker.next()
        assert (await client.answer()).status == 200
        names = dict(exchange.request.headers)
        names.pop(b"x-stargate-expected-queue-ms")  # of the router itself
        affinity = names.pop(b"x-cache-affinity-key")
        assert affinity.startswith(b"lrr:v1:prefix:")
        assert names.pop(b"content-length") == b"%d" % len(exchange.received)
        assert names == {
            b"content-type": b"application/json",
            b"accept": b"text/event-stream",
            b"x-request-id": b"mine",
            b"x-model": b"m",
            b"x-routing-key": b"f",
            b"x-input-tokens": b"5",
            b"x-token-estimate": b"14",
            b"user-agent": b"test/1",
            b"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }


# --- streams


async def test_a_stream_has_the_clients_model_name_and_no_usage_that_it_did_not_ask_for():
    async with front_in_memory() as front:
        front.worker(model="m", key="f", on_request=hello)
        answer = await front.ask(chat("f/m", stream=True))
        assert answer.status == 200
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert answer.header("cache-control") == "no-cache"
        assert answer.header("x-accel-buffering") == "no"
        assert answer.header("x-inference-server-id") is None
        assert answer.body == (
            chunk({"role": "assistant", "content": ""}, model="f/m")
            + chunk({"content": "Hel"}, model="f/m")
            + chunk({"content": "lo"}, model="f/m")
            + chunk({}, "stop", model="f/m")
            + DONE
        )
        record = front.usage.records[0]
        assert (record.usage.input_tokens, record.usage.output_tokens, record.status) == (11, 2, 200)


async def test_usage_is_in_the_stream_if_the_client_asked_for_it():
    async with front_in_memory() as front:
        worker = front.worker(on_request=hello)
        answer = await front.ask(chat(stream=True, stream_options={"include_usage": True}))
        assert b'"usage":{"prompt_tokens":11,' in answer.body
        assert answer.body.endswith(DONE)
        assert json.loads(worker.exchanges[0].received)["stream_options"] == {"include_usage": True}


async def test_each_chunk_reaches_the_client_when_it_comes():
    async with front_in_memory() as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        await client.head()
        for text in ("a", "b"):
            exchange.body(chunk({"content": text}))
            assert await client.chunk() == chunk({"content": text})
        exchange.body(chunk({}, "stop") + DONE)
        exchange.end()


@pytest.mark.parametrize("piece", [1, 7, 100])
async def test_events_may_be_cut_anywhere(piece):
    async with front_in_memory() as front:
        events = chunk({"content": "é"}) + b": comment\r\n\r\n" + chunk({}, "stop") + b"data: [DONE]\r\n\r\n"
        pieces = [events[at : at + piece] for at in range(0, len(events), piece)]
        front.worker(on_request=lambda exchange: stream(exchange, *pieces))
        answer = await front.ask(chat(stream=True))
        assert answer.body == chunk({"content": "é"}) + b": comment\n\n" + chunk({}, "stop") + DONE


async def test_a_cut_stream_ends_with_an_error_event():
    async with front_in_memory() as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        exchange.body(chunk({"content": "Hel"}))
        exchange.fail()
        answer = await client.answer()
        first, error, done, rest = answer.body.split(b"\n\n")
        assert (first + b"\n\n", done, rest) == (chunk({"content": "Hel"}), b"data: [DONE]", b"")
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
        assert front.usage.records[0].end.value == "cut"


async def test_a_stream_that_ends_without_its_end_is_a_cut_one():
    async with front_in_memory() as front:
        front.worker(on_request=lambda exchange: stream(exchange, chunk({"content": "Hel"})))
        answer = await front.ask(chat(stream=True))
        assert b'"code":"upstream_error"' in answer.body
        answer = await front.ask(chat())
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error")
        assert answer.header("x-should-retry") == "false"


async def test_an_engine_without_done_is_not_given_one():
    async with front_in_memory() as front:
        front.worker(on_request=lambda exchange: stream(exchange, chunk({"content": "Hel"}), chunk({}, "stop")))
        answer = await front.ask(chat(stream=True))
        assert answer.body == chunk({"content": "Hel"}) + chunk({}, "stop")


async def test_an_error_event_of_the_engine_reaches_the_client_and_ends_the_stream():
    failure = {"error": {"message": "out of memory", "type": "server_error", "code": 500}}
    async with front_in_memory() as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        exchange.body(chunk({"content": "Hel"}) + event(failure))
        answer = await client.answer()
        assert answer.body == chunk({"content": "Hel"}) + event(failure) + DONE
        await eventually(lambda: exchange.cancelled)
        client.send(chat())
        exchange = await worker.next(1)
        exchange.head(200, **SSE)
        exchange.body(chunk({"content": "Hel"}) + event(failure))
        answer = await client.answer()
        assert (answer.status, error_of(answer)["message"]) == (502, "out of memory")


# --- answers without streaming


async def test_an_answer_without_streaming_is_made_of_the_stream():
    async with front_in_memory() as front:
        front.worker(model="m", key="f", on_request=hello)
        answer = await front.ask(chat("f/m"))
        assert answer.header("content-type") == "application/json"
        assert json.loads(answer.body) == {
            "id": "c1",
            "object": "chat.completion",
            "created": 7,
            "model": "f/m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13},
        }


async def test_embeddings_are_passed_on_with_the_clients_model_name():
    async with front_in_memory() as front:
        body = b'{"object":"list","data":[{"embedding":[1.50,1e-7]}], "model":"m","usage":{"prompt_tokens":3}}'
        worker = front.worker(model="m", key="f")
        client = await front.client()
        client.send(post("/v1/embeddings", {"model": "f/m", "input": "hello world", "dimensions": 1.50}))
        exchange = await worker.next()
        assert exchange.header("x-input-tokens") == "8"
        assert exchange.header("x-cache-affinity-key") is None
        assert exchange.received == b'{"model": "m", "input": "hello world", "dimensions": 1.5}'
        exchange.answer(200, body, content_type="application/json", x_inference_server_url="http://internal")
        answer = await client.answer()
        assert answer.body == body.replace(b'"m"', b'"f/m"')
        assert answer.header("x-inference-server-url") is None
        assert front.usage.records[0].usage.input_tokens == 3


# --- errors


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{bad", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'{"model":"m"}xx', "invalid_json", None),
        (b'{"model":"m","a":NaN}', "invalid_json", None),
        (b'{"model":"m","a":"\xff"}', "invalid_json", None),
        (b'{"model":"m","a":' + b"[" * 300 + b"]" * 300 + b"}", "invalid_json", None),
        (b'{"model":"m","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
        (b'{"model":"m","messages":[', "invalid_json", None),
        (b'{"messages":[1]}', "missing_required_parameter", "model"),
        (b'{"model":null,"messages":[1]}', "missing_required_parameter", "model"),
        (b'{"Model":"m","messages":[1]}', "missing_required_parameter", "model"),
        (b'{"model":3,"messages":[1]}', "invalid_type", "model"),
        (b'{"model":"m"}', "missing_required_parameter", "messages"),
        (b'{"model":"m","messages":[ ]}', "invalid_value", "messages"),
        (b'{"model":"m","messages":"x"}', "invalid_type", "messages"),
        (b'{"model":"m","messages":[1],"stream":"yes"}', "invalid_type", "stream"),
    ],
)
async def test_a_body_that_cannot_be_used_is_answered_with_the_envelope(body, code, param):
    async with front_in_memory() as front:
        worker = front.worker()
        answer = await front.ask(post(body=body))
        error = error_of(answer)
        assert (answer.status, error["type"]) == (400, "invalid_request_error")
        assert (error["code"], error["param"]) == (code, param)
        assert not worker.exchanges


async def test_unknown_models_paths_and_methods_are_told_apart():
    async with front_in_memory() as front:
        front.worker()
        answer = await front.ask(chat("nobody"))
        assert (answer.status, error_of(answer)["code"], error_of(answer)["param"]) == (404, "model_not_found", "model")
        assert "nobody" in error_of(answer)["message"]
        answer = await front.ask(post("/v1/rerank", {}))
        assert (answer.status, error_of(answer)["code"]) == (404, "unknown_url")
        assert "POST /v1/rerank" in error_of(answer)["message"]
        answer = await front.ask(get("/v1/chat/completions"))
        assert (answer.status, error_of(answer)["code"], answer.header("allow")) == (
            405,
            "method_not_supported",
            "POST",
        )


async def test_a_model_whose_workers_have_just_gone_is_answered_503():
    async with front_in_memory() as front:
        worker = front.worker()
        front.gateway.registry.end(worker.registration)
        answer = await front.ask(chat())
        assert (answer.status, error_of(answer)["code"], answer.header("retry-after")) == (503, "no_capacity", "1")


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, b'{"error":{"message":"too long","type":"invalid_request_error","code":400}}', 400, 400),
        (429, b'{"error": {"message":"slow down"}}', 429, None),
        (404, b"Not Found", 404, "unknown_url"),
        (405, b'{"detail":"Method Not Allowed"}', 404, "unknown_url"),
        (401, b'{"detail":"no key"}', 502, "upstream_error"),
        (500, b"Traceback", 500, "upstream_error"),
        (302, b"", 502, "upstream_error"),
        (422, b'{"detail":"bad temperature"}', 422, "upstream_error"),
    ],
)
async def test_errors_of_engines_keep_their_envelope_or_get_one(status, body, expected, code):
    async with front_in_memory() as front:
        front.worker(on_request=lambda exchange: exchange.answer(status, body, retry_after="7"))
        for streamed in (True, False):
            answer = await front.ask(chat(stream=streamed))
            assert (answer.status, answer.header("retry-after")) == (expected, "7")
            error = json.loads(answer.body)["error"]
            assert error.get("code") == code
            if b'"error"' in body:
                assert answer.body == body


async def test_a_worker_that_gives_no_answer_is_a_502_without_addresses():
    async with front_in_memory() as front:
        front.worker(on_request=lambda exchange: exchange.fail("quic 10.0.0.1:5555 reset"))
        answer = await front.ask(chat())
        error = error_of(answer)
        assert (answer.status, error["code"], answer.header("x-should-retry")) == (502, "upstream_error", "false")
        assert "10.0.0.1" not in error["message"]


async def test_a_request_id_of_the_client_is_kept_if_it_can_be_a_header():
    async with front_in_memory() as front:
        front.worker(on_request=hello)
        for given, kept in (("abc-1", True), ("x" * 5000, False), ("caf\xe9", False), ("a b", False)):
            answer = await front.ask(chat(headers={"x-request-id": given}))
            assert answer.status == 200
            assert (answer.header("x-request-id") == given) is kept
            assert answer.header("x-request-id").isascii()


async def test_a_body_above_the_limit_is_refused_before_and_while_it_arrives():
    async with front_in_memory(max_body_bytes=1000) as front:
        front.worker()
        answer = await front.ask(chat(extra="x" * 1000))
        assert (answer.status, error_of(answer)["code"]) == (413, "request_too_large")
        client = await front.client()
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        client.send(b"3e9\r\n" + b"x" * 1001 + b"\r\n")
        answer = await client.answer()
        assert (answer.status, error_of(answer)["code"]) == (413, "request_too_large")


async def test_the_bodies_that_are_held_are_bounded():
    async with front_in_memory() as front:
        worker = front.worker()
        front.context.bodies = BodyBudget(300)
        client = await front.client()
        client.send(chat(extra="x" * 200))
        exchange = await worker.next()
        answer = await front.ask(chat(extra="x" * 200))
        assert (answer.status, error_of(answer)["code"], answer.header("retry-after")) == (503, "no_capacity", "1")
        hello(exchange)
        assert (await client.answer()).status == 200
        worker.on_request = hello
        assert (await front.ask(chat(extra="x" * 200))).status == 200


async def test_a_large_error_answer_of_an_engine_is_replaced():
    body = json.dumps({"error": {"message": "x" * BODY.bytes}}).encode()
    async with front_in_memory() as front:
        front.worker(on_request=lambda exchange: exchange.answer(500, body))
        answer = await front.ask(chat())
        assert (answer.status, error_of(answer)["message"]) == (500, "The engine answered with status 500.")


# --- clients that leave


async def test_a_client_that_leaves_cancels_what_runs_for_it():
    async with front_in_memory() as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        exchange.body(chunk({"content": "Hel"}))
        await client.head()
        client.leave()
        await eventually(lambda: exchange.cancelled)
        assert [record.end.value for record in front.usage.records] == ["client_gone"]


async def test_a_client_that_leaves_while_its_request_waits_for_a_worker_is_forgotten():
    async with front_in_memory() as front:
        worker = front.worker()
        worker.free = 0
        client = await front.client()
        client.send(chat())
        await eventually(lambda: bool(worker.waiting))
        client.leave()
        await eventually(lambda: not worker.waiting)
        assert not front.gateway.proxy.running


# --- models and health


async def test_the_list_of_models_has_what_can_be_asked_for():
    async with front_in_memory(default_routing_key="d", aliases=(("gpt", "org/a"), ("gone", "nobody"))) as front:
        front.worker("w1", model="org/a")
        front.worker("w2", model="b", key="f")
        front.worker("w3", model="c", key="d")
        answer = await front.ask(get("/v1/models"))
        document = json.loads(answer.body)
        assert document["object"] == "list"
        assert [one["id"] for one in document["data"]] == ["c", "f/b", "gpt", "org/a"]
        assert {one["object"] for one in document["data"]} == {"model"}
        assert [one["owned_by"] for one in document["data"]] == ["d", "f", "llm-request-router", "llm-request-router"]
        for name in ("org/a", "org%2Fa", "f/b", "gpt"):
            answer = await front.ask(get(f"/v1/models/{name}"))
            assert json.loads(answer.body)["id"] == name.replace("%2F", "/")
        answer = await front.ask(get("/v1/models/none"))
        assert (answer.status, error_of(answer)["code"]) == (404, "model_not_found")


async def test_a_name_means_the_whole_id_first_then_a_routing_key_then_an_alias():
    async with front_in_memory(default_routing_key="d", aliases=(("gpt", "f/a"), ("f/b", "c"))) as front:
        workers = {
            "f/a": front.worker("w1", model="f/a"),
            "a of f": front.worker("w2", model="a", key="f"),
            "b of f": front.worker("w3", model="b", key="f"),
            "c of d": front.worker("w4", model="c", key="d"),
            "uuid": front.worker("w5", model="x/y", key="0af76519-16cd-43dd-8448-eb211c80319c"),
        }
        for worker in workers.values():
            worker.on_request = hello
        for name, expected in (
            ("f/a", "f/a"),
            ("gpt", "f/a"),
            ("f/b", "b of f"),
            ("c", "c of d"),
            ("d/c", "c of d"),
            ("0AF76519-16CD-43DD-8448-EB211C80319C/x/y", "uuid"),
        ):
            before = len(workers[expected].exchanges)
            answer = await front.ask(chat(name))
            assert json.loads(answer.body)["model"] == name
            assert len(workers[expected].exchanges) == before + 1, name
        for name in ("a", "/a", "f/", "F/a", "", "x/y"):
            assert (await front.ask(chat(name))).status == 404, name


async def test_health_needs_no_key_and_readiness_follows_the_router():
    async with front_in_memory() as front:
        for method in ("GET", "HEAD"):
            assert (await front.ask(get("/healthz", method))).status == 200
        assert (await front.ask(get("/readyz"))).status == 200
        front.ready = False
        assert (await front.ask(get("/readyz"))).status == 503
        assert (await front.ask(post("/healthz", b""))).status == 405


async def test_cors_is_off_unless_an_origin_is_allowed():
    async with front_in_memory() as front:
        answer = await front.ask(get("/v1/chat/completions", "OPTIONS", origin="https://a.test"))
        assert (answer.status, answer.header("access-control-allow-origin")) == (204, None)
    async with front_in_memory(cors_origins=("https://a.test",)) as front:
        front.worker(on_request=hello)
        answer = await front.ask(
            get(
                "/v1/chat/completions",
                "OPTIONS",
                origin="https://a.test",
                access_control_request_headers="authorization",
            )
        )
        assert (answer.status, answer.header("access-control-allow-origin")) == (204, "https://a.test")
        assert answer.header("access-control-allow-methods") == "POST"
        assert answer.header("access-control-allow-headers") == "authorization"
        answer = await front.ask(chat(headers={"origin": "https://a.test"}))
        assert answer.header("access-control-allow-origin") == "https://a.test"
        assert "x-request-id" in answer.header("access-control-expose-headers")
        answer = await front.ask(chat("unknown", headers={"origin": "https://b.test"}))
        assert (answer.status, answer.header("access-control-allow-origin")) == (404, None)


# --- time limits and silence


async def test_a_silent_stream_gets_comments():
    async with front_in_memory(keepalive_ms=20) as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        await client.head()
        exchange.body(chunk({"content": "a"}))
        assert await client.chunk() == chunk({"content": "a"})
        assert await client.chunk() == b": keep-alive\n\n"
        assert await client.chunk() == b": keep-alive\n\n"
        exchange.body(chunk({}, "stop") + DONE)
        exchange.end()
        assert await client.chunk() == chunk({}, "stop") + DONE


@pytest.mark.parametrize("limit", ["head_timeout_ms", "total_timeout_ms"])
async def test_a_request_whose_head_does_not_come_in_time_is_answered_504(limit):
    async with front_in_memory(**{limit: 50}) as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat())
        exchange = await worker.next()
        answer = await client.answer()
        assert (answer.status, error_of(answer)["code"], answer.header("x-should-retry")) == (504, "timeout", "false")
        await eventually(lambda: exchange.cancelled)


@pytest.mark.parametrize("limit", ["idle_timeout_ms", "total_timeout_ms"])
async def test_a_stream_that_takes_too_long_ends_with_an_error_event(limit):
    async with front_in_memory(**{limit: 50}) as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        exchange.body(chunk({"content": "a"}))
        answer = await client.answer()
        assert b'"code":"timeout"' in answer.body
        await eventually(lambda: exchange.cancelled)


async def test_time_limits_that_are_not_reached_change_nothing():
    async with front_in_memory(head_timeout_ms=60_000, idle_timeout_ms=60_000, total_timeout_ms=60_000) as front:
        front.worker(on_request=hello)
        assert (await front.ask(chat())).status == 200
        assert (await front.ask(chat(stream=True))).body.endswith(DONE)
    await asyncio.sleep(0)


# --- affinity


async def test_the_turns_of_a_conversation_have_one_affinity_key_and_sessions_their_own():
    async with front_in_memory() as front:
        worker = front.worker(on_request=hello)
        turns = [{"role": "system", "content": "be kind"}, *MESSAGES]
        more = [*turns, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "again"}]
        answers = [
            await front.ask(chat(messages=turns)),
            await front.ask(chat(messages=more)),
            await front.ask(chat(messages=[*turns[:1], {"role": "user", "content": "other"}])),
            await front.ask(chat(prompt_cache_key="k")),
            await front.ask(chat(headers={"x-multi-turn-session-id": " k "})),
            await front.ask(chat(prompt_cache_key="k", headers={"x-multi-turn-session-id": "x" * 300})),
        ]
        keys = [exchange.header("x-cache-affinity-key") for exchange in worker.exchanges]
        assert keys[0] == keys[1] != keys[2]
        assert keys[3] == keys[4] == keys[5] != keys[0]
        assert [answer.header("x-multi-turn-session-id") for answer in answers] == [None, None, None, "k", "k", "k"]
        answer = await front.ask(chat(headers={"x-multi-turn-session-id": "x" * 257}))
        assert (answer.status, error_of(answer)["param"]) == (400, "x-multi-turn-session-id")


# --- what a key says of routing


class Granted(Authenticator):
    """Everybody is one caller with a priority and a routing method."""

    def __init__(self, method):
        self.caller = GrantedCaller(key_id="alice", priority=7, routing_methods={"m": method})

    def authenticate(self, *_):
        return self.caller

    def authorize(self, caller, *_):
        return caller


@pytest.mark.parametrize(("method", "algorithm"), [("random", "random"), ("no-such-method", "power-of-n")])
async def test_priority_and_routing_method_of_a_key_are_used_if_there_is_such_a_method(method, algorithm):
    async with front_in_memory(Granted(method)) as front:
        worker = front.worker(on_request=hello)
        assert (await front.ask(chat())).status == 200
        assert worker.exchanges[0].header("x-priority") == "7"
        assert front.gateway.count("routing_selections_total", f'algorithm="{algorithm}"') == 1


class Slow(Authenticator):
    """Answers when the test says so."""

    def __init__(self):
        self.caller = GrantedCaller(key_id="alice")
        self.waiting = []

    def _later(self):
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        return future

    def authenticate(self, *_):
        return self._later()

    def authorize(self, *_):
        return self._later()


async def test_checks_that_take_time_are_waited_for_and_cancelled_if_the_client_leaves():
    keys = Slow()
    async with front_in_memory(keys) as front:
        front.worker(on_request=hello)
        front.limiter.outcome = asyncio.get_running_loop().create_future()
        client = await front.client()
        client.send(chat())
        for number in range(2):
            await eventually(lambda number=number: len(keys.waiting) == number + 1)
            keys.waiting[number].set_result(keys.caller)
        await eventually(lambda: bool(front.limiter.asked))
        front.limiter.outcome.set_result(LimitRefusal(429, "tokens", "rate_limit_exceeded", "later"))
        answer = await client.answer()
        assert (answer.status, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
        client.send(chat())
        await eventually(lambda: len(keys.waiting) == 3)
        client.leave()
        await eventually(keys.waiting[2].cancelled)


async def test_a_check_that_fails_is_an_internal_error():
    keys = Slow()
    async with front_in_memory(keys) as front:
        client = await front.client()
        client.send(chat())
        await eventually(lambda: bool(keys.waiting))
        keys.waiting[0].set_exception(ZeroDivisionError("secret"))
        answer = await client.answer()
        assert (answer.status, error_of(answer)["code"]) == (500, "internal_error")
        assert b"secret" not in answer.body


async def test_a_body_that_stops_arriving_or_is_broken_gets_the_envelope():
    async with front_in_memory() as front:
        front.worker()
        client = await front.client()
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        answer = await client.answer()
        assert (answer.status, error_of(answer)["code"]) == (400, "malformed_request")
        answer = await front.ask(b"GET / HTTP/9.9\r\n\r\n")
        assert (answer.status, error_of(answer)["code"]) == (400, "malformed_request")


async def test_a_compressed_body_or_answer_is_told():
    async with front_in_memory() as front:
        front.worker(on_request=lambda exchange: exchange.answer(200, b"x", content_encoding="gzip"))
        answer = await front.ask(chat(headers={"content-encoding": "gzip"}))
        assert (answer.status, error_of(answer)["code"]) == (415, "unsupported_content_type")
        answer = await front.ask(post(body=b"a=b", content_type="application/x-www-form-urlencoded"))
        assert (answer.status, error_of(answer)["code"]) == (415, "unsupported_content_type")
        answer = await front.ask(chat())
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error")


async def test_an_answer_without_a_stream_is_passed_on_only_to_a_client_that_asked_for_none():
    body = b'{"id":"c","model":"x","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1}}'
    async with front_in_memory() as front:
        front.worker(on_request=lambda exchange: exchange.answer(200, body, content_type="application/json"))
        answer = await front.ask(chat())
        assert (answer.status, answer.body) == (200, body.replace(b'"x"', b'"m"'))
        answer = await front.ask(chat(stream=True))
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error")
        front.worker("w2", model="n", on_request=lambda exchange: exchange.answer(200, b"no json"))
        answer = await front.ask(chat("n"))
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error")


async def test_a_client_that_reads_slowly_pauses_its_worker():
    async with front_in_memory() as front:
        worker = front.worker()
        client = await front.client()
        client.send(chat(stream=True))
        exchange = await worker.next()
        exchange.head(200, **SSE)
        text = "x" * 60_000
        for _ in range(200):
            if not exchange.paused:
                exchange.body(chunk({"content": text}))
                await asyncio.sleep(0)
        await eventually(lambda: exchange.paused)
        answer = await client.head()
        reading = asyncio.ensure_future(client.rest(answer))
        await eventually(lambda: not exchange.paused)
        exchange.body(chunk({}, "stop") + DONE)
        exchange.end()
        assert (await reading).body.endswith(DONE)


async def test_a_worker_that_sends_too_much_ends_its_answer(monkeypatch):
    monkeypatch.setattr(sse, "_MAX_EVENT", 1000)
    monkeypatch.setattr(worker_answer, "_MAX_ANSWER", 1000)
    async with front_in_memory() as front:

        def too_much(exchange):
            exchange.head(200, **SSE)
            exchange.body(b"data: " + b"x" * 2000)

        worker = front.worker(on_request=too_much)
        for streamed in (True, False):
            answer = await front.ask(chat(stream=streamed))
            assert b'"code":"upstream_error"' in answer.body
        await eventually(lambda: all(exchange.cancelled for exchange in worker.exchanges))
        worker.on_request = lambda exchange: exchange.answer(200, b"x" * 2000, content_type="application/json")
        answer = await front.ask(chat())
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error")


async def test_several_keys_in_one_request_are_no_key():
    asked = []

    class Keys(Granted):
        def authenticate(self, *given):
            asked.append(given)
            return self.caller

    async with front_in_memory(Keys("random")) as front:
        front.worker(on_request=hello)
        request = chat(headers={"authorization": "Bearer a"}).replace(
            b"authorization:", b"authorization: b\r\nauthorization:"
        )
        await front.ask(request)
        await front.ask(chat(headers={"api-key": "c"}))
        await front.ask(chat(headers={"api-key": "c", "x-api-key": "d"}))
        assert asked == [(b"b,Bearer a", None), (None, b"c"), (None, b"d")]


async def test_a_defect_is_an_internal_error_with_a_line_in_the_log():
    class Defect(Granted):
        def authorize(self, *_):
            raise ZeroDivisionError("secret")

    async with front_in_memory(Defect("alice")) as front:
        front.worker()
        with capture_logs() as lines:
            answer = await front.ask(chat())
        assert (answer.status, error_of(answer)["code"]) == (500, "internal_error")
        assert b"secret" not in answer.body
        assert [line["event"] for line in lines] == ["a request of an OpenAI client could not be handled"]
