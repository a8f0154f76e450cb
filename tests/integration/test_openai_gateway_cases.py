"""The black-box cases of the gateway's specification (its section 11) as the mode `gateway` answers them, one for each number.

`OTHERWISE` has those that are answered otherwise on purpose, with the reason; docs/openai.md tells them to users.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from router.openai.keys.authenticator import KeyAuthenticator
from router.openai.keys.caller import GrantedCaller, Names
from router.openai.keys.key_format import digest_of
from router.openai.keys.key_table import KeyTable
from router.openai.keys.refusals import CANNOT_CHECK, CHECK_TOOK_TOO_LONG
from router.openai.ports import LimitRefusal
from router.telemetry.metrics import Metrics
from support.front_in_memory import (
    DONE,
    MESSAGES,
    SSE,
    FrontInMemory,
    chunk,
    event,
    front_in_memory,
    get,
    hello,
    post,
    stream,
)
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")

KEY = "sk-lrr-" + "0" * 64
UUID = "0af76519-16cd-43dd-8448-eb211c80319c"
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
BODY: dict[str, Any] = {"model": "f/m", "messages": MESSAGES}
TIMEOUT = "code=400, message=Unmarshal type error: expected="


class Case(NamedTuple):
    """One request and what is answered."""

    number: int
    request: bytes
    status: int
    message: str | None = None
    """The message of an error; None: it is no error, or has no body. With `...` at its end it is the beginning."""
    worker: Callable[[Any], None] | None = hello
    check: Callable[[Any, Any], None] | None = None
    """Called with the answer and the exchange, if there is one."""


def asked(path: str = CHAT, body: Any = None, **headers: Any) -> bytes:
    return post(path, body, **{"authorization": f"Bearer {KEY}", **headers})


def ask(path: str = CHAT, **members: Any) -> bytes:
    document = {"model": "f/m", **members}
    if path == CHAT:
        document.setdefault("messages", MESSAGES)
    return asked(path, document)


def raw(body: bytes, path: str = CHAT, **headers: Any) -> bytes:
    return asked(path, body, **headers)


def has(**headers: str) -> Callable[[Any, Any], None]:
    """The worker got these headers."""

    def check(_answer: Any, exchange: Any) -> None:
        for name, value in headers.items():
            assert exchange.header(name.replace("_", "-")) == value, name

    return check


def tells(**headers: str | None) -> Callable[[Any, Any], None]:
    """The client got these headers."""

    def check(answer: Any, _exchange: Any) -> None:
        for name, value in headers.items():
            assert answer.header(name.replace("_", "-")) == value, name

    return check


def document(check: Callable[[Any], bool]) -> Callable[[Any, Any], None]:
    def checked(answer: Any, _exchange: Any) -> None:
        assert check(json.loads(answer.body)), answer.body

    return checked


def embedded(exchange: Any) -> None:
    exchange.answer(200, b'{"object":"list","data":[],"model":"m"}', content_type="application/json")


def respond(exchange: Any, status: str = "completed") -> None:
    response = {"id": "r", "model": "m", "status": status, "error": {"message": "no"} if status == "failed" else None}
    stream(exchange, event({"type": f"response.{status}", "response": response}, f"response.{status}"))


def calls_a_tool(exchange: Any) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"a":', "1}")]
    events = (chunk({"role": "assistant", "tool_calls": [call]}), *(chunk({"tool_calls": [one]}) for one in more))
    stream(exchange, *events, chunk({}, "tool_calls"), DONE)


def two_choices(exchange: Any) -> None:
    def of(index: int, text: str, finish: str | None = None) -> bytes:
        return event({"model": "m", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})

    stream(exchange, of(1, "b"), of(0, "a"), of(1, "b", "stop"), of(0, "a", "stop"), DONE)


def fails(status: int, body: bytes) -> Callable[[Any], None]:
    return lambda exchange: exchange.answer(status, body, retry_after="7")


def upstream_asks_for_a_stream(_answer: Any, exchange: Any) -> None:
    received = json.loads(exchange.received)
    assert (received["model"], received["stream"], received["stream_options"]) == ("m", True, {"include_usage": True})


NOT_FOUND, PREFIX = "Not Found", "model prefix is required"
UNSUPPORTED = "code=415, message=Unsupported Media Type"
SESSION = "mt:v1:session:8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"
PAYLOAD = "mt:v1:payload:b03d228fdf33e7c81a9a7ea3eadadcf2cdcb98823fe93c669b8f0db42e0fa8a0"
OWN = "mt:v1:x:" + "0" * 64
NO_CANDIDATES = '{"error":"no eligible candidates","code":"no_eligible_candidates"}'

CASES = [
    Case(1, get("/healthz"), 200),
    Case(2, get("/readyz"), 200),
    Case(3, get("/healthz", "HEAD"), 404),
    Case(4, get("/v1/models", authorization=f"Bearer {KEY}"), 404, NOT_FOUND),
    Case(5, get("/v1/models/m", authorization=f"Bearer {KEY}"), 404, NOT_FOUND),
    Case(6, ask("/v1/completions"), 404, NOT_FOUND),
    Case(7, get(CHAT), 404, NOT_FOUND),
    Case(8, ask("/v1/chat/completions/"), 404, NOT_FOUND),
    Case(9, get(CHAT, "OPTIONS", origin="https://a.test"), 404, NOT_FOUND),
    Case(10, post("/info", b""), 405, check=tells(allow="GET")),
    Case(11, raw(b""), 400, PREFIX),
    Case(
        12,
        raw(b"{bad"),
        400,
        "code=400, message=Syntax error: offset=2, error=invalid character 'b' looking for beginning of object key "
        "string, internal=invalid character 'b' looking for beginning of object key string",
    ),
    Case(13, raw(b"[]"), 400, f"{TIMEOUT}..."),
    Case(14, raw(json.dumps(BODY).encode() + b"xx"), 400, PREFIX),
    Case(15, raw(json.dumps(BODY).encode() + b" \n"), 200),
    Case(16, asked(body=BODY, content_type=None), 400, UNSUPPORTED),
    Case(17, asked(body=BODY, content_type="application/json; charset=utf-8"), 200),
    Case(18, asked(body=BODY, content_type="Application/JSON"), 400, UNSUPPORTED),
    Case(19, asked(body={"messages": MESSAGES}), 400, PREFIX),
    Case(20, ask(model=3), 400, f"{TIMEOUT}string, got=number 3, field=model..."),
    Case(21, ask(model="m"), 400, PREFIX),
    Case(22, ask(model="/m"), 400, PREFIX),
    Case(23, ask(model="f/"), 400, "model suffix is required after routing key"),
    Case(24, ask(model="f/a/b"), 200, check=has(x_routing_key="f", x_model="a/b")),
    Case(25, ask(model=f"{UUID.upper()}/m"), 200, check=has(x_routing_key=UUID)),
    Case(26, raw(b'{"model":"x","messages":[{"role":"user","content":"hi"}],"model":"f/m"}'), 200),
    Case(27, asked(body={"Model": "f/m", "messages": MESSAGES}), 400, PREFIX),
    Case(28, post(body=BODY), 401, "bearer authorization is required"),
    Case(29, asked(body=BODY, authorization=f"bearer {KEY}"), 401, "bearer authorization is required"),
    Case(30, asked(body=BODY, authorization="Bearer wrong"), 401, "authentication failed"),
    Case(31, ask(model="f/secret"), 404, "not found"),
    Case(33, asked(body=BODY, x_priority=""), 400, "x-priority is a reserved header"),
    Case(34, ask(messages=[]), 400, "messages is required"),
    Case(35, ask(messages="x"), 400, f"{TIMEOUT}..."),
    Case(36, ask(max_tokens=1.0), 400, f"{TIMEOUT}uint32, got=number 1.0, field=max_tokens..."),
    Case(37, ask(max_tokens=-1), 400, f"{TIMEOUT}uint32, got=number -1, field=max_tokens..."),
    Case(38, ask(service_tier="default"), 400, 'servicetiers: invalid tier value "default"'),
    Case(
        40,
        ask(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]),
        400,
        "`content`: unknown content type input_audio. Supported content types are: [text image_url document]",
    ),
    Case(41, ask(), 200, check=document(lambda found: found["choices"][0]["message"]["content"] == "Hello")),
    Case(42, ask(), 200, check=upstream_asks_for_a_stream),
    Case(44, ask(stream=True, stream_options={"include_usage": True}), 200),
    Case(
        45,
        ask(),
        200,
        worker=calls_a_tool,
        check=document(lambda found: set(found["choices"][0]["message"]) == {"role", "tool_calls"}),
    ),
    Case(
        46,
        ask(n=2),
        200,
        worker=two_choices,
        check=document(lambda found: [one["index"] for one in found["choices"]] == [0, 1]),
    ),
    Case(54, ask(model="f/unknown"), 404, NO_CANDIDATES),
    Case(55, ask(model="f/idle"), 503, "Service Unavailable"),
    Case(
        56,
        ask(),
        429,
        "slow down",
        worker=fails(429, b'{"error":{"message":"slow down","code":"x"}}'),
        check=tells(retry_after=None),
    ),
    Case(
        57,
        ask(),
        400,
        '{"error":{"message":"a","code":400}}',
        worker=fails(400, b'{"error":{"message":"a","code":400}}'),
    ),
    Case(58, ask(extra="x" * 20_000), 413, "Request Entity Too Large"),
    Case(60, ask(prompt_cache_key="k"), 200, check=has(x_cache_affinity_key=SESSION)),
    Case(
        61,
        asked(body=BODY, x_multi_turn_session_id="x" * 257),
        400,
        "x-multi-turn-session-id is invalid: must be at most 256 bytes",
    ),
    Case(
        62,
        asked(body={**BODY, "prompt_cache_key": "k"}, x_multi_turn_session_id="x" * 257),
        400,
        "x-multi-turn-session-id is invalid: must be at most 256 bytes",
    ),
    Case(63, asked(body=BODY, x_multi_turn_session_id=OWN), 200, check=has(x_cache_affinity_key=OWN)),
    Case(64, ask(), 200, check=has(x_cache_affinity_key=PAYLOAD)),
    Case(65, ask(EMBEDDINGS, input="hello world"), 200, worker=embedded, check=has(x_input_tokens="8")),
    Case(66, ask(EMBEDDINGS, input=["a", ""]), 400, "'input.1' must not be empty"),
    Case(67, ask(EMBEDDINGS, input=["a"] * 2049), 400, "'input' array is too large, must be less than 2048 elements"),
    Case(
        68,
        ask(EMBEDDINGS, input=[1, 2]),
        400,
        "code=400, message=`input`: Must be either a string or an array of string, internal=`input`: Must be either a "
        "string or an array of string",
    ),
    Case(
        69,
        asked(EMBEDDINGS, {"model": "f/m", "input": "a"}, x_cache_affinity_key="mine"),
        200,
        worker=embedded,
        check=has(x_cache_affinity_key="mine"),
    ),
    Case(
        70,
        raw(b'{"model":"f/m","input":"a","dimensions":1.50}', EMBEDDINGS),
        200,
        worker=embedded,
        check=lambda _, exchange: (
            None if b'"dimensions":1.50' in exchange.received else pytest.fail(str(exchange.received))
        ),
    ),
    Case(
        71,
        ask(RESPONSES, input="hello"),
        200,
        worker=respond,
        check=has(**{"x-input-tokens": "12", "x-token-estimate": "13"}),
    ),
    Case(72, ask(RESPONSES, input="a"), 200, worker=respond, check=document(lambda found: found["model"] == "m")),
    Case(73, ask(RESPONSES, input="a", stream=True), 200, worker=respond),
    Case(
        74,
        ask(RESPONSES, input="a"),
        200,
        worker=lambda exchange: respond(exchange, "failed"),
        check=document(lambda found: found["error"] == {"message": "no"}),
    ),
    Case(
        75,
        ask(RESPONSES, input="a"),
        500,
        "Internal Server Error",
        worker=lambda exchange: stream(exchange, event({"type": "response.created", "response": {}})),
    ),
    Case(76, ask(RESPONSES, input="a", conversation="c"), 400, f"{TIMEOUT}..."),
    Case(77, ask(RESPONSES, input="a", tools=[{"type": "web_search"}]), 400, "`tools`: ..."),
]

OTHERWISE = {
    32: "test_a_backend_that_cannot_be_asked_is_told_as_by_the_gateway",
    39: "fields are not lost",
    43: "usage is asked for, and not shown: test_usage_is_counted_and_not_shown",
    47: "log probabilities are not lost",
    48: "comments of engines are passed on",
    49: "errors within a stream are not lost",
    50: "errors within a stream are not lost",
    51: "errors within a stream are not lost",
    52: "nothing is cut after 60 s",
    53: "nothing is cut after 60 s",
    59: "addresses are not told",
    78: "engines say which endpoints they have",
    79: "test_limits_have_the_gateways_text",
    80: "test_limits_have_the_gateways_text",
    81: "test_limits_have_the_gateways_text",
    82: "limits that cannot be parsed are refused when keys are loaded",
    83: "addresses are not told, and there is no such limit",
    84: "a request id that is no header value is replaced",
    85: "test_a_client_that_closes_cancels_its_request",
}


def callers() -> KeyAuthenticator:
    models = Names(["m", "a/b", "unknown", "idle"])
    table = KeyTable({digest_of(KEY.encode()): GrantedCaller(key_id="alice", models=models)})
    return KeyAuthenticator(lambda: table, Metrics().openai_key_refusals_total, hide=True, now=lambda: 0.0)


def message_of(answer: Any) -> str:
    found = json.loads(answer.body)
    assert set(found) == {"message"}
    assert answer.header("content-type") == "application/json"
    assert answer.body.endswith(b"}\n")
    text: str = found["message"]
    return text


def play(front: FrontInMemory, worker: Callable[[Any], None] | None) -> list[Any]:
    """Workers for the models of the cases; returns their exchanges."""
    targets = (("m", "f"), ("a/b", "f"), ("m", UUID))
    workers = [
        front.worker(f"w{at}", model=model, key=key, on_request=worker) for at, (model, key) in enumerate(targets)
    ]
    front.worker("w9", model="idle", key="f", active=False)
    return [one.exchanges for one in workers]


def test_every_case_is_here_or_has_a_reason() -> None:
    assert sorted([*(case.number for case in CASES), *OTHERWISE]) == list(range(1, 86))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
async def test_case(case: Case) -> None:
    async with front_in_memory(callers(), mode="gateway", max_body_bytes=18_000) as front:
        exchanges = play(front, case.worker)
        client = await front.client()
        client.send(case.request)
        answer = await client.answer(head_only=case.request.startswith(b"HEAD"))
        assert answer.status == case.status, answer.body
        assert answer.header("x-request-id")
        if case.message is not None:
            found = message_of(answer)
            if case.message.endswith("..."):
                assert found.startswith(case.message.removesuffix("...")), found
            else:
                assert found == case.message
        if case.check is not None:
            (exchange,) = [one for found in exchanges for one in found] or [None]
            case.check(answer, exchange)


async def test_a_backend_that_cannot_be_asked_is_told_as_by_the_gateway() -> None:
    class Down:
        def __init__(self, refusal: Any) -> None:
            self.refusal = refusal

        def authenticate(self, *_: Any) -> Any:
            return self.refusal

    for refusal, status, text in (
        (CANNOT_CHECK, 503, "authentication service unavailable"),
        (CHECK_TOOK_TOO_LONG, 504, "authentication timed out"),
    ):
        async with front_in_memory(Down(refusal), mode="gateway") as front:
            answer = await front.ask(ask())
            assert (answer.status, message_of(answer)) == (status, text)


async def test_usage_is_counted_and_not_shown() -> None:
    async with front_in_memory(callers(), mode="gateway") as front:
        play(front, hello)
        answer = await front.ask(ask(stream=True))
        assert b"usage" not in answer.body
        assert front.usage.records[0].usage.input_tokens == 11


async def test_limits_have_the_gateways_text() -> None:
    for status, code in ((429, "rate_limit_exceeded"), (400, "rate_limit_request_too_large")):
        async with front_in_memory(callers(), mode="gateway") as front:
            play(front, hello)
            front.limiter.outcome = LimitRefusal(status, "tokens", code, "x", headers=((b"retry-after", b"79"),))
            answer = await front.ask(ask(max_tokens=200))
            assert (answer.status, message_of(answer)) == (429, "rate limit exceeded")
            assert answer.header("retry-after") == "79"
            assert front.limiter.asked == [("f", "m", 5, 200)]


async def test_errors_of_other_routes_pass_as_they_are() -> None:
    async with front_in_memory(callers(), mode="gateway") as front:
        play(front, fails(418, b"short and stout"))
        answer = await front.ask(ask(EMBEDDINGS, input="a"))
        assert (answer.status, answer.body, answer.header("retry-after")) == (418, b"short and stout", "7")
        answer = await front.ask(ask(EMBEDDINGS, model="f/unknown", input="a"))
        assert (answer.status, answer.body.decode()) == (404, NO_CANDIDATES)
        assert answer.header("x-stargate-error-code") == "no_eligible_candidates"


async def test_a_client_that_closes_cancels_its_request() -> None:
    async with front_in_memory(callers(), mode="gateway") as front:
        (exchanges, *_) = play(front, None)
        client = await front.client()
        client.send(ask(stream=True))
        await eventually(lambda: bool(exchanges))
        exchanges[0].head(200, **SSE)
        await client.head()
        client.leave()
        await eventually(lambda: exchanges[0].cancelled)


async def test_the_version_is_told() -> None:
    async with front_in_memory(callers(), mode="gateway") as front:
        answer = await front.ask(get("/info"))
        assert json.loads(answer.body) == {"service": "llm-request-router", "version": "1.2.3", "commit": "abc"}
