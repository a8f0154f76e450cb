"""Cases 60 to 85: affinity, embeddings, responses, limits, and clients that are slow or go."""

import json
from typing import Any

import pytest

from router.openai.limits.rule import RuleError, parse_rules
from router.openai.ports import Admission, LimitRefusal
from support.front_in_memory import MESSAGES, SSE, FrontInMemory, event, stream
from support.gateway_in_memory import PlayedExchange
from support.http_client import HttpAnswer
from support.openai_cases.case import (
    BODY,
    EMBEDDINGS,
    RESPONSES,
    Case,
    Check,
    Otherwise,
    Says,
    Seen,
    ask,
    asked,
    both,
    got,
    holds,
    told,
)
from support.waiting import eventually

_SESSION = "mt:v1:session:8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"
_PAYLOAD = "mt:v1:payload:b03d228fdf33e7c81a9a7ea3eadadcf2cdcb98823fe93c669b8f0db42e0fa8a0"
_OWN = "mt:v1:x:" + "0" * 64
_LONG = "x" * 257
_TOO_LONG = "x-multi-turn-session-id is invalid: must be at most 256 bytes"
_TEXTS = "`input`: Must be either a string or an array of string"
_TURN = [*MESSAGES, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "more"}]
_SLOW = 40
"""Bytes of a request that come at a time."""


def _affinities(seen: Seen) -> list[str | None]:
    return [exchange.header("x-cache-affinity-key") for exchange in seen.exchanges]


def _embedded(exchange: PlayedExchange) -> None:
    exchange.answer(200, b'{"object":"list","data":[],"model":"m"}', content_type="application/json")


def _embeds(given: bytes, tokens: int) -> Check:
    """The worker got this input as it was sent, with this estimate and no affinity key."""
    return both(
        holds(lambda seen: seen.exchange.received == _embedding(given).replace(b'"f/m"', b'"m"')),
        got(x_input_tokens=str(tokens), x_cache_affinity_key=None),
    )


def _embedding(given: bytes) -> bytes:
    return b'{"model":"f/m","input":%b}' % given


def _respond(exchange: PlayedExchange, status: str = "completed") -> None:
    stream(exchange, _response("m", status))


def _response(model: str, status: str = "completed") -> bytes:
    error = {"message": "no"} if status == "failed" else None
    response = {"id": "r", "model": model, "status": status, "error": error}
    return event({"type": f"response.{status}", "response": response}, f"response.{status}")


class _Admitted(Admission):
    def __init__(self) -> None:
        super().__init__(((b"x-ratelimit-remaining-tokens", b"94"),))
        self.finished: list[Any] = []

    def finish(self, *given: Any, **named: Any) -> None:
        self.finished.append((given, named))


def _admits(front: FrontInMemory) -> None:
    front.limiter.outcome = _Admitted()


def _corrected(seen: Seen) -> None:
    """The limits were asked with the estimate, and told what the engine reported."""
    assert seen.front.limiter.asked == [("f", "m", 5, 200)]
    ((usage, _), named) = seen.front.limiter.outcome.finished[0]
    assert (usage.input_tokens, usage.output_tokens, named) == (11, 2, {"served": True})


def _can_never_pass(front: FrontInMemory) -> None:
    headers = ((b"retry-after", b"10"),)
    front.limiter.outcome = LimitRefusal(400, "tokens", "rate_limit_request_too_large", "too many", headers=headers)


def _used_up(front: FrontInMemory) -> None:
    headers = ((b"retry-after", b"47520"), (b"x-should-retry", b"false"))
    front.limiter.outcome = LimitRefusal(429, "tokens", "rate_limit_exceeded", "too many", headers=headers)


async def _no_rule(front: FrontInMemory) -> list[HttpAnswer]:
    with pytest.raises(RuleError):
        parse_rules("100-m")
    return [await front.ask(ask())]


async def _slowly(front: FrontInMemory) -> list[HttpAnswer]:
    client = await front.client()
    request = ask()
    for at in range(0, len(request), _SLOW):
        client.send(request[at : at + _SLOW])
        await client.writer.drain()
    return [await client.answer()]


async def _leaves(front: FrontInMemory) -> list[HttpAnswer]:
    client = await front.client()
    client.send(ask(stream=True))
    exchange = await front.played.next()
    exchange.head(200, **SSE)
    await client.head()
    client.leave()
    await eventually(lambda: exchange.cancelled)
    await eventually(lambda: bool(front.usage.records))
    return []


def _ids_replaced(seen: Seen) -> bool:
    return all((answer.header("x-request-id") or "").startswith("req_") for answer in seen.answers)


ROUTING = (
    Case(
        number=60,
        what="a session in the body",
        request=ask(prompt_cache_key="k"),
        gateway=Says(200, check=both(got(x_cache_affinity_key=_SESSION), told(x_multi_turn_session_id="k"))),
        openai=Says(
            200,
            check=both(
                told(x_multi_turn_session_id="k"),
                holds(lambda seen: str(_affinities(seen)[0]).startswith("lrr:v1:session:")),
            ),
        ),
    ),
    Case(
        number=61,
        what="a session that is too long",
        request=asked(body=BODY, x_multi_turn_session_id=_LONG),
        gateway=Says(400, _TOO_LONG),
        openai=Says(400, "invalid_value", "x-multi-turn-session-id"),
    ),
    Case(
        number=62,
        what="the same with a good one in the body",
        request=asked(body={**BODY, "prompt_cache_key": "k"}, x_multi_turn_session_id=_LONG),
        gateway=Says(400, _TOO_LONG),
        openai=Says(200, check=told(x_multi_turn_session_id="k")),
    ),
    Case(
        number=63,
        what="a session in the form of the gateway's keys",
        request=asked(body=BODY, x_multi_turn_session_id=_OWN),
        gateway=Says(200, check=got(x_cache_affinity_key=_OWN)),
        openai=Says(200, check=holds(lambda seen: str(_affinities(seen)[0]).startswith("lrr:v1:session:"))),
    ),
    Case(
        number=64,
        what="two turns without a session",
        request=(ask(), ask(messages=_TURN)),
        gateway=Says(
            200,
            check=holds(lambda seen: _affinities(seen)[0] == _PAYLOAD and len(set(_affinities(seen))) == 2),
        ),
        openai=Says(200, check=holds(lambda seen: len(_affinities(seen)) == 2 and len(set(_affinities(seen))) == 1)),
    ),
    Case(
        number=65,
        what="embeddings of a text",
        request=asked(EMBEDDINGS, _embedding(b'"hello world"')),
        worker=_embedded,
        gateway=Says(200, check=_embeds(b'"hello world"', 8)),
        openai=Says(200, check=_embeds(b'"hello world"', 8)),
    ),
    Case(
        number=66,
        what="embeddings of an empty text",
        request=asked(EMBEDDINGS, _embedding(b'["a",""]')),
        worker=_embedded,
        gateway=Says(400, "'input.1' must not be empty"),
        openai=Says(200, check=_embeds(b'["a",""]', 6)),
    ),
    Case(
        number=67,
        what="embeddings of many texts",
        request=asked(EMBEDDINGS, _embedding(json.dumps(["a"] * 2049).encode())),
        worker=_embedded,
        gateway=Says(400, "'input' array is too large, must be less than 2048 elements"),
        openai=Says(200, check=_embeds(json.dumps(["a"] * 2049).encode(), 2049 * 6)),
    ),
    Case(
        number=68,
        what="embeddings of token ids",
        request=asked(EMBEDDINGS, _embedding(b"[1,2,3]")),
        worker=_embedded,
        gateway=Says(400, f"code=400, message={_TEXTS}, internal={_TEXTS}"),
        openai=Says(200, check=_embeds(b"[1,2,3]", 3)),
    ),
    Case(
        number=69,
        what="routing headers of a client",
        request=asked(EMBEDDINGS, _embedding(b'"a"'), x_routing_method="random", x_cache_affinity_key="mine"),
        worker=_embedded,
        gateway=Says(200, check=got(x_cache_affinity_key="mine")),
        openai=Says(200, check=got(x_cache_affinity_key=None, x_routing_method=None)),
    ),
    Case(
        number=70,
        what="a number with zeros at its end",
        request=asked(EMBEDDINGS, _embedding(b'"a","dimensions":1.50')),
        worker=_embedded,
        gateway=Says(200, check=holds(lambda seen: b'"dimensions":1.50' in seen.exchange.received)),
        openai=Says(200, check=_embeds(b'"a","dimensions":1.50', 6)),
    ),
    Case(
        number=71,
        what="the estimate of a response",
        request=ask(RESPONSES, input="hello"),
        worker=_respond,
        gateway=Says(200, check=got(**{"x-input-tokens": "12", "x-token-estimate": "13"})),
        openai=Says(200, check=got(**{"x-input-tokens": "6", "x-token-estimate": "6"})),
    ),
    Case(
        number=72,
        what="a response in one piece",
        request=ask(RESPONSES, input="a"),
        worker=_respond,
        gateway=Says(200, check=holds(lambda seen: seen.document["model"] == "m")),
        openai=Says(200, check=holds(lambda seen: seen.document["model"] == "f/m")),
    ),
    Case(
        number=73,
        what="a response as a stream",
        request=ask(RESPONSES, input="a", stream=True),
        worker=_respond,
        gateway=Says(200, check=holds(lambda seen: seen.answer.body == _response("m"))),
        openai=Says(200, check=holds(lambda seen: seen.answer.body == _response("f/m"))),
    ),
    Case(
        number=74,
        what="a response that failed",
        request=ask(RESPONSES, input="a"),
        worker=lambda exchange: _respond(exchange, "failed"),
        gateway=Says(200, check=holds(lambda seen: seen.document["error"] == {"message": "no"})),
        openai=Says(200, check=holds(lambda seen: seen.document["error"] == {"message": "no"})),
    ),
    Case(
        number=75,
        what="a response that is cut",
        request=ask(RESPONSES, input="a"),
        worker=lambda exchange: stream(exchange, event({"type": "response.created", "response": {}})),
        gateway=Says(500, "Internal Server Error"),
        openai=Says(502, "upstream_error"),
    ),
    Case(
        number=76,
        what="a conversation",
        request=(
            ask(RESPONSES, input="a", conversation={"id": "c"}),
            ask(RESPONSES, input="a", conversation="c"),
        ),
        worker=_respond,
        gateway=Says(400, "code=400, message=Unmarshal type error: expected=..."),
        openai=Says(
            200,
            check=both(
                told(x_multi_turn_session_id="c"),
                holds(lambda seen: len(_affinities(seen)) == 2 and len(set(_affinities(seen))) == 1),
            ),
        ),
    ),
    Case(
        number=77,
        what="a tool of OpenAI",
        request=ask(RESPONSES, input="a", tools=[{"type": "web_search"}]),
        worker=_respond,
        gateway=Says(400, "`tools`: ..."),
        openai=Says(200, check=holds(lambda seen: seen.received["tools"] == [{"type": "web_search"}])),
    ),
    Case(
        number=78,
        what="a response of an engine that has none",
        request=ask(RESPONSES, input="a"),
        worker=lambda exchange: exchange.answer(404, b"not here"),
        gateway=Otherwise(
            "engines say which endpoints they have",
            Says(404, check=holds(lambda seen: seen.answer.body == b"not here")),
        ),
        openai=Says(404, "unknown_url"),
    ),
    Case(
        number=79,
        what="a limit that is not reached",
        request=ask(max_tokens=200),
        prepare=_admits,
        gateway=Says(200, check=both(told(x_ratelimit_remaining_tokens="94"), _corrected)),
        openai=Says(200, check=both(told(x_ratelimit_remaining_tokens="94"), _corrected)),
    ),
    Case(
        number=80,
        what="a request that can never pass a limit",
        request=ask(max_tokens=200),
        prepare=_can_never_pass,
        gateway=Says(429, "rate limit exceeded", check=told(retry_after="10")),
        openai=Says(400, "rate_limit_request_too_large"),
    ),
    Case(
        number=81,
        what="a limit that is used up",
        request=ask(max_tokens=200),
        prepare=_used_up,
        gateway=Says(429, "rate limit exceeded", check=told(retry_after="47520")),
        openai=Says(429, "rate_limit_exceeded", check=told(retry_after="47520", x_should_retry="false")),
    ),
    Case(
        number=82,
        what="a limit that cannot be parsed",
        request=_no_rule,
        gateway=Otherwise("limits that cannot be parsed are refused when keys are loaded", Says(200)),
        openai=Says(200),
    ),
    Case(
        number=83,
        what="a body that comes slowly",
        request=_slowly,
        gateway=Otherwise("addresses are not told, and there is no such limit", Says(200)),
        openai=Says(200),
    ),
    Case(
        number=84,
        what="a request id that is no header value",
        request=(asked(body=BODY, x_request_id="caf\xe9"), asked(body=BODY, x_request_id="x" * 5000)),
        gateway=Otherwise("a request id that is no header value is replaced", Says(200, check=holds(_ids_replaced))),
        openai=Says(200, check=holds(_ids_replaced)),
    ),
    Case(
        number=85,
        what="a client that goes",
        request=_leaves,
        worker=None,
        gateway=Says(200),
        openai=Says(200),
    ),
)
