"""An engine that keeps what it was asked, and answers as the test says. Runs in a thread of its own."""

import asyncio
import json
import threading
from typing import NamedTuple

from aiohttp import web

EVENTS = [b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % it for it in (b"Hello", b" world", b"!")]
CHAT_ANSWER = b"".join(EVENTS) + b"data: [DONE]\n\n"
RESPONSES_ANSWER = b"event: response.created\ndata: {}\n\nevent: response.completed\ndata: {}\n\n"
EMBEDDINGS_ANSWER = b'{"object": "list",  "data":[ ] }\n'
_STREAMED = {"/v1/chat/completions": [*EVENTS, b"data: [DONE]\n\n"], "/v1/responses": [RESPONSES_ANSWER]}


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Refusal(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


def rejecting(status: int = 429) -> Refusal:
    """A refusal that may be tried elsewhere."""
    return Refusal(status, b'{"error":"full"}', {"x-stargate-upstream-retryable": "true", "retry-after": "3"})


class RecordingEngine:
    """`seen` are the requests so far; while `refusals` has any, one is used up by each request."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.refusals: list[Refusal] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _run(self) -> None:
        app = web.Application(client_max_size=1 << 27)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/{rest:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.path_qs, headers, await request.read()))
        if self.refusals:
            status, body, more = self.refusals.pop()
            return web.Response(status=status, body=body, headers={"content-type": "application/json", **more})
        if request.path == "/v1/embeddings":
            return web.Response(body=EMBEDDINGS_ANSWER, headers={"content-type": "application/json"})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in _STREAMED[request.path]:
            await response.write(event)
        return response


def chat_body(**fields: object) -> bytes:
    return json.dumps(
        {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}], **fields}
    ).encode()
