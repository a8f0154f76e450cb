"""The worker between a tunnel and engines that do what HTTP/1.1 allows them, and what it does not: one generation per request."""

import asyncio
import gzip
from contextlib import asynccontextmanager, suppress

import pytest

from stargate_client.engine import ANSWER_HEAD_LINE, Engine
from stargate_client.serve import BODY as REQUEST_BODY
from stargate_client.serve import Service
from stargate_client.settings import parse
from stargate_client.stats import ModelLoad
from tunnel_protocol.head import RequestHead
from tunnel_protocol.quic.stream_interface import Stream
from tunnel_protocol.raw_quic import RAW_QUIC

BODY = b'{"stream":true}'
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hello "}}]}\n\n'
NEEDED = [(b"x-request-id", b"r"), (b"x-model", b"m"), (b"x-input-tokens", b"1")]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n"


class PlayedStream(Stream):
    """A tunnel stream of the worker: what it writes is read as the router reads it."""

    def __init__(self):
        super().__init__(0)
        self.exchange = RAW_QUIC.router_exchange(self)
        self.head = None
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
        self.head = head

    def on_body(self, data):
        self.body += data

    def on_end(self):
        self.over.set()


class Models:
    def __init__(self, load):
        self._load = load

    def load(self, model):
        return self._load


@asynccontextmanager
async def worker(behaviour, load=None, options=()):
    """A function that asks the worker, and the heads its engine got; `behaviour(number, reader, writer, head)` answers."""
    heads = []

    async def serve(reader, writer):
        number = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                heads.append(head)
                number += 1
                if not await behaviour(number, reader, writer, head):
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    base = f"--upstream-http-base-url=http://127.0.0.1:{port}"
    settings = parse([base, "--backend-connectivity=reverse", "--quic-insecure", *options], {})
    engine = Engine(settings)
    service = Service(settings, engine, Models(load or ModelLoad()), RAW_QUIC)

    async def ask(*headers, body=BODY):
        stream = PlayedStream()
        handler = service.accept(stream)
        request = stream.exchange
        head = RequestHead(b"POST", b"/v1/chat/completions", [*headers, *NEEDED])
        handler.on_data(request.encode_head(head) + request.encode_body(body) + request.encode_end(), True)
        async with asyncio.timeout(10):
            await stream.over.wait()
        return stream

    try:
        yield ask, heads
    finally:
        await engine.close()
        server.close()


def answers(*lines, body=EVENT):
    async def behave(number, reader, writer, head):
        await reader.readexactly(len(BODY))
        writer.write(ANSWER % len(body) + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body)
        return True

    return behave


@pytest.mark.parametrize("path", [b"/health", b"/v1/health/ready", b"/of/its/own"])
async def test_an_engine_is_healthy_that_answers_at_a_usual_place_or_at_its_own(path):
    asked = []

    async def serve(reader, writer):
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                asked.append(head.split(b" ")[1])
                status = b"200 OK" if asked[-1] == path else b"404 Not Found"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        base = f"--upstream-http-base-url=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        own = "--upstream-health-path=/of/its/own"
        engine = Engine(parse([base, own, "--backend-connectivity=reverse", "--quic-insecure"], {}))
        assert await engine.healthy()
        before = len(asked)
        assert await engine.healthy()
        assert asked[before:] == [path]  # what has answered once is asked first
        await engine.close()


async def test_nobody_waits_for_an_interim_answer_of_the_engine():
    async with worker(answers()) as (ask, heads):
        stream = await ask((b"expect", b"100-continue"))
        assert (stream.head.status, stream.body) == (200, EVENT)
    assert b"expect" not in heads[0].lower()


@pytest.mark.parametrize("size", [9_000, 65_536, 500_000])
async def test_an_answer_with_a_large_header_is_passed_on(size):
    async with worker(answers(b"server-timing: " + b"a" * size)) as (ask, heads):
        stream = await ask()
        assert (stream.head.status, stream.body) == (200, EVENT)
        assert dict(stream.head.headers)[b"server-timing"] == b"a" * size
    assert len(heads) == 1


async def test_a_header_that_no_tunnel_carries_is_left_out():
    async with worker(answers("x-note: café".encode(), b"x-kept: yes")) as (ask, heads):
        stream = await ask()
        assert (stream.head.status, stream.body) == (200, EVENT)
        names = dict(stream.head.headers)
        assert b"x-note" not in names
        assert names[b"x-kept"] == b"yes"
    assert len(heads) == 1


@pytest.mark.parametrize(
    "lines",
    [
        [b"x-big: " + b"a" * (ANSWER_HEAD_LINE.bytes + 1)],
        [b"x-%d: a" % number for number in range(ANSWER_HEAD_LINE.pieces + 1)],
    ],
    ids=["bytes", "pieces"],
)
async def test_an_answer_head_beyond_the_limits_is_one_final_502(lines):
    async with worker(answers(*lines)) as (ask, heads):
        stream = await ask()
        assert not stream.was_reset
        assert stream.head.status == 502
        assert b"x-stargate-retryable" not in dict(stream.head.headers)
    assert len(heads) == 1


async def test_noise_for_an_answer_is_one_final_502():
    async def noise(number, reader, writer, head):
        await reader.readexactly(len(BODY))
        writer.write(b"hello\r\n\r\n")
        return False

    async with worker(noise) as (ask, heads):
        assert (await ask()).head.status == 502
    assert len(heads) == 1


async def test_a_kept_connection_that_ends_as_it_is_used_costs_a_new_connection():
    async def once(number, reader, writer, head):
        await reader.readexactly(len(BODY))
        if number > 1:
            return False
        writer.write(ANSWER % len(EVENT) + b"\r\n" + EVENT)
        return True

    async with worker(once) as (ask, heads):
        for _ in range(4):
            assert (await ask()).head.status == 200
    assert len(heads) == 6  # the second and fourth one twice


async def test_a_kept_connection_that_is_reset_under_a_large_body_costs_a_new_connection():
    async def once(number, reader, writer, head):
        if number > 1:
            writer.transport.abort()  # with most of the body unread
            return False
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(size)
        writer.write(ANSWER % len(EVENT) + b"\r\n" + EVENT)
        return True

    large = b'{"stream":true,"a":"%b"}' % (b"x" * 8_000_000)
    async with worker(once) as (ask, heads):
        for _ in range(4):
            assert (await ask(body=large)).head.status == 200
    assert len(heads) == 6


async def test_a_request_is_not_repeated_once_bytes_of_an_answer_came():
    async def begins(number, reader, writer, head):
        await reader.readexactly(len(BODY))
        if number > 1:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-")
            return False
        writer.write(ANSWER % len(EVENT) + b"\r\n" + EVENT)
        return True

    async with worker(begins) as (ask, heads):
        assert (await ask()).head.status == 200
        await ask()
    assert len(heads) == 2


async def test_a_new_connection_that_ends_without_an_answer_is_not_tried_again():
    async def ends(number, reader, writer, head):
        return False

    async with worker(ends) as (ask, heads):
        assert (await ask()).was_reset
    assert len(heads) == 1


async def test_a_compressed_stream_of_events_is_passed_on_as_it_is():
    packed = gzip.compress(EVENT)
    async with worker(answers(b"content-encoding: gzip", b"x-other: a", body=packed)) as (ask, _):
        stream = await ask((b"accept-encoding", b"gzip"))
        assert (stream.head.status, stream.body, stream.was_reset) == (200, packed, False)


async def test_an_engine_that_sends_its_head_and_then_nothing_costs_its_request():
    async def behave(number, reader, writer, head):
        await reader.readexactly(len(BODY))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        return await reader.read(1)  # until the worker closes

    async with worker(behave, options=["--engine-silence-timeout-ms=50"]) as (ask, heads):
        stream = await ask()
    assert (stream.was_reset, stream.head.status, len(heads)) == (True, 200, 1)


async def test_a_tunnelled_body_above_the_limit_is_reset():
    async with worker(answers()) as (ask, heads):
        stream = await ask(body=bytes(REQUEST_BODY.bytes + 1))
        assert stream.was_reset
    assert heads == []


async def test_requests_that_come_at_once_are_not_ahead_of_those_that_the_router_sent_before_them():
    load = ModelLoad(initial_input_tps=100, pinned=True)  # 10 ms a request
    numbers = range(10)

    def sent(number, expected_ms):
        return (b"x-request-id", b"%d" % number), (b"x-stargate-expected-queue-ms", b"%d" % expected_ms)

    async with worker(answers(), load) as (ask, heads):
        streams = await asyncio.gather(*(ask(*sent(number, 10 * number)) for number in numbers))
        assert [stream.head.status for stream in streams] == [200] * len(numbers)
        streams = await asyncio.gather(*(ask(*sent(number, 0)) for number in numbers))
        assert [stream.head.status for stream in streams] == [200] * 3 + [429] * 7  # up to 25 ms more than expected
        assert load.snapshot(0.0).num_running_queries == 0
    assert len(heads) == 13
