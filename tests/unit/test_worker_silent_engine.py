"""How long an engine may be silent within a stream of events, on a virtual clock."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from stargate_client.serve import Service
from stargate_client.settings import parse
from stargate_client.stats import ModelLoad
from tunnel_protocol.head import RequestHead
from tunnel_protocol.quic.stream_interface import Stream
from tunnel_protocol.raw_quic import RAW_QUIC

pytestmark = pytest.mark.loop("virtual")

BASE = ["--upstream-http-base-url=http://127.0.0.1:1", "--backend-connectivity=reverse", "--quic-insecure"]
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hello "}}]}\n\n'
COMMENT = b": prefill\n\n"
HEADERS = [(b"x-request-id", b"r"), (b"x-model", b"m"), (b"x-input-tokens", b"1")]


class PlayedStream(Stream):
    """A tunnel stream of the worker: what it writes is read as the router reads it."""

    def __init__(self):
        super().__init__(0)
        self.exchange = RAW_QUIC.router_exchange(self)
        self.status = 0
        self.body = b""
        self.over = asyncio.Event()
        self.was_reset = False

    def write(self, data, fin=False):
        self.exchange.receive(bytes(data), fin)
        return True

    def reset(self, error_code=0):
        self.was_reset = True
        self.over.set()

    def stop(self, error_code=0): ...

    def when_sent(self, callback):
        callback()

    def on_head(self, head):
        self.status = head.status

    def on_body(self, data):
        self.body += data

    def on_end(self):
        self.over.set()


class PausingEngine:
    """Answers with a stream of these pieces, and waits for so many seconds where one is a number."""

    health_path = "/health"

    def __init__(self, pieces, content_type):
        self._pieces = list(pieces)
        self._headers = {"content-type": content_type}

    @asynccontextmanager
    async def request(self, method, path, headers, body):
        raw = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        yield SimpleNamespace(status=200, raw_headers=raw, headers=self._headers, content=self)

    async def readany(self):
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, bytes):
                return piece
            await asyncio.sleep(piece)
        return b""

    async def iter_any(self):
        while part := await self.readany():
            yield part


async def answer(*pieces, options=(), content_type="text/event-stream"):
    """What the router gets of such an answer, the seconds it took, and the log."""
    load = ModelLoad()
    models = SimpleNamespace(load=lambda _model: load)
    service = Service(parse([*BASE, *options], {}), PausingEngine(pieces, content_type), models, RAW_QUIC)
    stream = PlayedStream()
    handler = service.accept(stream)
    request, head = stream.exchange, RequestHead(b"POST", b"/v1/chat/completions", HEADERS)
    with capture_logs() as logs:
        handler.on_data(
            request.encode_head(head) + request.encode_body(b'{"stream":true}') + request.encode_end(), True
        )
        await stream.over.wait()
    return stream, asyncio.get_running_loop().time(), logs


@pytest.mark.parametrize(
    "pieces",
    [(599.0, EVENT), (EVENT, 599.0, EVENT), (300.0, COMMENT, 599.0, EVENT), (COMMENT, *([500.0, COMMENT] * 5), EVENT)],
)
async def test_a_long_prefill_or_a_long_pause_is_no_failure(pieces):
    stream, _, logs = await answer(*pieces)
    assert (stream.status, stream.was_reset, logs) == (200, False, [])
    assert stream.body == b"".join(piece for piece in pieces if isinstance(piece, bytes))


@pytest.mark.parametrize(
    ("options", "pieces", "after_s", "silence"),
    [
        ((), (700.0, EVENT), 600, "600 s"),
        ((), (EVENT, 700.0, EVENT), 600, "600 s"),
        (("--engine-silence-timeout-ms=2500",), (3.0, EVENT), 2.5, "2.5 s"),
        (("--engine-silence-timeout-ms=5000",), (4.0, COMMENT, 6.0, EVENT), 9, "5 s"),
    ],
)
async def test_an_engine_that_stays_silent_costs_its_request_and_the_log_names_the_option(
    options, pieces, after_s, silence
):
    stream, took_s, logs = await answer(*pieces, options=options)
    assert stream.was_reset
    assert took_s == pytest.approx(after_s)
    assert [line["error"] for line in logs] == [f"no event for {silence} (--engine-silence-timeout-ms)"]


async def test_an_engine_may_be_silent_for_ever_if_the_operator_says_so():
    stream, took_s, _ = await answer(1e6, EVENT, options=["--engine-silence-timeout-ms=0"])
    assert (stream.was_reset, stream.body, took_s) == (False, EVENT, 1e6)


async def test_an_answer_that_is_no_stream_of_events_has_no_limit():
    stream, _, _ = await answer(5_000.0, b"{}", content_type="application/json")
    assert (stream.was_reset, stream.body) == (False, b"{}")


@pytest.mark.parametrize("value", ["-1", "1.5", "long", ""])
def test_a_limit_that_is_no_number_of_milliseconds_is_a_usage_error(value):
    with pytest.raises(SystemExit) as refused:
        parse([*BASE, f"--engine-silence-timeout-ms={value}"], {})
    assert refused.value.code == 2
