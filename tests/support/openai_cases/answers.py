"""Cases 41 to 59: answers, streams, errors of engines and of the router."""

from collections.abc import Callable
from typing import Any

from support.front_in_memory import DONE, SSE, FrontInMemory, chunk, event, stream
from support.gateway_in_memory import PlayedExchange
from support.http_client import HttpAnswer
from support.openai_cases.case import Case, Otherwise, Says, Seen, ask, both, holds, told

_FAILURE = {"error": {"message": "CUDA error", "type": "server_error", "code": 500}}
_TOO_LONG = b'{"error":{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}}'
_SLOW_DOWN = b'{"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}'
_LOGPROBS = {"content": [{"token": "a"}]}
_LOST = "errors within a stream are not lost"
_NOT_CUT = "nothing is cut after 60 s"


def _calls_a_tool(exchange: PlayedExchange) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"a":', "1}")]
    events = (chunk({"role": "assistant", "tool_calls": [call]}), *(chunk({"tool_calls": [one]}) for one in more))
    stream(exchange, *events, chunk({}, "tool_calls"), DONE)


def _called(seen: Seen) -> bool:
    (call,) = seen.document["choices"][0]["message"]["tool_calls"]
    return bool(call["function"] == {"name": "f", "arguments": '{"a":1}'})


def _two_choices(exchange: PlayedExchange) -> None:
    def of(index: int, text: str, finish: str | None = None) -> bytes:
        return event({"model": "m", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})

    stream(exchange, of(1, "b"), of(0, "a"), of(1, "b"), of(0, "a", "stop"), of(1, "", "stop"), DONE)


def _with_logprobs(exchange: PlayedExchange) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": _LOGPROBS, "finish_reason": "stop"}
    stream(exchange, event({"model": "m", "choices": [choice]}), DONE)


def _fails_in_its_stream(exchange: PlayedExchange) -> None:
    stream(exchange, chunk({"content": "a"}), event(_FAILURE), DONE)


def _is_cut(exchange: PlayedExchange) -> None:
    exchange.head(200, **SSE)
    exchange.body(chunk({"content": "a"}))
    exchange.fail()


def _answers(status: int, body: bytes, **headers: str) -> Callable[[PlayedExchange], None]:
    return lambda exchange: exchange.answer(status, body, **headers)


def _content(index: int, text: str) -> Callable[[Any], bool]:
    return lambda found: found["choices"][index]["message"]["content"] == text


def _hello(seen: Seen) -> bool:
    usage = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
    return _content(0, "Hello")(seen.document) and seen.document["usage"] == usage


def _asked_for_usage(seen: Seen) -> bool:
    return bool((seen.received["stream"], seen.received["stream_options"]) == (True, {"include_usage": True}))


def _usage_last(seen: Seen) -> bool:
    *_, last, done, rest = seen.answer.body.split(b"\n\n")
    return b'"choices":[],"usage":{' in last and (done, rest) == (b"data: [DONE]", b"")


def _usage_counted_and_not_shown(seen: Seen) -> bool:
    usage = seen.front.usage.records[0].usage
    return b"usage" not in seen.answer.body and usage is not None and usage.input_tokens == 11


async def _untimed(front: FrontInMemory, *, streamed: bool) -> list[HttpAnswer]:
    """No setting limits the time: however much of it passes, the request goes on."""
    settings = front.context.settings
    assert (settings.head_timeout_ms, settings.idle_timeout_ms, settings.total_timeout_ms) == (0, 0, 0)
    client = await front.client()
    client.send(ask(stream=streamed))
    worker = front.played
    exchange = await worker.next()
    (running,) = front.context.running
    running.tick(front.context.loop.time() + 3_600)
    exchange.head(200, **SSE)
    exchange.body(chunk({"content": "a"}))
    running.tick(front.context.loop.time() + 7_200)
    exchange.body(chunk({}, "stop") + DONE)
    exchange.end()
    return [await client.answer()]


async def _streamed(front: FrontInMemory) -> list[HttpAnswer]:
    return await _untimed(front, streamed=True)


async def _whole(front: FrontInMemory) -> list[HttpAnswer]:
    return await _untimed(front, streamed=False)


_ERROR_EVENT = chunk({"content": "a"}, model="f/m") + event(_FAILURE) + DONE

ANSWERS = (
    Case(
        number=41,
        what="an answer in one piece",
        request=ask(),
        gateway=Says(200, check=holds(_hello)),
        openai=Says(200, check=holds(_hello)),
    ),
    Case(
        number=42,
        what="what the worker gets",
        request=ask(),
        gateway=Says(200, check=holds(_asked_for_usage)),
        openai=Says(200, check=holds(_asked_for_usage)),
    ),
    Case(
        number=43,
        what="a stream",
        request=ask(stream=True),
        gateway=Otherwise(
            "usage is asked for, and not shown",
            Says(200, check=both(holds(_asked_for_usage), holds(_usage_counted_and_not_shown))),
        ),
        openai=Says(200, check=both(holds(_asked_for_usage), holds(_usage_counted_and_not_shown))),
    ),
    Case(
        number=44,
        what="a stream with usage",
        request=ask(stream=True, stream_options={"include_usage": True}),
        gateway=Says(200, check=holds(_usage_last)),
        openai=Says(200, check=holds(_usage_last)),
    ),
    Case(
        number=45,
        what="tool calls",
        request=ask(),
        worker=_calls_a_tool,
        gateway=Says(
            200,
            check=both(
                holds(_called),
                holds(lambda seen: set(seen.document["choices"][0]["message"]) == {"role", "tool_calls"}),
            ),
        ),
        openai=Says(
            200,
            check=both(holds(_called), holds(lambda seen: seen.document["choices"][0]["message"]["content"] is None)),
        ),
    ),
    Case(
        number=46,
        what="two choices",
        request=ask(n=2),
        worker=_two_choices,
        gateway=Says(200, check=holds(lambda seen: [one["index"] for one in seen.document["choices"]] == [0, 1])),
        openai=Says(
            200, check=holds(lambda seen: _content(0, "aa")(seen.document) and _content(1, "bb")(seen.document))
        ),
    ),
    Case(
        number=47,
        what="log probabilities",
        request=ask(logprobs=True),
        worker=_with_logprobs,
        gateway=Otherwise(
            "log probabilities are not lost",
            Says(200, check=holds(lambda seen: seen.document["choices"][0]["logprobs"] == _LOGPROBS)),
        ),
        openai=Says(200, check=holds(lambda seen: seen.document["choices"][0]["logprobs"] == _LOGPROBS)),
    ),
    Case(
        number=48,
        what="comments of an engine",
        request=ask(stream=True),
        worker=lambda exchange: stream(exchange, b": ping\n\n", chunk({}, "stop"), DONE),
        gateway=Otherwise(
            "comments of engines are passed on",
            Says(200, check=holds(lambda seen: seen.answer.body.startswith(b": ping\n\n"))),
        ),
        openai=Says(200, check=holds(lambda seen: seen.answer.body.startswith(b": ping\n\n"))),
    ),
    Case(
        number=49,
        what="an error within a stream that is collected",
        request=ask(),
        worker=_fails_in_its_stream,
        gateway=Otherwise(_LOST, Says(502, "CUDA error")),
        openai=Says(502, "upstream_error", check=holds(lambda seen: b'"CUDA error"' in seen.answer.body)),
    ),
    Case(
        number=50,
        what="an error within a stream",
        request=ask(stream=True),
        worker=_fails_in_its_stream,
        gateway=Otherwise(_LOST, Says(200, check=holds(lambda seen: seen.answer.body == _ERROR_EVENT))),
        openai=Says(200, check=holds(lambda seen: seen.answer.body == _ERROR_EVENT)),
    ),
    Case(
        number=51,
        what="a stream that is cut",
        request=ask(stream=True),
        worker=_is_cut,
        gateway=Otherwise(_LOST, Says(200, check=holds(lambda seen: b'data: {"error":{' in seen.answer.body))),
        openai=Says(200, check=holds(lambda seen: b'data: {"error":{' in seen.answer.body)),
    ),
    Case(
        number=52,
        what="a stream of more than a minute",
        request=_streamed,
        worker=None,
        gateway=Otherwise(_NOT_CUT, Says(200)),
        openai=Says(200),
    ),
    Case(
        number=53,
        what="an answer after more than a minute",
        request=_whole,
        worker=None,
        gateway=Otherwise(_NOT_CUT, Says(200)),
        openai=Says(200),
    ),
    Case(
        number=54,
        what="a model that nobody serves",
        request=ask(model="f/unknown"),
        gateway=Says(404, '{"error":"no eligible candidates","code":"no_eligible_candidates"}'),
        openai=Says(404, "model_not_found", "model"),
    ),
    Case(
        number=55,
        what="a model whose workers are not active",
        request=ask(model="f/idle"),
        gateway=Says(503, "Service Unavailable"),
        openai=Says(503, "no_capacity", check=told(retry_after="1")),
    ),
    Case(
        number=56,
        what="an engine that is busy",
        request=ask(),
        worker=_answers(429, _SLOW_DOWN, retry_after="7"),
        gateway=Says(429, "slow down", check=told(retry_after=None)),
        openai=Says(429, check=both(told(retry_after="7"), holds(lambda seen: seen.answer.body == _SLOW_DOWN))),
    ),
    Case(
        number=57,
        what="an engine that refuses",
        request=ask(),
        worker=_answers(400, _TOO_LONG),
        gateway=Says(400, _TOO_LONG.decode()),
        openai=Says(400, check=holds(lambda seen: seen.answer.body == _TOO_LONG)),
    ),
    Case(
        number=58,
        what="a body that is too large",
        request=ask(extra="x" * 20_000),
        gateway=Says(413, "Request Entity Too Large"),
        openai=Says(413, "request_too_large"),
    ),
    Case(
        number=59,
        what="a worker that cannot be reached",
        request=ask(),
        worker=lambda exchange: exchange.fail("dial tcp 10.1.2.3:443: connection refused"),
        gateway=Otherwise(
            "addresses are not told", Says(502, check=holds(lambda seen: b"10.1.2.3" not in seen.answer.body))
        ),
        openai=Says(502, "upstream_error", check=holds(lambda seen: b"10.1.2.3" not in seen.answer.body)),
    ),
)
