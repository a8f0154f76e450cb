"""LangChain's OpenAI client against the front: chat, streams, tools and embeddings, with a worker that the test plays."""

import asyncio
import gc
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from support.front_in_memory import DONE, chunk, front_in_memory, hello, stream
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")

MODEL = "team/llama"


@asynccontextmanager
async def langchain(on_request=hello):
    """A front with a worker, and the options by which LangChain finds it."""
    async with front_in_memory() as front:
        front.played = front.worker(model="llama", key="team", on_request=on_request)
        options = {"model": MODEL, "base_url": f"http://127.0.0.1:{front.port}/v1", "api_key": "sk-x", "max_retries": 0}
        # Its own client would be kept for the next event loop.
        async with httpx.AsyncClient(timeout=20) as client:
            yield front, {**options, "http_async_client": client}
        gc.collect()  # ended streams are left to the garbage collector, which then starts tasks
        await asyncio.get_running_loop().shutdown_asyncgens()
        await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_chat_model_answers_with_usage():
    async with langchain() as (_, options):
        found = await ChatOpenAI(**options).ainvoke([HumanMessage("hi")])
        assert found.content == "Hello"
        assert (found.usage_metadata["input_tokens"], found.usage_metadata["output_tokens"]) == (11, 2)
        assert found.response_metadata["model_name"] == MODEL


async def test_a_chat_model_streams_with_usage_if_asked_for():
    async with langchain() as (_, options):
        pieces = [one async for one in ChatOpenAI(**options, stream_usage=True).astream("hi")]
        assert "".join(one.content for one in pieces) == "Hello"
        usages = [one.usage_metadata for one in pieces if one.usage_metadata]
        assert [one["total_tokens"] for one in usages] == [13]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def call_add_first(exchange):
    """Ask for the tool; with its result in the conversation, say it."""
    if any(one["role"] == "tool" for one in json.loads(exchange.received)["messages"]):
        stream(exchange, chunk({"role": "assistant", "content": "It is 3."}), chunk({}, "stop"), DONE)
        return
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    stream(
        exchange,
        chunk({"role": "assistant", "content": None, "tool_calls": [call]}),
        *(
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
            for piece in ('{"a"', ":1,", '"b":2}')
        ),
        chunk({}, "tool_calls"),
        DONE,
    )


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_is_called_and_its_result_used(streamed):
    async with langchain(call_add_first) as (front, options):
        model = ChatOpenAI(**options, streaming=streamed).bind_tools([add])
        asked = [HumanMessage("1 + 2?")]
        wish = await model.ainvoke(asked)
        (call,) = wish.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 2})
        result = await add.ainvoke(call)
        assert isinstance(result, ToolMessage)
        assert (await model.ainvoke([*asked, wish, result])).content == "It is 3."
        sent = json.loads(front.played.exchanges[1].received)["messages"]
        assert [one["role"] for one in sent] == ["user", "assistant", "tool"]


async def test_embeddings_are_vectors():
    def embed(exchange):
        texts = json.loads(exchange.received)["input"]
        data = [{"object": "embedding", "index": i, "embedding": [i + 0.5, -1.0]} for i, _ in enumerate(texts)]
        answer = {"object": "list", "model": "llama", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}
        exchange.head(200, content_type="application/json")
        exchange.body(json.dumps(answer).encode())
        exchange.end()

    async with langchain(embed) as (_, options):
        client = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
        assert await client.aembed_documents(["a", "b"]) == [[0.5, -1.0], [1.5, -1.0]]
