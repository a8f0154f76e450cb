"""Router's side of one tunnel: CPU per request and per streamed chunk, and whether idle open streams increase it.

The worker's side runs in another process. The cost is flat if a request costs at most 1.3 times as much with 4,000 other open
streams as with none. Figures: docs/performance.md, "QUIC".
"""

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.connection
import socket
import statistics
import time
from collections.abc import Callable

import uvloop

import certs
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls

_REQUEST, _ANSWER, _CHUNK = b"q" * 600, b"a" * 300, b"c" * 220
_IDLE, _STREAM = b"i", b"s"
_CHUNK_PERIOD_S = 0.010


class _Worker:
    """Answers each request at once, or with chunks if it asks for them; does not answer idle streams."""

    def on_stream(self, stream: Stream) -> "_WorkerStream":
        return _WorkerStream(stream)

    def on_closed(self, error: ConnectionClosedError) -> None: ...


class _WorkerStream(StreamHandler):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._chunks_left = 0

    def on_data(self, data: bytes, fin: bool) -> None:
        if data.startswith(_STREAM):
            self._chunks_left = int(data[1:])
            self._chunk()
        elif fin:
            self._stream.write(_ANSWER, fin=True)

    def _chunk(self) -> None:
        self._chunks_left -= 1
        self._stream.write(_CHUNK, fin=self._chunks_left == 0)
        if self._chunks_left:
            asyncio.get_running_loop().call_later(_CHUNK_PERIOD_S, self._chunk)

    def on_reset(self, error_code: int) -> None: ...

    def on_stop(self, error_code: int) -> None: ...

    def on_writable(self) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None: ...


class _Caller(StreamHandler):
    """One request stream on the router's side; `done` is called with FIN."""

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self.pieces = 0

    def on_data(self, data: bytes, fin: bool) -> None:  # noqa: ARG002 - only counted
        self.pieces += 1
        if fin:
            self._done()

    def on_reset(self, error_code: int) -> None: ...

    def on_stop(self, error_code: int) -> None: ...

    def on_writable(self) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None: ...


class _Router:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._idle: list[Stream] = []

    async def open_idle(self, count: int) -> None:
        """Open `count` idle streams."""
        while len(self._idle) < count:
            stream = await self._connection.open_stream(_Caller(lambda: None))
            stream.write(_IDLE)
            self._idle.append(stream)
        await asyncio.sleep(0.5)

    async def requests(self, count: int, in_flight: int) -> float:
        """CPU seconds per request."""
        finished = asyncio.get_running_loop().create_future()
        left = {"open": count, "done": count}

        def done() -> None:
            left["done"] -= 1
            if left["open"]:
                start()
            if left["done"] == 0:
                finished.set_result(None)

        def start() -> None:
            left["open"] -= 1
            stream = self._connection.try_open_stream(_Caller(done))
            if stream is None:
                raise RuntimeError("the worker grants too few streams")
            stream.write(_REQUEST, fin=True)

        began = time.process_time()
        for _ in range(in_flight):
            start()
        await finished
        return (time.process_time() - began) / count

    async def chunks(self, streams: int, chunks: int) -> tuple[float, float]:
        """CPU seconds per chunk, and chunks per `on_data` call (chunks that arrive together are delivered as one piece)."""
        finished = asyncio.get_running_loop().create_future()
        left = {"streams": streams}

        def done() -> None:
            left["streams"] -= 1
            if left["streams"] == 0:
                finished.set_result(None)

        callers = [_Caller(done) for _ in range(streams)]
        began = time.process_time()
        for caller in callers:
            stream = await self._connection.open_stream(caller)
            stream.write(_STREAM + str(chunks).encode(), fin=True)
        await finished
        spent = time.process_time() - began
        return spent / (streams * chunks), streams * chunks / sum(caller.pieces for caller in callers)


async def _serve_worker(port: int, streams: int, pipe: multiprocessing.connection.Connection) -> None:
    endpoint = await Endpoint.client(socket.AF_INET, QuicSettings(max_streams_bidi=streams))
    tls = ClientTls(None, "stargate", insecure=True)
    connection = await endpoint.connect("127.0.0.1", port, tls, _Worker(), 5)
    await connection.wait_closed()
    pipe.send(time.process_time())
    await endpoint.close()


def _worker_process(port: int, streams: int, pipe: multiprocessing.connection.Connection) -> None:
    uvloop.run(_serve_worker(port, streams, pipe))


async def _measure(options: argparse.Namespace) -> dict[str, float]:
    identity = certs.make_self_signed(["stargate"])
    connected: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def on_connection(connection: Connection) -> _Worker:
        connected.set_result(connection)
        return _Worker()

    tls = ServerTls(identity.cert_pem, identity.key_pem)
    endpoint = await Endpoint.listen("127.0.0.1", 0, tls, QuicSettings(), on_connection)
    here, there = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(
        target=_worker_process, args=(endpoint.local_address[1], options.idle + 256, there), daemon=True
    )
    worker.start()
    try:
        router = _Router(await asyncio.wait_for(connected, 20))
        await router.requests(1_000, options.in_flight)  # warm up
        figures: dict[str, list[float]] = {"request": [], "chunk": [], "request_beside_idle": []}
        for _ in range(options.repeat):
            figures["request"].append(await router.requests(options.requests, options.in_flight) * 1e6)
        if options.chunks:
            for _ in range(options.repeat):
                cost, _pieces = await router.chunks(options.streams, options.chunks)
                figures["chunk"].append(cost * 1e6)
        await router.open_idle(options.idle)
        for _ in range(options.repeat):
            figures["request_beside_idle"].append(await router.requests(options.requests, options.in_flight) * 1e6)
        await endpoint.close()
        await asyncio.to_thread(here.poll, 5)
    finally:
        worker.terminate()
        worker.join(5)
    result = {name: statistics.median(values) for name, values in figures.items() if values}
    result["ratio"] = result["request_beside_idle"] / result["request"]
    return result


def run(args: list[str]) -> None:
    """Print CPU microseconds; exit status 1 if the ratio is above `--limit`."""
    parser = argparse.ArgumentParser(prog="benchmarks flatness", description=__doc__)
    parser.add_argument("--requests", type=int, default=4_000, help="requests timed per repetition")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--streams", type=int, default=90, help="streams that receive a chunk every 10 ms")
    parser.add_argument("--chunks", type=int, default=100, help="chunks per stream; 0 leaves this part out")
    parser.add_argument("--idle", type=int, default=4_000, help="other streams open in the last part")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.3, help="highest ratio that counts as flat")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    figures = uvloop.run(_measure(options))
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"us CPU a request, {options.in_flight} in flight        {figures['request']:8.1f}")
        if "chunk" in figures:
            print(f"us CPU a chunk, {options.streams} streams, 10 ms      {figures['chunk']:8.1f}")
        print(f"us CPU a request beside {options.idle} streams {figures['request_beside_idle']:8.1f}")
        print(f"ratio                                 {figures['ratio']:8.2f}")
    if figures["ratio"] > options.limit:
        raise SystemExit(1)
