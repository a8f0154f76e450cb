"""The `openai` package against the front: what its users do, with a worker that the test plays."""

import asyncio
import gc
import json
from contextlib import asynccontextmanager

import openai
import pytest
from pydantic import BaseModel

from support.front_in_memory import DONE, SSE, chunk, event, front_in_memory, hello, stream
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")

MODEL = "team/llama"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def sdk(on_request=hello, **options):
    """A front with a worker, and the SDK's client of it."""
    async with front_in_memory() as front:
        front.played = front.worker(model="llama", key="team", on_request=on_request)
        options = {"max_retries": 0, "timeout": 20, **options}
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{front.port}/v1", api_key="sk-x", **options
        ) as client:
            yield front, client
        # The SDK leaves generators of streams that have ended to the garbage collector, which then starts tasks.
        gc.collect()
        await asyncio.get_running_loop().shutdown_asyncgens()
        await eventually(lambda: len(asyncio.all_tasks()) == 1)


def last_chunk(**members):
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [], **members})


async def test_a_completion_has_its_text_usage_and_request_id():
    async with sdk() as (_, client):
        found = await client.chat.completions.create(**ASKED)
        assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("Hello", "stop")
        assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.model) == (11, 2, MODEL)
        assert found._request_id.startswith("req_")


async def test_a_stream_gives_its_chunks_and_usage_if_asked_for():
    async with sdk() as (_, client):
        chunks = [one async for one in await client.chat.completions.create(**ASKED, stream=True)]
        assert "".join(one.choices[0].delta.content or "" for one in chunks) == "Hello"
        assert {one.model for one in chunks} == {MODEL}
        wanted = {"include_usage": True}
        chunks = [
            one async for one in await client.chat.completions.create(**ASKED, stream=True, stream_options=wanted)
        ]
        assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 13)


def add_tool_call(exchange):
    pieces = ('{"a"', ":1,", '"b":2}')
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    stream(
        exchange,
        chunk({"role": "assistant", "content": None, "tool_calls": [call]}),
        *(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in pieces),
        chunk({}, "tool_calls"),
        DONE,
    )


async def test_tools_are_called_and_their_results_sent_back():
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    async with sdk(add_tool_call) as (front, client):
        found = await client.chat.completions.create(**ASKED, tools=[tool], tool_choice="auto")
        (call,) = found.choices[0].message.tool_calls
        assert (call.id, call.function.name, call.function.arguments) == ("call_1", "add", '{"a":1,"b":2}')
        assert found.choices[0].message.content is None
        assert json.loads(front.played.exchanges[0].received)["tools"] == [tool]
        front.played.on_request = hello
        turn = [
            *ASKED["messages"],
            found.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "3"},
        ]
        await client.chat.completions.create(model=MODEL, messages=turn)
        sent = json.loads(front.played.exchanges[1].received)["messages"]
        assert sent == turn
        async with client.chat.completions.stream(**ASKED) as streamed:
            assert (await streamed.get_final_completion()).choices[0].message.content == "Hello"


class Sum(BaseModel):
    a: int
    total: int


async def test_structured_outputs_are_parsed():
    def answer(exchange):
        stream(exchange, chunk({"content": '{"a":1,'}), chunk({"content": '"total":3}'}), chunk({}, "stop"), DONE)

    async with sdk(answer) as (front, client):
        found = await client.chat.completions.parse(**ASKED, response_format=Sum)
        assert found.choices[0].message.parsed == Sum(a=1, total=3)
        schema = json.loads(front.played.exchanges[0].received)["response_format"]["json_schema"]
        assert schema["strict"] is True


async def test_extra_members_reach_the_engine():
    async with sdk() as (front, client):
        extra = {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}, "guided_json": {}}
        await client.chat.completions.create(**ASKED, extra_body=extra, service_tier="default")
        received = json.loads(front.played.exchanges[0].received)
        assert {name: received[name] for name in extra} == extra
        assert received["service_tier"] == "default"


async def test_embeddings_come_in_both_encodings():
    def answer(exchange):
        asked = json.loads(exchange.received)
        vector = "AACAPwAAAEA=" if asked.get("encoding_format") == "base64" else [1.0, 2.0]
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        body = json.dumps({"object": "list", "data": data, "model": "llama", "usage": usage}).encode()
        exchange.answer(200, body, content_type="application/json")

    async with sdk(answer) as (_, client):
        for options in ({}, {"encoding_format": "float"}):
            found = await client.embeddings.create(model=MODEL, input="hello", **options)
            assert (found.data[0].embedding, found.model) == ([1.0, 2.0], MODEL)


def respond(exchange):
    text = {"type": "output_text", "text": "Hello", "annotations": []}
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    whole = {
        "id": "r",
        "object": "response",
        "model": "llama",
        "status": "completed",
        "output": [message],
        "usage": usage,
    }
    delta = {
        "type": "response.output_text.delta",
        "item_id": "m",
        "output_index": 0,
        "content_index": 0,
        "delta": "Hello",
    }
    started = {**whole, "status": "in_progress", "output": []}
    stream(
        exchange,
        event({"type": "response.created", "sequence_number": 0, "response": started}, "response.created"),
        event({**delta, "sequence_number": 1}, "response.output_text.delta"),
        event({"type": "response.completed", "sequence_number": 2, "response": whole}, "response.completed"),
    )


async def test_responses_are_given_whole_and_as_events():
    async with sdk(respond) as (front, client):
        found = await client.responses.create(model=MODEL, input="hi")
        assert (found.output_text, found.model, found.usage.total_tokens) == ("Hello", MODEL, 5)
        events = [one async for one in await client.responses.create(model=MODEL, input="hi", stream=True)]
        assert [one.type for one in events] == ["response.created", "response.output_text.delta", "response.completed"]
        assert events[-1].response.model == MODEL
        assert json.loads(front.played.exchanges[0].received) == {"model": "llama", "input": "hi", "stream": True}


async def test_a_cut_stream_of_responses_raises():
    def cut(exchange):
        exchange.head(200, **SSE)
        exchange.body(
            event({"type": "response.created", "response": {"id": "r", "model": "llama"}}, "response.created")
        )
        exchange.fail()

    async with sdk(cut) as (_, client):
        events = aiter(await client.responses.create(model=MODEL, input="hi", stream=True))
        assert (await anext(events)).type == "response.created"
        with pytest.raises(openai.APIError, match="cut"):
            await anext(events)
        with pytest.raises(openai.InternalServerError, match="cut"):
            await client.responses.create(model=MODEL, input="hi")


async def test_a_completion_of_the_older_api_is_served_if_the_engine_has_it():
    def answer(exchange):
        choice = {"index": 0, "text": "Hello", "finish_reason": "stop", "logprobs": None}
        stream(exchange, event({"id": "c", "object": "text_completion", "model": "llama", "choices": [choice]}), DONE)

    async with sdk(answer) as (front, client):
        found = await client.completions.create(model=MODEL, prompt="say hello")
        assert (found.choices[0].text, found.model, found.object) == ("Hello", MODEL, "text_completion")
        front.played.on_request = lambda exchange: exchange.answer(405, b"Method Not Allowed")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model=MODEL, prompt="say hello")
        assert missing.value.code == "unknown_url"


async def test_models_are_listed_and_found():
    async with sdk() as (_, client):
        assert [one.id async for one in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).owned_by == "team"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("body", "error", "code", "param"),
    [
        ({"model": "none", "messages": [1]}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": MODEL}, openai.BadRequestError, "missing_required_parameter", "messages"),
        ({"model": MODEL, "messages": []}, openai.BadRequestError, "invalid_value", "messages"),
    ],
)
async def test_errors_have_type_code_param_and_request_id(body, error, code, param):
    async with sdk() as (_, client):
        with pytest.raises(error) as raised:
            await client.post("/chat/completions", cast_to=object, body=body)
        found = raised.value
        assert (found.code, found.param, found.type) == (code, param, "invalid_request_error")
        assert found.request_id.startswith("req_")


async def test_an_error_in_a_stream_is_raised_with_its_message():
    def fails(exchange):
        stream(exchange, chunk({"content": "Hel"}), event({"error": {"message": "out of memory", "code": 500}}))

    async with sdk(fails) as (_, client):
        chunks = aiter(await client.chat.completions.create(**ASKED, stream=True))
        assert (await anext(chunks)).choices[0].delta.content == "Hel"
        with pytest.raises(openai.APIError, match="out of memory"):
            await anext(chunks)


async def test_a_refusal_for_lack_of_capacity_is_tried_again_and_what_may_have_run_is_not():
    def busy_once(exchange):
        front.played.on_request = hello
        exchange.answer(503, b"busy", retry_after_ms="10")

    async with sdk(busy_once, max_retries=2) as (front, client):
        found = await client.chat.completions.create(**ASKED)
        assert (found.choices[0].message.content, len(front.played.exchanges)) == ("Hello", 2)
        front.played.on_request = lambda exchange: stream(exchange, chunk({"content": "Hel"}))
        with pytest.raises(openai.InternalServerError, match="cut"):
            await client.chat.completions.create(**ASKED)
        assert len(front.played.exchanges) == 3


async def test_a_client_that_times_out_cancels_its_request():
    async with sdk(None, timeout=0.2) as (front, client):
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(**ASKED)
        await eventually(lambda: front.played.exchanges[0].cancelled)


async def test_a_stream_that_is_left_is_cancelled_and_the_client_stays_usable():
    def begins(exchange):
        exchange.head(200, **SSE)
        exchange.body(chunk({"content": "Hel"}))

    async with sdk(begins) as (front, client):
        async with await client.chat.completions.create(**ASKED, stream=True) as streamed:
            assert (await anext(aiter(streamed))).choices[0].delta.content == "Hel"
        await eventually(lambda: front.played.exchanges[0].cancelled)
        front.played.on_request = hello
        assert (await client.chat.completions.create(**ASKED)).choices[0].message.content == "Hello"


async def test_64_streams_at_once_keep_their_chunks_apart():
    def echo(exchange):
        name = json.loads(exchange.received)["messages"][0]["content"]
        exchange.head(200, **SSE)
        loop = asyncio.get_running_loop()

        def send(count):
            if count:
                exchange.body(chunk({"content": name}))
                loop.call_soon(send, count - 1)
            else:
                exchange.body(chunk({}, "stop") + last_chunk(usage={"prompt_tokens": 1, "completion_tokens": 5}) + DONE)
                exchange.end()

        send(5)

    async def one(client, number):
        asked = {"model": MODEL, "messages": [{"role": "user", "content": f"{number},"}]}
        chunks = [one async for one in await client.chat.completions.create(**asked, stream=True)]
        return "".join(one.choices[0].delta.content or "" for one in chunks)

    async with sdk(echo) as (front, client):
        found = await asyncio.gather(*(one(client, number) for number in range(64)))
        assert found == [f"{number}," * 5 for number in range(64)]
        assert {record.usage.output_tokens for record in front.usage.records} == {5}
