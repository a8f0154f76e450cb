"""A small OpenAI-style engine as a process: `python engine.py PORT MODEL`. Streams `x-tokens` tokens, `x-delay-ms` apart."""

import asyncio
import json
import sys

from aiohttp import web

model = sys.argv[2]


async def health(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})


async def chat(request: web.Request) -> web.StreamResponse:
    await request.read()
    tokens = int(request.headers.get("x-tokens", "5"))
    delay_s = int(request.headers.get("x-delay-ms", "1")) / 1000
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for i in range(tokens):
        if i:
            await asyncio.sleep(delay_s)
        delta = {"id": "c", "object": "chat.completion.chunk", "model": model}
        delta["choices"] = [{"index": 0, "delta": {"content": f"t{i} "}, "finish_reason": None}]
        await response.write(b"data: " + json.dumps(delta).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


app = web.Application()
app.add_routes(
    [web.get("/health", health), web.get("/v1/models", models), web.post("/v1/chat/completions", chat)],
)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
