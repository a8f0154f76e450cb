"""The client of a run: connections from one socket, with a fixed number of concurrent requests."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from benchmarks.transport.body import BodySender
from benchmarks.transport.samples import Sample
from benchmarks.transport.server import Server, quic_settings
from benchmarks.transport.settings import TransportSettings
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError, StreamCreditError
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls
from tunnel_protocol.raw_quic import RAW_QUIC

_CONNECT_S = 10.0
_LOOK_S = 0.25
"""Seconds between checks for requests that have timed out."""
_OK = 200


class RunTimeoutError(Exception):
    """A run exceeded its time limit; `finished` of `wanted` requests had ended."""

    def __init__(self, finished: int, wanted: int) -> None:
        super().__init__(f"the run was given up with {finished} of {wanted} requests finished")
        self.finished = finished
        self.wanted = wanted


class _Request(StreamHandler):
    """One request; `over` is called once when it ends, successfully or not."""

    __slots__ = (
        "_body", "_ended", "_error", "_exchange", "_first_body_ns", "_head_ns", "_over", "_received", "_settings",
        "_status", "_stream", "connection_index", "index", "started_ns",
    )  # fmt: skip

    def __init__(
        self, index: int, connection_index: int, settings: TransportSettings, over: Callable[["_Request"], None]
    ) -> None:
        self.index = index
        self.connection_index = connection_index
        self.started_ns = time.perf_counter_ns()
        self._settings = settings
        self._over = over
        self._exchange = RAW_QUIC.router_exchange(self)
        self._stream: Stream | None = None
        self._body: BodySender | None = None
        self._head_ns = self._first_body_ns = self._received = 0
        self._status: int | None = None
        self._error: str | None = None
        self._ended = False

    def send(self, stream: Stream) -> None:
        """Send the request on its stream."""
        if self._ended:  # timed out while it waited for a stream
            stream.reset()
            stream.stop()
            return
        self._stream = stream
        settings = self._settings
        headers = [
            (b"x-request-id", b"transport-bench-%d" % self.index),
            (b"x-model", b"transport-bench-model"),
            (b"x-input-tokens", b"1"),
        ]
        size, chunk = settings.request_body_bytes, settings.request_chunk_bytes
        self._body = BodySender(stream, self._exchange, b"r", size, chunk)
        self._body.start(self._exchange.encode_head(RequestHead(b"POST", b"/v1/chat/completions", headers)))

    def give_up(self, error: str) -> None:
        """End the request with this error."""
        if self._stream is not None and not self._ended:
            self._stream.reset()
            self._stream.stop()
        self._end(error)

    def on_data(self, data: bytes, fin: bool) -> None:
        try:
            self._exchange.receive(data, fin)
        except ProtocolError as error:
            self.give_up(error.reason)

    def on_head(self, head: ResponseHead) -> None:
        self._head_ns = time.perf_counter_ns()
        self._status = head.status

    def on_body(self, data: bytes) -> None:
        if not self._received:
            self._first_body_ns = time.perf_counter_ns()
        self._received += len(data)

    def on_end(self) -> None:
        expected = self._settings.response_body_bytes
        if self._status != _OK:
            self._end(f"status {self._status}")
        elif self._received != expected:
            self._end(f"{self._received} of {expected} bytes")
        else:
            self._end(None)

    def on_writable(self) -> None:
        if self._body is not None:
            self._body.go_on()

    def on_reset(self, error_code: int) -> None:
        self._end(f"reset by the server (code {error_code})")

    def on_stop(self, error_code: int) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        self._end(f"connection lost: {error}")

    def _end(self, error: str | None) -> None:
        if not self._ended:
            self._ended = True
            self._error = error
            self._over(self)

    def sample(self) -> Sample:
        """The request's result so far."""
        now, began = time.perf_counter_ns(), self.started_ns
        return Sample(
            request_index=self.index,
            connection_index=self.connection_index,
            ok=self._error is None,
            response_status=self._status,
            request_bytes=self._settings.request_body_bytes,
            response_bytes=self._received,
            response_headers_us=(self._head_ns - began) / 1_000 if self._head_ns else None,
            first_body_us=(self._first_body_ns - began) / 1_000 if self._received else None,
            completion_us=(now - began) / 1_000,
            error=self._error,
        )


class _Idle(StreamHandler):
    """Handler of an idle stream and of the connections; refuses streams that the server opens."""

    def on_stream(self, stream: Stream) -> StreamHandler | None: ...

    def on_closed(self, error: ConnectionClosedError) -> None: ...

    def on_data(self, data: bytes, fin: bool) -> None: ...

    def on_reset(self, error_code: int) -> None: ...

    def on_stop(self, error_code: int) -> None: ...

    def on_writable(self) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None: ...


class _Batch:
    """Sends a number of requests with fixed concurrency: starts a request whenever one ends."""

    def __init__(
        self,
        connections: list[Connection],
        settings: TransportSettings,
        requests: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._wanted = requests
        self._progress = progress
        self._started = 0
        self._starting = False
        self._flying: dict[int, _Request] = {}
        self._openers: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Send all requests; returns when all have ended. Raises `RunTimeoutError`."""
        try:
            async with asyncio.timeout(self._settings.run_timeout_ms / 1_000):
                self._start()
                while not self._done.is_set():
                    try:
                        async with asyncio.timeout(_LOOK_S):
                            await self._done.wait()
                    except TimeoutError:
                        self._give_up_late_ones()
                    self._progress(len(self.samples), self._wanted)
        except TimeoutError:
            raise RunTimeoutError(len(self.samples), self._wanted) from None
        finally:
            for opener in self._openers:
                opener.cancel()
            await asyncio.gather(*self._openers, return_exceptions=True)

    def _start(self) -> None:
        """Start requests up to the concurrency. Requests that fail at once are replaced in this loop, not by recursion."""
        if self._starting:
            return
        self._starting = True
        while self._started < self._wanted and len(self._flying) < self._settings.concurrency:
            index = self._started
            self._started += 1
            at = index % len(self._connections)
            request = self._flying[index] = _Request(index, at, self._settings, self._over)
            try:
                stream = self._connections[at].try_open_stream(request)
            except ConnectionClosedError as error:
                request.on_connection_lost(error)
                continue
            if stream is None:
                opener = asyncio.create_task(self._open(self._connections[at], request))
                self._openers.add(opener)
                opener.add_done_callback(self._openers.discard)
            else:
                request.send(stream)
        self._starting = False
        if len(self.samples) == self._wanted:
            self._done.set()

    async def _open(self, connection: Connection, request: _Request) -> None:
        """Wait for stream credit of the server, then send the request."""
        try:
            request.send(await connection.open_stream(request))
        except ConnectionClosedError as error:
            request.on_connection_lost(error)
        except StreamCreditError as error:
            request.give_up(str(error))

    def _over(self, request: _Request) -> None:
        del self._flying[request.index]
        self.samples.append(request.sample())
        self._start()

    def _give_up_late_ones(self) -> None:
        limit = time.perf_counter_ns() - self._settings.request_timeout_ms * 1_000_000
        # Requests are in starting order: stop at the first that has not timed out.
        late = []
        for request in self._flying.values():
            if request.started_ns > limit:
                break
            late.append(request)
        for request in late:
            request.give_up(f"no complete response within {self._settings.request_timeout_ms} ms")


class Client:
    """A client with open connections to one server."""

    def __init__(self, connections: list[Connection], settings: TransportSettings) -> None:
        self._connections = connections
        self._settings = settings

    async def send(self, requests: int, progress: Callable[[int, int], None]) -> list[Sample]:
        """Send `requests` requests; returns a sample for each, in the order of their ends. Raises `RunTimeoutError`."""
        if not requests:
            return []
        batch = _Batch(self._connections, self._settings, requests, progress)
        await batch.run()
        return batch.samples


@asynccontextmanager
async def connected_client(server: Server, settings: TransportSettings) -> AsyncIterator[Client]:
    """A client with all its connections, and with the idle streams of the settings.

    Raises TimeoutError or `ConnectionClosedError` if a connection cannot be made.
    """
    endpoint = await Endpoint.client(socket.AF_INET, quic_settings())
    try:
        tls = ClientTls(server.trust_pem, "localhost")
        connections = [
            await endpoint.connect("127.0.0.1", server.port, tls, _Idle(), _CONNECT_S)
            for _ in range(settings.quic_connections)
        ]
        head = RAW_QUIC.router_exchange(_NoResponse()).encode_head(RequestHead(b"POST", b"/idle", []))
        async with asyncio.timeout(_CONNECT_S):
            for _ in range(settings.idle_streams):
                (await connections[0].open_stream(_Idle())).write(head)

        def server_gone() -> None:
            for connection in connections:
                connection.close(reason="the server's process has ended")

        with server.watched(server_gone):
            yield Client(connections, settings)
    finally:
        await endpoint.close()


class _NoResponse:
    def on_head(self, head: ResponseHead) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...
