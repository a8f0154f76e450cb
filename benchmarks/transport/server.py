"""The server of a run: reads each request to its end and answers 200 with a body of the letter s."""

import asyncio
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import uvloop

import certs
from benchmarks.transport.body import BodySender
from benchmarks.transport.settings import MAX_STREAMS, TransportSettings
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ServerTls
from tunnel_protocol.raw_quic import RAW_QUIC

_START_S = 20.0
_STOP_S = 5.0
_ANSWER_S = 5.0
_HEAD = ResponseHead(200, [(b"content-type", b"application/octet-stream")])


def quic_settings() -> QuicSettings:
    """The number of streams and the stream windows of a run. This program has no limiting connection-level window."""
    return QuicSettings(max_streams_bidi=MAX_STREAMS, stream_window_bytes=16 * 2**20)


class _Answer(StreamHandler):
    """One request on the server's side."""

    __slots__ = ("_body", "_exchange", "_stream")

    def __init__(self, stream: Stream, settings: TransportSettings) -> None:
        self._stream = stream
        self._exchange = RAW_QUIC.worker_exchange(self)
        size, chunk = settings.response_body_bytes, settings.response_chunk_bytes
        self._body = BodySender(stream, self._exchange, b"s", size, chunk)

    def on_data(self, data: bytes, fin: bool) -> None:
        try:
            self._exchange.receive(data, fin)
        except ProtocolError:
            self._stream.reset()
            self._stream.stop()

    def on_head(self, head: RequestHead) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None:
        self._body.start(self._exchange.encode_head(_HEAD))

    def on_writable(self) -> None:
        self._body.go_on()

    def on_reset(self, error_code: int) -> None:
        self._stream.reset(error_code)

    def on_stop(self, error_code: int) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None: ...


class _Handler:
    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings

    def on_stream(self, stream: Stream) -> _Answer:
        return _Answer(stream, self._settings)

    def on_closed(self, error: ConnectionClosedError) -> None: ...


@dataclass(frozen=True)
class Server:
    """The address of a run's server, and the certificate to trust."""

    port: int
    trust_pem: bytes
    process: BaseProcess | None
    """The server's process; None if it runs in this process."""
    _pipe: multiprocessing.connection.Connection | None

    async def cpu_s(self) -> float | None:
        """CPU seconds used by the server's process; None if it runs in this process, or does not answer."""
        return None if self._pipe is None else await asyncio.to_thread(self._ask, self._pipe)

    @contextmanager
    def watched(self, gone: Callable[[], None]) -> Iterator[None]:
        """A context in which `gone` is called if the server's process ends."""
        if self.process is None:
            yield
            return
        loop, sentinel = asyncio.get_running_loop(), self.process.sentinel

        def ended() -> None:
            loop.remove_reader(sentinel)
            gone()

        loop.add_reader(sentinel, ended)
        try:
            yield
        finally:
            loop.remove_reader(sentinel)

    @staticmethod
    def _ask(pipe: multiprocessing.connection.Connection) -> float | None:
        try:
            pipe.send("cpu")
            return pipe.recv() if pipe.poll(_ANSWER_S) else None
        except (OSError, EOFError):
            return None


async def _listen(settings: TransportSettings, identity: certs.Identity) -> Endpoint:
    def on_connection(connection: Connection) -> _Handler:  # noqa: ARG001
        return _Handler(settings)

    tls = ServerTls(identity.cert_pem, identity.key_pem)
    return await Endpoint.listen("127.0.0.1", 0, tls, quic_settings(), on_connection)


@asynccontextmanager
async def running_server(settings: TransportSettings) -> AsyncIterator[Server]:
    """A new server with a new certificate on a free port of the loopback, in this process or in its own.

    Raises TimeoutError or ConnectionError if a server process does not start.
    """
    identity = certs.make_self_signed(["localhost", "stargate"])
    if not settings.server_process:
        endpoint = await _listen(settings, identity)
        try:
            yield Server(endpoint.local_address[1], identity.cert_pem, None, None)
        finally:
            await endpoint.close()
        return
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_process, args=(settings, identity, there), daemon=True
    )
    process.start()
    there.close()
    try:
        if not await asyncio.to_thread(here.poll, _START_S):
            raise TimeoutError(f"the server process was not ready within {_START_S:.0f} s")
        try:
            port = here.recv()
        except EOFError:
            raise ConnectionError("the server process ended before it was ready") from None
        yield Server(port, identity.cert_pem, process, here)
    finally:
        here.close()  # the process ends when its pipe is closed
        await asyncio.to_thread(process.join, _STOP_S)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join, _STOP_S)


def _process(
    settings: TransportSettings, identity: certs.Identity, pipe: multiprocessing.connection.Connection
) -> None:
    uvloop.run(_serve(settings, identity, pipe))


async def _serve(
    settings: TransportSettings, identity: certs.Identity, pipe: multiprocessing.connection.Connection
) -> None:
    endpoint = await _listen(settings, identity)
    ended = asyncio.Event()

    def asked() -> None:
        try:
            pipe.recv()
            pipe.send(time.process_time())
        except (OSError, EOFError):
            loop.remove_reader(pipe.fileno())
            ended.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), asked)
    pipe.send(endpoint.local_address[1])
    await ended.wait()
    await endpoint.close()
