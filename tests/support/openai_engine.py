"""A small OpenAI-style engine as a process: `python openai_engine.py PORT MODEL`. Streams `x-tokens` tokens, `x-delay-ms` apart.

`PUT /broken` with some of `["health", "chat"]` makes exactly these answer 500.
"""

import asyncio
import json
import sys

from aiohttp import web

model = sys.argv[2]
broken: set[str] = set()


async def set_broken(request: web.Request) -> web.Response:
    broken.clear()
    broken.update(await request.json())
    return web.Response()


async def health(_: web.Request) -> web.Response:
    return web.Response(status=500 if "health" in broken else 200)


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})


async def chat(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if "chat" in broken:
        return web.Response(status=500)
    if not asked.get("stream"):
        message = {"index": 0, "message": {"role": "assistant", "content": "2"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return web.json_response({"id": "c", "object": "chat.completion", "choices": [message], "usage": usage})
    tokens = int(request.headers.get("x-tokens", "5"))
    delay_s = int(request.headers.get("x-delay-ms", "1")) / 1000
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for i in range(tokens):
        if i:
            await asyncio.sleep(delay_s)
        delta: dict[str, object] = {"id": "c", "object": "chat.completion.chunk", "model": model}
        delta["choices"] = [{"index": 0, "delta": {"content": f"t{i} "}, "finish_reason": None}]
        await response.write(b"data: " + json.dumps(delta).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


app = web.Application()
app.add_routes(
    [
        web.get("/health", health),
        web.get("/v1/models", models),
        web.post("/v1/chat/completions", chat),
        web.put("/broken", set_broken),
    ],
)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
