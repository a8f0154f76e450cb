"""Serves one request on a tunnel: receives and checks it, sends it to the engine, relays the response.

The first step that fails decides the error (docs/worker.md, "A request"). A failure before the response head is answered if the
protocol defines an answer, otherwise the stream is reset; a failure after the head always resets the stream.
"""

import asyncio
import time
from typing import Protocol

import aiohttp
import structlog

from stargate_client.answers import Problem, carried, engine_head
from stargate_client.engine import Engine, EngineAnswerError, EngineConnectError
from stargate_client.request_rules import (
    CHAT,
    EMBEDDINGS,
    OBSERVED,
    RESPONSES,
    RequestFacts,
    check_body,
    check_queue,
    engine_headers,
    facts,
)
from stargate_client.settings import WorkerSettings
from stargate_client.sse import EventCutter, EventKind, EventTooLargeError, kind_of
from stargate_client.stats import LiveRequest, ModelLoad, State
from stargate_client.usage import output_tokens
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError, StreamClosedError
from tunnel_protocol.framing import Framing
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

_log = structlog.get_logger()

BODY = Limit("worker.request_body", bytes=64 * 1024 * 1024)
"""Size of a tunnelled request body, which is received completely before the engine is called."""

MAX_BODY_BYTES = BODY.bytes or 0
_HEALTH = b"/health"


class BrokenAnswerError(Exception):
    """The engine's response cannot be completed; the stream is reset, so that the router does not treat it as complete."""


class Models(Protocol):
    """The models that this worker serves, with their load."""

    def load(self, model: str) -> ModelLoad | None:
        """The load of a model; None if the worker does not serve it."""


class Service:
    """The objects that all requests of a worker share."""

    def __init__(self, settings: WorkerSettings, engine: Engine, models: Models, framing: Framing) -> None:
        self.settings = settings
        self.engine = engine
        self.models = models
        self.framing = framing
        self.tasks: set[asyncio.Task[None]] = set()

    def accept(self, stream: Stream) -> "TunnelRequest":
        """Create the handler of a stream that a router opened."""
        return TunnelRequest(self, stream)


class TunnelRequest(StreamHandler):
    """One request; the handler of its stream, and a `RequestSink`."""

    def __init__(self, service: Service, stream: Stream) -> None:
        self._service = service
        self._stream = stream
        self._exchange = service.framing.worker_exchange(self)
        self._head: RequestHead | None = None
        self._known: RequestFacts | None = None
        self._load: ModelLoad | None = None
        self._live: LiveRequest | None = None
        self._body = bytearray()
        self._body_bytes = 0
        self._answered = False
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # --- StreamHandler ---------------------------------------------------------------------------------------------

    def on_data(self, data: bytes, fin: bool) -> None:
        """Process bytes of the request."""
        if self._answered:
            return
        try:
            self._exchange.receive(data, fin)
        except ProtocolError as error:
            _log.warning("request stream refused", error=error.reason)
            self._tear_down()

    def on_reset(self, error_code: int) -> None:  # noqa: ARG002
        """The router abandoned the request before it was complete."""
        self._tear_down()

    def on_stop(self, error_code: int) -> None:  # noqa: ARG002
        """The router does not want the response: cancel the request to the engine."""
        self._cancel()

    def on_writable(self) -> None:
        """Continue writing the response."""
        self._writable.set()

    def on_connection_lost(self, error: ConnectionClosedError) -> None:  # noqa: ARG002
        """The tunnel is lost: cancel the request."""
        self._cancel()

    # --- RequestSink -----------------------------------------------------------------------------------------------

    def on_head(self, head: RequestHead) -> None:
        """Check the head."""
        self._head = head
        if self._path() == _HEALTH:
            return
        try:
            self._known = facts(head)
        except Problem as problem:
            self._answer(problem)
            return
        self._load = self._service.models.load(self._known.model)
        if self._load is None:
            detail = "model generation is not admitted for request routing"
            self._answer(Problem(503, detail, retryable=True, reason="model_generation_unavailable"))
            return
        self._live = LiveRequest(self._known.input_tokens, self._known.priority or 0, time.monotonic())
        self._load.begin(self._known.request_id, self._live, _wall_ms())

    def on_body(self, data: bytes) -> None:
        """Append to the body; a body above the limit resets the stream."""
        if self._answered:
            return
        self._body_bytes += len(data)
        if self._body_bytes > MAX_BODY_BYTES:
            _log.warning("request body too large", limit_bytes=MAX_BODY_BYTES)
            self._tear_down()
        else:
            self._body += data

    def on_end(self) -> None:
        """The request is complete: check it, and serve it.

        The check is made at once: requests that have come with the same datagrams, but which the router sent later, are not ahead of
        this one, and the router's estimate for it does not have them.
        """
        if self._answered or self._head is None:
            return
        body = bytes(self._body)
        self._body = bytearray()
        try:
            if self._known is not None and self._load is not None:
                check_body(self._head.method, self._path(), body)
                check_queue(self._head, self._known, self._load, self._service.settings.admission)
        except Problem as problem:
            self._answer(problem)
            self._account(complete=False)
            return
        self._task = asyncio.get_running_loop().create_task(self._serve(self._head, body))
        self._service.tasks.add(self._task)
        self._task.add_done_callback(self._served)

    # -----------------------------------------------------------------------------------------------------------------

    async def _serve(self, head: RequestHead, body: bytes) -> None:
        complete = False
        try:
            complete = await self._ask_engine(head, body)
        except Problem as problem:
            self._answer(problem)
        except EngineConnectError:
            retryable = self._service.settings.retry.connect_failures
            self._answer(
                Problem(503, "local upstream connection failed", retryable=retryable, reason="local_connect_failure")
            )
        except EngineAnswerError as error:
            # The engine has processed the request; after a reset the router would send it to another worker.
            _log.warning("engine's answer is no HTTP response", error=error.reason)
            self._answer(Problem(502, "the engine's answer is not a valid HTTP response"))
        except (aiohttp.ClientError, BrokenAnswerError, TimeoutError, StreamClosedError, OSError) as error:
            _log.warning("engine failed", error=str(error) or type(error).__name__)
            self._tear_down()
        finally:
            self._account(complete=complete)

    async def _ask_engine(self, head: RequestHead, body: bytes) -> bool:
        settings, engine = self._service.settings, self._service.engine
        path = head.path.decode("latin-1")
        if path.startswith("//"):
            raise Problem(400, "request path must not begin with //")
        if self._known is None:
            path = engine.health_path + path.removeprefix("/health")
        elif not path.startswith("/"):
            path = f"/{path}"
        headers = engine_headers(head, self._known, settings)
        async with engine.request(head.method.decode(), path, headers, body) as response:
            raw = [(name.lower(), value) for name, value in response.raw_headers]
            self._send_head(engine_head(response.status, raw, settings.retry))
            self._advance(State.INPUT)
            content_type = response.headers.get("content-type", "")
            observed = head.method == b"POST" and self._path() in (CHAT, RESPONSES)
            # Events of a compressed stream cannot be parsed; the client asked for compression, so it is relayed unchanged.
            plain = response.headers.get("content-encoding", "identity").strip().lower() in ("", "identity")
            if observed and plain and content_type.startswith("text/event-stream"):
                await self._relay_events(response)
            else:
                if 200 <= response.status < 300:
                    self._advance(State.OUTPUT)
                async for chunk in response.content.iter_any():
                    await self._write(self._exchange.encode_body(chunk))
            self._stream.write(self._exchange.encode_end(), fin=True)
            return 200 <= response.status < 300

    async def _relay_events(self, response: aiohttp.ClientResponse) -> None:
        cutter = EventCutter()
        output = False
        while chunk := await self._part_of_stream(response):
            try:
                events = cutter.feed(chunk)
            except EventTooLargeError:
                raise BrokenAnswerError("an event of the engine exceeds 1 MiB") from None
            for event in events:
                if kind_of(event) is EventKind.OUTPUT:
                    if not output:
                        output = True
                        self._advance(State.OUTPUT)
                    if self._live is not None:
                        self._live.output_tokens = output_tokens(event, self._live.output_tokens)
                await self._write(self._exchange.encode_body(event))
        if not output:
            raise BrokenAnswerError("upstream stream ended before first output event")
        if cutter.rest():
            await self._write(self._exchange.encode_body(cutter.rest()))

    async def _part_of_stream(self, response: aiohttp.ClientResponse) -> bytes:
        """The next bytes of a stream of events; empty at its end. Engines send the head at once, and nothing more during a long prefill."""
        silence_s = self._service.settings.engine_silence_s
        try:
            async with asyncio.timeout(silence_s):
                return await response.content.readany()
        except TimeoutError:
            raise BrokenAnswerError(f"no event for {silence_s:g} s (--engine-silence-timeout-ms)") from None

    async def _write(self, data: bytes) -> None:
        if not self._stream.write(data):
            self._writable.clear()
            await self._writable.wait()

    def _send_head(self, head: ResponseHead) -> None:
        """Write the response head, without headers that cannot be encoded. Raises `Problem` (502) if it still cannot be."""
        try:
            data = self._exchange.encode_head(head)
        except ProtocolError as error:
            _log.warning("header of the engine's answer left out", error=error.reason)
            try:
                data = self._exchange.encode_head(ResponseHead(head.status, carried(head.headers)))
            except ProtocolError:
                raise Problem(502, "the engine's response head cannot be passed on") from error
        self._answered = True
        self._stream.write(data)

    def _answer(self, problem: Problem) -> None:
        if self._answered:
            self._tear_down()
            return
        self._answered = True
        exchange = self._exchange
        self._stream.write(exchange.encode_head(problem.head()) + exchange.encode_body(problem.body()), fin=True)
        # Send STOP_SENDING for the rest of the request only after the response was sent, so that the router can read it.
        self._stream.when_sent(self._stream.stop)

    def _tear_down(self) -> None:
        self._answered = True
        self._body = bytearray()
        self._stream.reset()
        self._stream.stop()
        self._cancel()

    def _cancel(self) -> None:
        self._answered = True
        self._writable.set()
        if self._task is not None:
            self._task.cancel()
        else:
            self._account(complete=False)

    def _advance(self, state: State) -> None:
        if self._live is not None:
            self._live.advance(state, time.monotonic())

    def _account(self, *, complete: bool) -> None:
        live, self._live = self._live, None
        if live is None or self._known is None or self._load is None or self._head is None:
            return
        observed = self._head.method == b"POST" and self._path() in OBSERVED
        finished = complete and observed and (live.state is State.OUTPUT or self._path() == EMBEDDINGS)
        self._load.end(self._known.request_id, live, time.monotonic(), _wall_ms(), complete=finished)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._service.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("request failed", exc_info=task.exception())
            self._stream.reset()

    def _path(self) -> bytes:
        return b"" if self._head is None else self._head.path.partition(b"?")[0]


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
