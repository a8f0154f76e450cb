"""The black-box cases of the gateway's specification (its section 11) as the front answers them, one test for each number."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.openai.keys.authenticator import KeyAuthenticator
from router.openai.keys.caller import GrantedCaller, Names
from router.openai.keys.key_format import digest_of
from router.openai.keys.key_table import KeyTable
from router.openai.keys.refusals import CANNOT_CHECK
from router.openai.ports import LimitRefusal
from router.telemetry.metrics import Metrics
from support.front_in_memory import (
    DONE,
    MESSAGES,
    SSE,
    FrontInMemory,
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
from support.http_client import HttpAnswer
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")

KEY = "sk-lrr-" + "0" * 64
UUID = "0af76519-16cd-43dd-8448-eb211c80319c"
Case = Callable[[FrontInMemory], Awaitable[None]]
CASES: dict[int, Case] = {}


def case(number: int) -> Callable[[Case], Case]:
    def add(one: Case) -> Case:
        assert number not in CASES
        CASES[number] = one
        return one

    return add


def with_key(**headers: Any) -> dict[str, Any]:
    return {"authorization": f"Bearer {KEY}", **headers}


async def ask(front: FrontInMemory, model: str = "f/m", **members: Any) -> HttpAnswer:
    return await front.ask(chat(model, headers=with_key(), **members))


async def send(front: FrontInMemory, body: bytes, path: str = "/v1/chat/completions", **headers: Any) -> HttpAnswer:
    return await front.ask(post(path, body, **with_key(**headers)))


def refused(answer: HttpAnswer, status: int, code: str, param: str | None = None) -> None:
    error = error_of(answer)
    assert (answer.status, error["code"], error["param"]) == (status, code, param)


def chat_body(**members: Any) -> bytes:
    return json.dumps({"model": "f/m", "messages": MESSAGES, **members}).encode()


def simple(number: int, body: bytes, status: int, code: str, param: str | None = None, **headers: Any) -> None:
    """A chat request that is refused, or served if the status is 200."""

    @case(number)
    async def one(front: FrontInMemory) -> None:
        front.played.on_request = hello
        answer = await send(front, body, **headers)
        if status == 200:
            assert answer.status == 200
        else:
            refused(answer, status, code, param)
            assert not front.played.exchanges


# --- paths and methods


@case(1)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(get("/healthz"))
    assert (answer.status, answer.body) == (200, b"")


@case(2)
async def _(front: FrontInMemory) -> None:
    assert (await front.ask(get("/readyz"))).status == 200
    front.ready = False
    assert (await front.ask(get("/readyz"))).status == 503


@case(3)
async def _(front: FrontInMemory) -> None:
    assert (await front.ask(get("/healthz", "HEAD"))).status == 200


@case(4)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(get("/v1/models", authorization=f"Bearer {KEY}"))
    assert [one["id"] for one in json.loads(answer.body)["data"]] == ["f/m"]
    assert (await front.ask(get("/v1/models"))).status == 401


@case(5)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(get("/v1/models/f/m", authorization=f"Bearer {KEY}"))
    assert json.loads(answer.body)["object"] == "model"
    refused(await front.ask(get("/v1/models/m", authorization=f"Bearer {KEY}")), 404, "model_not_found", "model")


@case(6)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = lambda exchange: exchange.answer(404, b"404 page not found")
    refused(await send(front, b'{"model":"f/m","prompt":"a"}', "/v1/completions"), 404, "unknown_url")


@case(7)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(get("/v1/chat/completions"))
    refused(answer, 405, "method_not_supported")
    assert answer.header("allow") == "POST"


@case(8)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    assert (await send(front, chat_body(), "/v1/chat/completions/")).status == 200
    assert front.played.exchanges[0].request.path == b"/v1/chat/completions"


@case(9)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(get("/v1/chat/completions", "OPTIONS", origin="https://a.test"))
    assert (answer.status, answer.header("access-control-allow-origin")) == (204, "https://a.test")


@case(10)
async def _(front: FrontInMemory) -> None:
    refused(await front.ask(post("/info", b"")), 404, "unknown_url")


# --- bodies

simple(11, b"", 400, "invalid_json")
simple(12, b"{bad", 400, "invalid_json")
simple(13, b"[]", 400, "invalid_json")
simple(14, chat_body() + b"xx", 400, "invalid_json")
simple(15, chat_body() + b" \n", 200, "")
simple(16, chat_body(), 200, "", content_type=None)
simple(17, chat_body(), 200, "", content_type="application/json; charset=utf-8")
simple(18, chat_body(), 200, "", content_type="Application/JSON")
simple(19, json.dumps({"messages": MESSAGES}).encode(), 400, "missing_required_parameter", "model")
simple(20, chat_body(model=3), 400, "invalid_type", "model")


@case(21)
async def _(front: FrontInMemory) -> None:
    front.worker("w2", model="m", on_request=hello)
    assert (await ask(front, "m")).status == 200


simple(22, chat_body(model="/m"), 404, "model_not_found", "model")
simple(23, chat_body(model="f/"), 404, "model_not_found", "model")


@case(24)
async def _(front: FrontInMemory) -> None:
    worker = front.worker("w2", model="a/b", key="f", on_request=hello)
    assert (await ask(front, "f/a/b")).status == 200
    request = worker.exchanges[0]
    assert (request.header("x-routing-key"), request.header("x-model")) == ("f", "a/b")
    whole = front.worker("w3", model="f/a/b", on_request=hello)
    assert (await ask(front, "f/a/b")).status == 200
    assert len(whole.exchanges) == 1


@case(25)
async def _(front: FrontInMemory) -> None:
    worker = front.worker("w2", model="m", key=UUID, on_request=hello)
    answer = await ask(front, f"{UUID.upper()}/m")
    assert json.loads(answer.body)["model"] == f"{UUID.upper()}/m"
    assert worker.exchanges[0].header("x-routing-key") == UUID


@case(26)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    body = b'{"model":"x","messages":[{"role":"user","content":"hi"}],"model":"f/m"}'
    assert (await send(front, body)).status == 200
    assert json.loads(front.played.exchanges[0].received)["model"] == "m"


simple(27, json.dumps({"Model": "f/m", "messages": MESSAGES}).encode(), 400, "missing_required_parameter", "model")

# --- keys


@case(28)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(chat("f/m"))
    refused(answer, 401, "invalid_api_key")
    assert answer.header("www-authenticate") == "Bearer"


@case(29)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    assert (await front.ask(chat("f/m", headers={"authorization": f"bearer {KEY}"}))).status == 200


@case(30)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(chat("f/m", headers={"authorization": "Bearer wrong"}))
    refused(answer, 401, "invalid_api_key")
    assert "wrong" not in error_of(answer)["message"]


@case(31)
async def _(front: FrontInMemory) -> None:
    front.worker("w2", model="secret", key="f")
    refused(await ask(front, "f/secret"), 404, "model_not_found", "model")
    same = error_of(await ask(front, "f/nothing"))["message"].replace("nothing", "secret")
    assert error_of(await ask(front, "f/secret"))["message"] == same


@case(32)
async def _(front: FrontInMemory) -> None:
    class Down:
        def authenticate(self, *_: Any) -> Any:
            return CANNOT_CHECK

    async with front_in_memory(Down()) as other:
        answer = await other.ask(chat())
        refused(answer, 503, "authentication_unavailable")
        assert answer.header("retry-after") == "1"


@case(33)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    assert (await front.ask(chat("f/m", headers=with_key(x_priority="7")))).status == 200
    assert front.played.exchanges[0].header("x-priority") is None


# --- members

simple(34, chat_body(messages=[]), 400, "invalid_value", "messages")
simple(35, chat_body(messages="x"), 400, "invalid_type", "messages")


def passes(number: int, **members: Any) -> None:
    """Members that reach the engine as they are."""

    @case(number)
    async def one(front: FrontInMemory) -> None:
        front.played.on_request = hello
        assert (await ask(front, **members)).status == 200
        received = json.loads(front.played.exchanges[0].received)
        assert {name: received[name] for name in members} == members


passes(36, max_tokens=1.0)
passes(37, max_tokens=-1)
passes(38, service_tier="default")
passes(39, top_k=3, chat_template_kwargs={"a": 1})
passes(40, messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]}])

# --- answers


@case(41)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    document = json.loads((await ask(front)).body)
    assert document["choices"][0]["message"]["content"] == "Hello"
    assert document["usage"] == {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


@case(42)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    await ask(front)
    received = json.loads(front.played.exchanges[0].received)
    assert (received["stream"], received["stream_options"]) == (True, {"include_usage": True})


@case(43)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    answer = await ask(front, stream=True)
    assert b"usage" not in answer.body
    assert json.loads(front.played.exchanges[0].received)["stream_options"] == {"include_usage": True}


@case(44)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    answer = await ask(front, stream=True, stream_options={"include_usage": True})
    *_, last, done, rest = answer.body.split(b"\n\n")
    assert (json.loads(last.removeprefix(b"data: "))["choices"], done, rest) == ([], b"data: [DONE]", b"")


@case(45)
async def _(front: FrontInMemory) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"a":', "1}")]
    events = [chunk({"role": "assistant", "tool_calls": [call]}), *(chunk({"tool_calls": [one]}) for one in more)]
    front.played.on_request = lambda exchange: stream(exchange, *events, chunk({}, "tool_calls"), DONE)
    message = json.loads((await ask(front)).body)["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["arguments"]) == (None, '{"a":1}')


@case(46)
async def _(front: FrontInMemory) -> None:
    def of(index: int, text: str, finish: str | None = None) -> bytes:
        return event({"model": "m", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})

    events = (of(1, "b"), of(0, "a"), of(1, "b"), of(0, "a", "stop"), of(1, "", "stop"), DONE)
    front.played.on_request = lambda exchange: stream(exchange, *events)
    choices = json.loads((await ask(front, n=2)).body)["choices"]
    assert [(one["index"], one["message"]["content"]) for one in choices] == [(0, "aa"), (1, "bb")]


@case(47)
async def _(front: FrontInMemory) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}, "finish_reason": "stop"}
    front.played.on_request = lambda exchange: stream(exchange, event({"model": "m", "choices": [choice]}), DONE)
    answer = json.loads((await ask(front, logprobs=True)).body)
    assert answer["choices"][0]["logprobs"] == {"content": [{"token": "a"}]}


@case(48)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = lambda exchange: stream(exchange, b": ping\n\n", chunk({}, "stop"), DONE)
    assert (await ask(front, stream=True)).body.startswith(b": ping\n\n")


FAILURE = {"error": {"message": "CUDA error", "type": "server_error", "code": 500}}


@case(49)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = lambda exchange: stream(exchange, chunk({"content": "a"}), event(FAILURE), DONE)
    answer = await ask(front)
    refused(answer, 502, "upstream_error")
    assert error_of(answer)["message"] == "CUDA error"


@case(50)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = lambda exchange: stream(exchange, chunk({"content": "a"}), event(FAILURE), DONE)
    assert (await ask(front, stream=True)).body == chunk({"content": "a"}, model="f/m") + event(FAILURE) + DONE


@case(51)
async def _(front: FrontInMemory) -> None:
    def cut(exchange: Any) -> None:
        exchange.head(200, **SSE)
        exchange.body(chunk({"content": "a"}))
        exchange.fail()

    front.played.on_request = cut
    assert b'data: {"error":{' in (await ask(front, stream=True)).body


@case(52)
async def _(front: FrontInMemory) -> None:
    """Nothing limits the time of a stream unless a setting does."""
    settings = front.context.settings
    assert (settings.head_timeout_ms, settings.idle_timeout_ms, settings.total_timeout_ms) == (0, 0, 0)


@case(53)
async def _(front: FrontInMemory) -> None:
    """The same without streaming: no timer is set at all for such a request."""
    client = await front.client()
    client.send(chat("f/m", headers=with_key()))
    exchange = await front.played.next()
    exchange.head(200, **SSE)
    (running,) = front.context.running
    assert running._timer is None  # type: ignore[attr-defined]
    exchange.body(chunk({}, "stop") + DONE)
    exchange.end()
    assert (await client.answer()).status == 200


# --- errors of the router and of engines


@case(54)
async def _(front: FrontInMemory) -> None:
    refused(await ask(front, "f/none"), 404, "model_not_found", "model")


@case(55)
async def _(front: FrontInMemory) -> None:
    front.gateway.registry.end(front.played.registration)
    answer = await ask(front)
    refused(answer, 503, "no_capacity")
    assert answer.header("retry-after") == "1"


@case(56)
async def _(front: FrontInMemory) -> None:
    body = b'{"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}'
    front.played.on_request = lambda exchange: exchange.answer(429, body, retry_after="7")
    answer = await ask(front)
    assert (answer.status, answer.header("retry-after"), answer.body) == (429, "7", body)


@case(57)
async def _(front: FrontInMemory) -> None:
    body = b'{"error":{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}}'
    front.played.on_request = lambda exchange: exchange.answer(400, body)
    answer = await ask(front)
    assert (answer.status, answer.body) == (400, body)


@case(58)
async def _(front: FrontInMemory) -> None:
    refused(await ask(front, extra="x" * 3000), 413, "request_too_large")


@case(59)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = lambda exchange: exchange.fail("dial tcp 10.1.2.3:443: connection refused")
    answer = await ask(front)
    refused(answer, 502, "upstream_error")
    assert b"10.1.2.3" not in answer.body


# --- affinity


@case(60)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    answer = await ask(front, prompt_cache_key="k")
    assert answer.header("x-multi-turn-session-id") == "k"
    assert front.played.exchanges[0].header("x-cache-affinity-key").startswith("lrr:v1:session:")


@case(61)
async def _(front: FrontInMemory) -> None:
    answer = await front.ask(chat("f/m", headers=with_key(x_multi_turn_session_id="x" * 257)))
    refused(answer, 400, "invalid_value", "x-multi-turn-session-id")


@case(62)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    headers = with_key(x_multi_turn_session_id="x" * 257)
    answer = await front.ask(chat("f/m", headers=headers, prompt_cache_key="k"))
    assert (answer.status, answer.header("x-multi-turn-session-id")) == (200, "k")


@case(63)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    own = "mt:v1:x:" + "0" * 64
    await front.ask(chat("f/m", headers=with_key(x_multi_turn_session_id=own)))
    assert front.played.exchanges[0].header("x-cache-affinity-key") != own


@case(64)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    await ask(front)
    turn = [*MESSAGES, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "more"}]
    await ask(front, messages=turn)
    assert len({exchange.header("x-cache-affinity-key") for exchange in front.played.exchanges}) == 1


# --- embeddings


def embedded(exchange: Any) -> None:
    exchange.answer(200, b'{"object":"list","data":[],"model":"m"}', content_type="application/json")


def embeds(number: int, given: bytes, tokens: int | None, **headers: Any) -> None:
    """Embeddings of the JSON `given`, as they reach the engine, with this estimate."""

    @case(number)
    async def one(front: FrontInMemory) -> None:
        front.played.on_request = embedded
        body = b'{"model":"f/m","input":%b}' % given
        assert (await send(front, body, "/v1/embeddings", **headers)).status == 200
        exchange = front.played.exchanges[0]
        assert exchange.received == body.replace(b'"f/m"', b'"m"')
        assert exchange.header("x-cache-affinity-key") is None
        if tokens is not None:
            assert exchange.header("x-input-tokens") == str(tokens)


embeds(65, b'"hello world"', 8)
embeds(66, b'["a",""]', None)
embeds(67, b"[" + b'"",' * 600 + b'"a"]', 6)
embeds(68, b"[1,2,3]", 3)
embeds(69, b'"a"', None, x_routing_method="random", x_cache_affinity_key="k")
embeds(70, b'"a","dimensions":1.50', None)

# --- responses


def responds(status: str = "completed") -> Callable[[Any], None]:
    def answer(exchange: Any) -> None:
        response = {
            "id": "r",
            "model": "m",
            "status": status,
            "error": {"message": "no"} if status == "failed" else None,
        }
        stream(exchange, event({"type": f"response.{status}", "response": response}, f"response.{status}"))

    return answer


async def respond(front: FrontInMemory, **members: Any) -> HttpAnswer:
    body = json.dumps({"model": "f/m", "input": "hello", **members}).encode()
    return await send(front, body, "/v1/responses")


@case(71)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = responds()
    await respond(front)
    assert front.played.exchanges[0].header("x-input-tokens") == "6"


@case(72)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = responds()
    assert json.loads((await respond(front)).body)["model"] == "f/m"


@case(73)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = responds()
    response = {"id": "r", "model": "f/m", "status": "completed", "error": None}
    expected = event({"type": "response.completed", "response": response}, "response.completed")
    assert (await respond(front, stream=True)).body == expected


@case(74)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = responds("failed")
    answer = await respond(front)
    assert (answer.status, json.loads(answer.body)["error"]) == (200, {"message": "no"})


@case(75)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = lambda exchange: stream(exchange, event({"type": "response.created", "response": {}}))
    refused(await respond(front), 502, "upstream_error")


@case(76)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = responds()
    assert (await respond(front, conversation="c")).header("x-multi-turn-session-id") == "c"
    assert (await respond(front, conversation={"id": "c"})).header("x-multi-turn-session-id") == "c"
    assert len({exchange.header("x-cache-affinity-key") for exchange in front.played.exchanges}) == 1


@case(77)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = responds()
    assert (await respond(front, tools=[{"type": "web_search"}])).status == 200


@case(78)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = lambda exchange: exchange.answer(404, b"not here")
    refused(await respond(front), 404, "unknown_url")


# --- limits: what the limiter says reaches the client (its numbers are in tests/unit/test_openai_limits.py)


def limited(number: int, status: int, code: str, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    @case(number)
    async def one(front: FrontInMemory) -> None:
        front.limiter.outcome = LimitRefusal(status, "tokens", code, "too many", headers=headers)
        answer = await ask(front)
        refused(answer, status, code)
        for name, value in headers:
            assert answer.header(name.decode()) == value.decode()
        assert front.usage.records[0].code == code


@case(79)
async def _(front: FrontInMemory) -> None:
    class Admitted:
        headers = ((b"x-ratelimit-remaining-tokens", b"94"),)
        finished: list[Any] = []  # noqa: RUF012 - of this case only

        def finish(self, *given: Any, **named: Any) -> None:
            self.finished.append((given, named))

    front.limiter.outcome = Admitted()
    front.played.on_request = hello
    answer = await ask(front)
    assert (answer.status, answer.header("x-ratelimit-remaining-tokens")) == (200, "94")
    assert front.limiter.asked == [("f", "m", 5, None)]
    ((usage, _seen), named) = Admitted.finished[0]
    assert (usage.input_tokens, usage.output_tokens, named) == (11, 2, {"served": True})


limited(80, 400, "rate_limit_request_too_large", ())
limited(81, 429, "rate_limit_exceeded", ((b"retry-after", b"47520"), (b"x-should-retry", b"false")))


@case(82)
async def _(front: FrontInMemory) -> None:
    """A limit that cannot be parsed is refused when the keys are loaded: tests/unit/test_openai_key_file.py."""


@case(83)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    client = await front.client()
    request = chat("f/m", headers=with_key())
    for at in range(0, len(request), 40):
        client.send(request[at : at + 40])
        await client.writer.drain()
    assert (await client.answer()).status == 200


@case(84)
async def _(front: FrontInMemory) -> None:
    front.played.on_request = hello
    for given in ("caf\xe9", "x" * 5000):
        answer = await front.ask(chat("f/m", headers=with_key(x_request_id=given)))
        assert (answer.status, answer.header("x-request-id")[:4]) == (200, "req_")


@case(85)
async def _(front: FrontInMemory) -> None:
    client = await front.client()
    client.send(chat("f/m", headers=with_key(), stream=True))
    exchange = await front.played.next()
    exchange.head(200, **SSE)
    await client.head()
    client.leave()
    await eventually(lambda: exchange.cancelled)


def test_every_case_is_here() -> None:
    assert sorted(CASES) == list(range(1, 86))


@pytest.mark.parametrize("number", sorted(CASES))
async def test_case(number: int) -> None:
    caller = GrantedCaller(key_id="alice", models=Names(["m", "a/b", "f/a/b"]))
    table = KeyTable({digest_of(KEY.encode()): caller})
    keys = KeyAuthenticator(lambda: table, Metrics().openai_key_refusals_total, hide=True, now=lambda: 0.0)
    async with front_in_memory(keys, cors_origins=("https://a.test",), max_body_bytes=3000) as front:
        front.played = front.worker("w1", model="m", key="f")
        await CASES[number](front)
