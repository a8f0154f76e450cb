"""What the tests of the OpenAI front share: its real listener on a real socket, in front of the proxy of `gateway_in_memory`."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from router.config import package_settings
from router.http1.server import HttpServer, ServerCallbacks
from router.openai.affinity import GatewayAffinity, ScopedAffinity
from router.openai.errors import envelope
from router.openai.estimator import LearningEstimator
from router.openai.front import Front
from router.openai.front_context import FrontContext
from router.openai.gateway_front import GatewayFront
from router.openai.gateway_texts import message_body
from router.openai.keys.authenticator import OpenAuthenticator
from router.openai.limits.limiter import UNLIMITED
from router.openai.ports import Admission, Caller, FrontServices, Headers, Limiter, Usage, UsageRecord, UsageSink
from router.openai.settings import FrontSettings
from support.gateway_in_memory import GatewayInMemory, PlayedExchange, PlayedWorker, gateway_in_memory
from support.http_client import HttpAnswer, HttpClient
from support.package_settings import DEFAULTS, http_settings
from support.waiting import eventually

MESSAGES = [{"role": "user", "content": "hi"}]
SSE = {"content_type": "text/event-stream"}


def front_settings(**changes: Any) -> FrontSettings:
    return replace(package_settings.openai_front(DEFAULTS), **changes)


class Recorded(UsageSink):
    """A usage sink that keeps the records."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []

    def record(self, record: UsageRecord) -> None:
        self.records.append(record)


class PlayedAdmission(Admission):
    """An admission that keeps how it was finished."""

    def __init__(self, headers: Headers) -> None:
        super().__init__(headers)
        self.finished: list[tuple[Usage | None, int, bool]] = []

    def finish(self, usage: Usage | None, output_seen: int = 0, *, served: bool = True) -> None:
        self.finished.append((usage, output_seen, served))


class PlayedLimiter(Limiter):
    """Admits everything, unless `outcome` says otherwise."""

    def __init__(self) -> None:
        self.outcome: Any = None
        self.asked: list[tuple[str | None, str, int, int | None]] = []

    def admit(
        self, caller: Caller, routing_key: str | None, model: str, input_tokens: int, output_tokens: int | None
    ) -> Any:
        self.asked.append((routing_key, model, input_tokens, output_tokens))
        return UNLIMITED if self.outcome is None else self.outcome


class FrontInMemory:
    """The front, the registry and proxy behind it, and clients."""

    def __init__(self, gateway: GatewayInMemory, settings: FrontSettings, authenticator: Any) -> None:
        self.gateway = gateway
        self.usage = Recorded()
        self.limiter = PlayedLimiter()
        self.estimator = LearningEstimator()
        as_gateway = settings.mode == "gateway"
        services = FrontServices(
            authenticator=authenticator or OpenAuthenticator(),
            limiter=self.limiter,
            estimator=LearningEstimator(correct=False) if as_gateway else self.estimator,
            affinity=GatewayAffinity() if as_gateway else ScopedAffinity(),
            usage=self.usage,
        )
        loop = asyncio.get_running_loop()
        render = message_body if as_gateway else envelope
        self.context = FrontContext(
            settings, services, gateway.proxy, gateway.registry, gateway.known, loop.time, render
        )
        self.ready = True
        front: ServerCallbacks = Front(self.context, gateway.metrics, is_ready=lambda: self.ready)
        if as_gateway:
            front = GatewayFront(self.context, gateway.metrics, version="1.2.3", commit="abc")
        self.http = HttpServer(front, loop.time, http_settings())
        self.port = 0
        self.worker = gateway.worker
        self.played: PlayedWorker
        """The worker of a test that has one."""

    async def client(self) -> HttpClient:
        client = await HttpClient.connect(self.port)
        self.gateway.clients.append(client)
        return client

    async def ask(self, data: bytes) -> HttpAnswer:
        """One request on a connection of its own."""
        client = await self.client()
        client.send(data)
        return await client.answer()


def post(path: str = "/v1/chat/completions", body: Any = None, **headers: Any) -> bytes:
    """A POST; `body` is JSON, or bytes as they are. A header that is None is left out."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields: dict[str, str | None] = {"host": "x", "content-type": "application/json", "content-length": str(len(raw))}
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + raw


def chat(model: str = "m", *, headers: dict[str, Any] | None = None, **members: Any) -> bytes:
    """A chat completion."""
    return post(body={"model": model, "messages": MESSAGES, **members}, **(headers or {}))


def get(path: str, method: str = "GET", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *lines, "", ""]).encode()


def event(document: Any, name: str | None = None) -> bytes:
    """A server-sent event with compact JSON."""
    line = "" if name is None else f"event: {name}\n"
    return f"{line}data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def chunk(delta: Any, finish: str | None = None, *, model: str = "m", **members: Any) -> bytes:
    """One chunk of a chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(
        {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": model, "choices": [choice], **members}
    )


def stream(exchange: PlayedExchange, *events: bytes) -> None:
    """The worker streams these events, and ends."""
    exchange.head(200, **SSE)
    for one in events:
        exchange.body(one)
    exchange.end()


def hello(exchange: PlayedExchange) -> None:
    """The worker streams two tokens with usage."""
    usage = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
    last = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [], "usage": usage}
    stream(
        exchange,
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
        event(last),
        DONE,
    )


def error_of(answer: HttpAnswer) -> dict[str, Any]:
    """The error of an answer, which has the envelope and nothing else."""
    document = json.loads(answer.body)
    assert set(document) == {"error"}, document
    assert set(document["error"]) == {"message", "type", "param", "code"}, document
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-request-id")
    found: dict[str, Any] = document["error"]
    return found


@asynccontextmanager
async def front_in_memory(authenticator: Any = None, **settings: Any) -> AsyncIterator[FrontInMemory]:
    async with gateway_in_memory() as gateway:
        harness = FrontInMemory(gateway, front_settings(**settings), authenticator)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        harness.port = listening.getsockname()[1]
        await harness.http.start(listening)
        try:
            yield harness
        finally:
            for client in gateway.clients:
                client.leave()
            await eventually(lambda: not harness.http.connections)
            await harness.http.drain(1)
            assert not harness.context.running
            assert harness.context.bodies.used_bytes == 0
