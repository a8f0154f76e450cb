"""CPU that the HTTP front adds to a request and to a relayed chunk, with and without each of its features, on both ports.

Only the two ends are mocks: client transports that discard bytes, and tunnels that answer from memory. The figures contain no
system calls. The check whether the chosen worker has a free stream cannot be switched off and is timed separately.
`python -m benchmarks gateway`; results: docs/performance.md, "HTTP front".
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

import uvloop

from benchmarks.openai.in_memory import front_in_memory
from router.balancing import BalancingConfig, Chosen, RoutingRequest, Selector
from router.config import package_settings
from router.config.cli import parse
from router.config.settings import Settings
from router.http1.connection import ClientConnection
from router.http1.server import HttpServer, ServerCallbacks
from router.ports.tunnels import NULL_SINK, ExchangeSink, TunnelSet
from router.process.lifecycle import spare_collector
from router.proxy import proxy as proxy_module
from router.proxy.overflow import with_free_stream
from router.proxy.proxy import Proxy
from router.proxy.request_trace import ProxyTracing
from router.proxy.routes import Routes
from router.registry import Identity, ModelStats, ModelUpdate, Registry, TargetKey
from router.telemetry import logging as router_logging
from router.telemetry.metrics import Metrics
from tunnel_protocol.head import RequestHead, ResponseHead

if TYPE_CHECKING:
    from router.telemetry.otlp.tracer import OtlpTracer

_BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%s"}]}' % (b"x" * 200)
_CONTEXT = b"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: llm-request-router-headless.nvcf.svc.cluster.local:8000\r\n"
    b"User-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\nAccept: text/event-stream\r\n"
    b"Authorization: Bearer 0123456789012345678901234567890123456789\r\nContent-Type: application/json\r\n"
    b"%bX-Input-Tokens: 12\r\nX-Model: m\r\n"
    b"X-Request-Id: 0e8c3c1e-6f0e-4c3e-9a35-0f2f0c7d9b11\r\nX-Token-Estimate: 12\r\nAccept-Encoding: gzip\r\n\r\n%b"
) % (len(_BODY), _CONTEXT, _BODY)
_WITHOUT_CONTEXT = _REQUEST.replace(_CONTEXT, b"")
_NOT_SAMPLED = _REQUEST.replace(b"b7-01\r\n", b"b7-00\r\n")
_HEAD = ResponseHead(200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")])
_CHUNK = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"token"}}]}\n\n'

_KEY = "sk-" + 64 * "0"
_FOR_OPENAI = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: llm.example.com\r\nUser-Agent: OpenAI/Python 2.8.1\r\n"
    b"Content-Length: %d\r\nAccept: application/json\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
    b"X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.1\r\nX-Stainless-Retry-Count: 0\r\n"
    b"Accept-Encoding: gzip\r\n\r\n%b"
) % (len(_BODY), _KEY.encode(), _BODY)
"""The same chat from OpenAI's package, which does not ask for usage; the front does."""
_OF_AN_ENGINE = (
    b'data: {"id":"chatcmpl-0e8c3c1e6f0e4c3e9a350f2f0c7d9b11","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"m","choices":[{"index":0,"delta":{"content":"token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_USAGE = (
    b'data: {"id":"chatcmpl-0e8c3c1e6f0e4c3e9a350f2f0c7d9b11","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"m","choices":[],"usage":{"prompt_tokens":60,"total_tokens":61,"completion_tokens":1}}\n\n'
)
_LAST = (_USAGE, b"data: [DONE]\n\n")
"""The end of a stream with usage."""


class _Transport:
    """A transport of a client that reads everything at once."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += sum(map(len, pieces))

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def get_extra_info(self, name: str) -> None:
        """None: there is no socket."""


class _Exchange:
    """An exchange whose response the benchmark sends."""

    __slots__ = ("sink",)

    def __init__(self, sink: ExchangeSink) -> None:
        self.sink = sink

    def send_body(self, data: bytes) -> bool:  # noqa: ARG002
        return True

    def end_body(self) -> None: ...

    def abort_upload(self) -> None: ...

    def cancel(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def upload_acknowledged(self) -> bool:
        return True


class _Tunnels:
    """Collects the opened exchanges."""

    direct = False

    def __init__(self) -> None:
        self.opened: list[_Exchange] = []

    def healthy(self) -> bool:
        return True

    def free_streams(self) -> int:
        return 100

    def silent_since(self) -> float | None:
        return None

    def try_open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> _Exchange:  # noqa: ARG002
        exchange = _Exchange(sink)
        self.opened.append(exchange)
        return exchange


class _Nothing:
    """A metrics family that records nothing."""

    def inc(self, labels: tuple[str, ...] = (), amount: float = 1) -> None: ...

    def observe(self, value: float, labels: tuple[str, ...] = ()) -> None: ...


class _NoMetrics:
    def __getattr__(self, name: str) -> _Nothing:
        nothing = self.__dict__[name] = _Nothing()
        return nothing


class _Front:
    """A proxy with two clusters of one worker each, and client connections without sockets."""

    def __init__(
        self,
        connections: int,
        options: Settings,
        *,
        metrics: bool = True,
        requests: Sequence[bytes] = (_REQUEST,),
        tracer: "OtlpTracer | None" = None,
        openai: bool = False,
        key: str | None = None,
        chunk: bytes = _CHUNK,
        last: Sequence[bytes] = (),
    ) -> None:
        """`requests` are sent in turn, to the port for OpenAI clients with `openai`, which has the `key` if it is given.

        Workers answer with any number of `chunk`s, and `last`.
        """
        self._chunk, self._last = chunk, last
        self._requests = itertools.cycle(requests)
        registry = Registry()
        self.tunnels = _Tunnels()
        for name in ("w1", "w2"):
            identity = Identity(name, name, "http://10.0.0.1:8000", None, reverse=True)
            registration = registry.begin(identity, cast("TunnelSet", self.tunnels))
            stats = ModelStats(last_mean_input_tps=1000.0, output_tps=100.0)
            registry.apply(
                registration, {"m": ModelUpdate(True, stats)}, connected=True, rtt_ns=1, now=time.monotonic()
            )
        counted = Metrics() if metrics else cast("Metrics", _NoMetrics())
        selector = Selector(BalancingConfig(), Random(1))
        self._registry, self._selector = registry, selector
        proxy = Proxy(registry, selector, counted, package_settings.proxy(options), time.monotonic)
        if tracer is not None:
            proxy.tracing = ProxyTracing(tracer, registry, time.monotonic)
        routes: ServerCallbacks = Routes(proxy, registry, counted, is_ready=lambda: True, debug_config=dict)
        if openai:
            routes = front_in_memory(registry, proxy, counted, options, key)
        http = package_settings.http(options)
        server = HttpServer(routes, time.monotonic, http)
        self.connections = [
            ClientConnection(server, time.monotonic, http.timeouts, close_unread=http.close_unread)
            for _ in range(connections)
        ]
        self.transports = [_Transport() for _ in range(connections)]
        for connection, transport in zip(self.connections, self.transports, strict=True):
            connection.connection_made(cast("Any", transport))

    def look_for_a_free_stream_us(self, times: int = 100_000) -> float:
        """Microseconds to check whether the chosen worker has a free stream."""
        request = RoutingRequest(routing_key=None, model="m", input_tokens=12, received_at=time.monotonic())
        chosen = self._selector.select(
            self._selector.resolve("m", None),
            request,
            self._registry.target(TargetKey(None, "m")),
            advertised=lambda: True,
            failed_backends=set(),
            failed_clusters=set(),
            now=time.monotonic(),
        )
        assert isinstance(chosen, Chosen)  # noqa: S101 - there are two workers
        nobody: set[str] = set()
        began = time.process_time()
        for _ in range(times):
            with_free_stream(chosen, nobody, lambda _: None)
        return (time.process_time() - began) * 1e6 / times

    async def ask(self) -> list[_Exchange]:
        """Send one request on every connection."""
        self.tunnels.opened.clear()
        for connection in self.connections:
            connection.data_received(next(self._requests))
        await asyncio.sleep(0)
        return list(self.tunnels.opened)

    async def round(self, chunks: int, per_turn: int) -> None:
        """Send one request on every connection and answer it with `chunks` chunks, `per_turn` per event loop iteration."""
        exchanges = await self.ask()
        for exchange in exchanges:
            exchange.sink.on_head(_HEAD)
        for _ in range(chunks // per_turn):
            for exchange in exchanges:
                on_body = exchange.sink.on_body
                for _ in range(per_turn):
                    on_body(self._chunk)
            await asyncio.sleep(0)
        for exchange in exchanges:
            for data in self._last:
                exchange.sink.on_body(data)
            exchange.sink.on_end()
            exchange.sink = NULL_SINK  # as an exchange of a tunnel: no cycle is left
        await asyncio.sleep(0)


async def _cpu_us(front: _Front, rounds: int, chunks: int, per_turn: int) -> float:
    """CPU microseconds per request with `chunks` chunks."""
    await front.round(chunks, per_turn)
    spare_collector()
    began = time.process_time()
    for _ in range(rounds):
        await front.round(chunks, per_turn)
    return (time.process_time() - began) * 1e6 / rounds / len(front.connections)


_REQUIRED = ("--stargate-id=r", "--advertise-addr=127.0.0.1:1", "--stargate-discovery-dns-name=r")
_OPENAI: dict[str, Any] = {"openai": True, "requests": [_FOR_OPENAI], "chunk": _OF_AN_ENGINE, "last": _LAST}
_VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes, log level warn": {},
    "as it comes, log level info": {"level": "info"},
    "and with the access log": {"level": "info", "options": ["--access-log"]},
    "no replay copy": {"options": ["--proxy-max-replay-total-bytes=1"]},
    "idle limit on": {"options": ["--proxy-response-idle-timeout-ms=60000"]},
    "accepted is not repeated": {"options": ["--proxy-no-repeat-accepted"]},
    "no metrics": {"metrics": False},
    "context passed on": {"requests": [_NOT_SAMPLED]},
    "no context": {"requests": [_WITHOUT_CONTEXT]},
    "traces, caller samples none": {"sampler": "parentbased_always_on", "requests": [_NOT_SAMPLED]},
    "traces, caller samples 1 %": {"sampler": "parentbased_always_on", "requests": [_REQUEST, *[_NOT_SAMPLED] * 99]},
    "traces, 1 % sampled here": {"sampler": "parentbased_traceidratio", "requests": [_WITHOUT_CONTEXT]},
    "traces, all sampled": {"sampler": "always_on"},
    "nothing on": {"metrics": False, "options": ["--proxy-max-replay-total-bytes=1"]},
    "answer of an engine": {"chunk": _OF_AN_ENGINE, "last": _LAST},
    "the same, OpenAI port, open": _OPENAI,
    "the same, OpenAI port, key": {**_OPENAI, "key": _KEY},
}


def _tracer(sampler: str) -> "OtlpTracer":
    """A tracer whose spans are encoded for the collector, and discarded then."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from router.telemetry.otlp.access_token import AccessToken
    from router.telemetry.otlp.environment import read_environment
    from router.telemetry.otlp.tracer import OtlpTracer

    class Encoder(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    return OtlpTracer(
        read_environment(variables, "http://127.0.0.1:1"),
        AccessToken(None),
        service_name="stargate",
        default_name="stargate",
        attributes={},
        random=Random(1),
        make_exporter=lambda _: Encoder(),
    )


async def _costs(options: argparse.Namespace, variant: dict[str, Any]) -> dict[str, float]:
    settings = parse([*_REQUIRED, *variant.get("options", [])], {})
    tracer = _tracer(variant["sampler"]) if "sampler" in variant else None
    own = {name: value for name, value in variant.items() if name not in ("level", "options", "sampler")}
    front = _Front(options.connections, settings, tracer=tracer, **own)
    request = await _cpu_us(front, options.rounds, 1, 1)
    streamed = await _cpu_us(front, options.rounds // 10 + 1, options.chunks, 1)
    bunched = await _cpu_us(front, options.rounds // 10 + 1, options.chunks, 4)
    return {
        "request": request,
        "chunk": (streamed - request) / (options.chunks - 1),
        "chunk, 4 a turn": (bunched - request) / (options.chunks - 1),
        "free stream?": front.look_for_a_free_stream_us(),
    }


def _in_a_process(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Run a measurement in a new process, because loggers keep the level they were first used with."""
    variant = _VARIANTS[name]
    with Path(os.devnull).open("w") as nowhere:
        router_logging.set_up("text", {"RUST_LOG": variant.get("level", "warn")}, nowhere)
        return uvloop.run(_costs(options, variant))


def _measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    # Compiled modules only accept real metrics objects.
    compiled = not (proxy_module.__file__ or "").endswith(".py")
    names = [name for name, variant in _VARIANTS.items() if not compiled or variant.get("metrics", True)]
    if options.only:
        names = [name for name in names if name in options.only]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(options.repeat):
            for name, measured in figures.items():
                measured.append(pool.apply(_in_a_process, (options, name)))
    return {
        name: {what: statistics.median(one[what] for one in measured) for what in measured[0]}
        for name, measured in figures.items()
    }


def run(args: list[str]) -> None:
    """Print CPU microseconds by variant; exit status 1 if the full request is above `--limit`."""
    parser = argparse.ArgumentParser(prog="benchmarks gateway", description=__doc__)
    parser.add_argument("--connections", type=int, default=32, help="clients that ask at the same time")
    parser.add_argument("--rounds", type=int, default=100, help="requests timed per client and repetition")
    parser.add_argument("--chunks", type=int, default=200, help="chunks per streamed answer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.0, help="highest cost of a request, us; 0 = none")
    parser.add_argument("--only", action="append", choices=_VARIANTS, metavar="NAME", help="measure only this variant")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    figures = _measure(options)
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{'us CPU':28}" + "".join(f"{what:>18}" for what in next(iter(figures.values()))))
        for name, row in figures.items():
            print(f"{name:28}" + "".join(f"{value:18.2f}" for value in row.values()))
    if options.limit and figures["as it comes, log level warn"]["request"] > options.limit:
        raise SystemExit(1)
