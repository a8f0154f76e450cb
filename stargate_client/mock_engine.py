"""A mock inference engine: streams fixed tokens with configurable delays. `python -m stargate_client.mock_engine`.

Its responses are deterministic, for tests and benchmarks. A request can override the defaults with the headers
`x-output-tokens` and `x-mock-status`, or `max_tokens` in its body. With `x-mock-echo: NAME` the response to a chat completion
is a stream of receipts for the request (see `receipt`), each `x-mock-pad` bytes longer, to detect mixed-up or lost bytes.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import uvloop
from aiohttp import web

WORDS = "Hello , how can I help you today ? Here is what I found about your question , told in short words .".split()  # noqa: SIM905
_SSE = {"content-type": "text/event-stream", "cache-control": "no-cache"}


def receipt(name: str, body_bytes: int, digest: str, index: int, pad_bytes: int = 0) -> bytes:
    """Event number `index` of the response to request `name`, whose body has this size and SHA-256 digest (hex)."""
    document = {"echo": name, "bytes": body_bytes, "sha256": digest, "index": index, "pad": "x" * pad_bytes}
    return _event(document)


class MockEngine:
    """Handlers of the endpoints of an OpenAI-compatible engine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._ids = itertools.count(1)
        self.served = 0

    def application(self) -> web.Application:
        """The web application with the engine's routes."""
        app = web.Application(client_max_size=128 * 1024 * 1024)
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/v1/models", self.models),
                web.get("/kv-cache/stats", self.kv_cache),
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/responses", self.responses),
                web.post("/v1/embeddings", self.embeddings),
            ]
        )
        return app

    async def health(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Always answers 200, with the configured delay."""
        await asyncio.sleep(self._options.health_delay_ms / 1000)
        return web.Response(text="ok")

    async def models(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """The configured models."""
        data = [{"id": name, "object": "model"} for name in sorted(set(self._options.model))]
        return web.json_response({"object": "list", "data": data})

    async def kv_cache(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Statistics of an empty KV cache."""
        capacity = self._options.kv_cache_capacity_tokens
        return web.json_response({"capacity_tokens": capacity, "used_tokens": 0, "free_tokens": capacity})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A chat completion, streamed or not."""
        if "x-mock-echo" in request.headers:
            return await self._echo(request)
        document = await self._document(request)
        identity = f"chatcmpl-mock-{next(self._ids)}"
        model = str(document.get("model", self._options.model[0]))
        count = self._count(request, document)
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if document.get("stream") is not True:
            await asyncio.sleep((self._options.ttft_ms + (count - 1) * self._options.token_delay_ms) / 1000)
            message = {"role": "assistant", "content": " ".join(_tokens(count))}
            usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return web.json_response(
                {"id": identity, "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
            )

        def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return _event({"id": identity, "object": "chat.completion.chunk", "model": model, "choices": [choice]})

        response = await self._stream(request)
        await asyncio.sleep(self._options.ttft_ms / 1000)
        await response.write(chunk({"role": "assistant"}))
        for index, token in enumerate(_tokens(count)):
            await self._gap(index)
            if self._breaks_off(index):
                return self._break_off(request, response)
            await response.write(chunk({"content": token + " "}))
        end = chunk({}, "stop")
        options = document.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage") is True:
            usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
            last = {"id": identity, "object": "chat.completion.chunk", "model": model, "choices": [], "usage": usage}
            end += _event(last)
        await response.write(end + b"data: [DONE]\n\n")
        self.served += 1
        return response

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        """Receipts for the request, one event each, then the usual last event."""
        body = await request.read()
        digest = (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()
        pad = request.headers.get("x-mock-pad", "")
        response = await self._stream(request)
        for index in range(self._count(request, {})):
            await self._gap(index)
            name = request.headers["x-mock-echo"]
            await response.write(receipt(name, len(body), digest, index, int(pad) if pad.isdigit() else 0))
        await response.write(b"data: [DONE]\n\n")
        self.served += 1
        return response

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """A streamed response of the Responses API."""
        document = await self._document(request)
        if document.get("stream") is not True:
            return web.json_response({"error": "mock engine: /v1/responses requires stream=true"}, status=400)
        identity = f"resp-mock-{next(self._ids)}"
        count = self._count(request, document)
        response = await self._stream(request)
        await response.write(_named("response.created", {"type": "response.created", "response": {"id": identity}}))
        await asyncio.sleep(self._options.ttft_ms / 1000)
        for index, token in enumerate(_tokens(count)):
            await self._gap(index)
            delta = {"type": "response.output_text.delta", "response_id": identity, "delta": token + " "}
            await response.write(_named("response.output_text.delta", delta))
        usage = {"input_tokens": 1, "output_tokens": count}
        done = {"type": "response.completed", "response": {"id": identity, "usage": usage}}
        await response.write(_named("response.completed", done))
        self.served += 1
        return response

    async def embeddings(self, request: web.Request) -> web.Response:
        """Embeddings with fixed values."""
        document = await self._document(request)
        given = document.get("input")
        items = given if isinstance(given, list) else [given]
        data = [{"object": "embedding", "index": i, "embedding": [i, i + 0.125, -i - 0.25]} for i in range(len(items))]
        self.served += 1
        return web.json_response({"object": "list", "model": document.get("model"), "data": data})

    async def _document(self, request: web.Request) -> dict[str, object]:
        try:
            document = msgspec.json.decode(await request.read())
        except msgspec.DecodeError:
            raise web.HTTPBadRequest(text='{"error":"body is not JSON"}', content_type="application/json") from None
        return document if isinstance(document, dict) else {}

    def _count(self, request: web.Request, document: dict[str, object]) -> int:
        header = request.headers.get("x-output-tokens", "")
        if header.isdigit():
            return max(1, int(header))
        asked = document.get("max_tokens", document.get("max_output_tokens"))
        most: int = self._options.num_tokens
        return max(1, min(asked, most) if isinstance(asked, int) else most)

    def _refusal(self, request: web.Request) -> web.Response | None:
        status = request.headers.get("x-mock-status", "")
        if not status.isdigit():
            return None
        headers = {"x-stargate-upstream-retryable": "true"} if "x-mock-retryable" in request.headers else {}
        return web.json_response({"error": "as asked"}, status=int(status), headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=_SSE)
        await response.prepare(request)
        return response

    async def _gap(self, index: int) -> None:
        if index:
            await asyncio.sleep(self._options.token_delay_ms / 1000)

    def _breaks_off(self, index: int) -> bool:
        limit: int = self._options.break_after
        return 0 < limit <= index

    def _break_off(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return response


def _tokens(count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(WORDS), count))


def _event(document: Mapping[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _named(name: str, document: Mapping[str, object]) -> bytes:
    return b"event: " + name.encode() + b"\n" + _event(document)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stargate_client.mock_engine", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8090, help="port to listen on; 0: any free one")
    add("--ports-file", type=Path, help="write the URL to this file, as JSON, once requests are answered")
    add("--model", action="append", default=[], help="a model it serves (repeatable; default: dummy-model)")
    add("--num-tokens", type=int, default=16, help="tokens of an answer that asks for no number, and the most")
    add("--token-delay-ms", type=float, default=20, help="pause between tokens")
    add("--ttft-ms", type=float, default=0, help="pause before the first token")
    add("--health-delay-ms", type=float, default=0, help="pause before /health answers")
    add("--kv-cache-capacity-tokens", type=int, default=0, help="figure told by /kv-cache/stats")
    add("--break-after", type=int, default=0, help="break every stream after this many tokens; 0: never")
    found = parser.parse_args(arguments)
    found.model = found.model or ["dummy-model"]
    return found


async def _run(options: argparse.Namespace) -> int:
    runner = web.AppRunner(MockEngine(options).application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        sys.stderr.write(f"Error: cannot listen on {options.host}:{options.port}: {error.strerror}\n")
        return 1
    port = runner.addresses[0][1]
    if options.ports_file is not None:
        temporary = options.ports_file.with_suffix(".part")
        temporary.write_text(json.dumps({"url": f"http://{options.host}:{port}", "port": port}))
        temporary.replace(options.ports_file)
    sys.stdout.write(f"mock engine listens on http://{options.host}:{port}\n")
    sys.stdout.flush()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await runner.cleanup()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    return uvloop.run(_run(_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())
