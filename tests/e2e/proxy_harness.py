"""What the tests of the HTTP front share: the real listener on a real socket, scripted tunnels behind it, and a client of raw bytes."""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import asynccontextmanager
from random import Random

import uvloop

from router.balancing import BalancingConfig, Selector, load_config
from router.http1.connection import PATIENCE, Patience
from router.http1.server import HttpServer
from router.ports.tunnels import TunnelError
from router.proxy.proxy import Proxy
from router.proxy.routes import Routes
from router.proxy.settings import ProxySettings
from router.registry import Identity, ModelStats, ModelUpdate, Registry, TargetKey
from router.telemetry.metrics import Metrics
from tunnel_protocol.head import ResponseHead

DEADLINE_S = 5.0
CHAT = "/v1/chat/completions"


def scenario(test):
    """Run an async test function on the loop that the router uses, with a deadline."""

    def run():
        async def with_deadline():
            async with asyncio.timeout(30):
                await test()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(with_deadline())

    run.__name__ = test.__name__
    return run


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - conditions of several objects, none of which tells
            await asyncio.sleep(0.001)


class Exchange:
    """One request at a scripted worker; the test plays the worker with `head`, `body`, `end`, `fail`."""

    def __init__(self, head, sink, *, ended: bool) -> None:
        self.request = head
        self.sink = sink
        self.pieces: list[bytes] = []
        self.ended = ended
        self.upload_aborted = False
        self.cancelled = False
        self.paused = False
        self.writable = True
        self.acknowledged = False

    # --- the port, called by the gateway

    def send_body(self, data):
        assert not self.ended, "body after its end"
        self.pieces.append(data)
        return self.writable

    def end_body(self):
        self.ended = True

    def abort_upload(self):
        self.upload_aborted = True

    def cancel(self):
        self.cancelled = True

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def upload_acknowledged(self):
        return self.acknowledged

    # --- the worker, played by the test

    @property
    def received(self) -> bytes:
        return b"".join(self.pieces)

    def header(self, name: str):
        values = [value.decode("latin-1") for key, value in self.request.headers if key == name.encode()]
        assert len(values) < 2, values
        return values[0] if values else None

    def head(self, status=200, **headers):
        entries = [(name.replace("_", "-").encode(), str(value).encode("latin-1")) for name, value in headers.items()]
        if not self.cancelled:
            self.sink.on_head(ResponseHead(status, entries))

    def body(self, data: bytes):
        if not self.cancelled:
            self.sink.on_body(data)

    def end(self):
        if not self.cancelled:
            self.sink.on_end()

    def fail(self, reason="stream reset by peer", *, accepted=False):
        if not self.cancelled:
            self.cancelled = True
            self.sink.on_failed(TunnelError(reason, accepted=accepted))

    def answer(self, status=200, data=b"ok", **headers):
        self.head(status, **headers)
        if data:
            self.body(data)
        self.end()

    def reject(self, status=429, reason="upstream_admission_rejected"):
        self.answer(status, b'{"rejected":true}', x_stargate_retryable="true", x_stargate_retry_reason=reason)


class Worker:
    """The tunnels of one registration, scripted. `on_request` is called with every exchange in the next turn of the loop."""

    def __init__(self, worker_id: str, *, direct: bool, on_request=None) -> None:
        self.worker_id = worker_id
        self.direct = direct
        self.on_request = on_request
        self.up = True
        self.free = 100
        self.refusal: str | None = None
        self.exchanges: list[Exchange] = []
        self.waiting: list[asyncio.Future] = []
        self.reconnects = 0
        self.reconnecting: asyncio.Event | None = None
        self.dialable = True
        self.registration = None

    def healthy(self):
        return self.up

    def free_streams(self):
        return self.free if self.up else 0

    def try_open(self, head, sink, *, end):
        if not self.up:
            raise TunnelError(f"no connection for exact inference server registration '{self.worker_id}'")
        if self.refusal is not None:
            raise TunnelError(self.refusal)
        if self.free <= 0:
            return None
        exchange = Exchange(head, sink, ended=end)
        self.exchanges.append(exchange)
        if self.on_request is not None:
            asyncio.get_running_loop().call_soon(self.on_request, exchange)
        return exchange

    async def open(self, head, sink, *, end):
        while True:
            exchange = self.try_open(head, sink, end=end)
            if exchange is not None:
                return exchange
            future = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            try:
                await future
            finally:
                self.waiting.remove(future)

    def release_streams(self, count: int) -> None:
        self.free += count
        for future in self.waiting[:count]:
            future.set_result(None)

    async def reconnect(self):
        self.reconnects += 1
        if self.reconnecting is not None:
            await self.reconnecting.wait()
        if not self.dialable:
            raise TunnelError("quic connect timed out")
        self.up = True

    @property
    def url(self) -> str:
        return "quic://127.0.0.1:1" if self.direct else f"http://engine-of-{self.worker_id}:8000"

    async def next(self, number: int = 0) -> Exchange:
        await eventually(lambda: len(self.exchanges) > number)
        return self.exchanges[number]


class Harness:
    """Registry, policy, metrics, proxy and listener; workers and clients are added by the test."""

    def __init__(
        self, settings: ProxySettings, config: BalancingConfig, patience: Patience, max_connections: int
    ) -> None:
        self.metrics = Metrics()
        self.registry = Registry()
        self.selector = Selector(config, Random(1))
        loop = asyncio.get_running_loop()
        self.proxy = Proxy(self.registry, self.selector, self.metrics, settings, loop.time)
        self.ready = True
        routes = Routes(
            self.proxy,
            self.registry,
            self.metrics,
            is_ready=lambda: self.ready and not self.http.draining,
            debug_config=lambda: {"stargate_id": "test"},
        )
        self.http = HttpServer(routes, loop.time, patience, max_connections)
        self.port = 0
        self.clients: list[Client] = []

    def worker(
        self, worker_id="w1", *, cluster=None, model="m", key=None, direct=False, on_request=None, active=True, **stats
    ) -> Worker:
        """A registered worker, routable unless told otherwise; `stats` are fields of its figures."""
        worker = Worker(worker_id, direct=direct, on_request=on_request)
        identity = Identity(worker_id, cluster or worker_id, worker.url, key, not direct)
        worker.registration = self.registry.begin(identity, worker)
        self.update(worker, model, active=active, **stats)
        return worker

    def update(self, worker: Worker, model="m", *, active=True, **stats) -> None:
        figures = ModelStats(**{"last_mean_input_tps": 1000.0, "output_tps": 10.0, **stats})
        now = asyncio.get_running_loop().time()
        update = {model: ModelUpdate(active, figures)}
        self.registry.apply(worker.registration, update, connected=True, rtt_ns=1_000_000, now=now)

    def queue_size(self, cluster_id: str, model="m") -> int:
        target = self.registry.target(TargetKey(None, model))
        return next(one.queue_size for one in target.candidates() if one.cluster_id == cluster_id)

    async def client(self) -> "Client":
        client = await Client.connect(self.port)
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> "Answer":
        """One request on a connection of its own."""
        client = await self.client()
        client.send(data)
        return await client.answer()

    def count(self, family: str, *labels: str) -> float:
        """The sum over all series of a family whose labels contain all of `labels`."""
        prefix = f"stargate_{family}{{"
        total = 0.0
        for line in self.metrics.render(additional=True).decode().splitlines():
            if line.startswith((prefix, f"stargate_{family} ")):
                text, _, value = line.rpartition(" ")
                if all(label in text for label in labels):
                    total += float(value)
        return total


@asynccontextmanager
async def a_harness(
    config: bytes | None = None, patience: Patience = PATIENCE, max_connections: int = 1000, **settings
):
    balancing = BalancingConfig() if config is None else load_config(config)
    harness = Harness(ProxySettings(**settings), balancing, patience, max_connections)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    harness.port = listening.getsockname()[1]
    await harness.http.start(listening)
    try:
        yield harness
    finally:
        for client in harness.clients:
            client.leave()
        await eventually(lambda: not harness.http.connections)
        await harness.http.drain(1)
        assert not harness.proxy.running
        assert harness.proxy.replay_budget.used_bytes == 0


class Answer:
    def __init__(self, status: int, headers: list[tuple[str, str]], version: str) -> None:
        self.status = status
        self.fields = headers
        self.version = version
        self.body = b""
        self.chunks: list[bytes] = []

    def header(self, name: str):
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def is_empty(self) -> bool:
        return self.body == b"" and self.header("content-length") == "0" and self.header("content-type") is None


class BrokenOffError(Exception):
    """The connection ended inside a response; `answer` is what had arrived."""

    def __init__(self, answer: Answer | None) -> None:
        super().__init__("broken off")
        self.answer = answer


class Client:
    """Sends raw bytes, reads responses strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, **options) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def half_close(self) -> None:
        self.writer.write_eof()

    def leave(self) -> None:
        """Gone at once, by a reset. An ordinary close could stand behind bytes that the server does not read."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and not self.writer.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """What a client library does that has had enough."""
        self.writer.transport.abort()

    async def head(self) -> Answer:
        try:
            async with asyncio.timeout(DEADLINE_S):
                raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenOffError(None) from error
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        headers = []
        for line in lines:
            name, separator, value = line.partition(": ")
            assert separator, line
            assert name == name.lower()
            headers.append((name, value))
        return Answer(int(status), headers, version)

    async def answer(self, *, head_only=False) -> Answer:
        answer = await self.head()
        if not head_only and answer.status not in (100, 204, 304):
            await self.rest(answer)
        return answer

    async def rest(self, answer: Answer) -> Answer:
        """The body of a response whose head was read. Raises `BrokenOffError`."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                if answer.header("transfer-encoding") == "chunked":
                    assert answer.header("content-length") is None
                    while chunk := await self.chunk():
                        answer.chunks.append(chunk)
                        answer.body += chunk
                elif answer.header("content-length") is not None:
                    answer.body += await self.reader.readexactly(int(answer.header("content-length")))
                else:
                    answer.body += await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenOffError(answer) from error
        return answer

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self.reader.readuntil(b"\r\n")
            size = int(line, 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def closed(self) -> bool:
        """True once the server has closed (nothing more may come before that)."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self.reader.read() == b""
        except ConnectionError:
            return True


def post(path=CHAT, body=b"{}", *, model="m", chunked=False, version="1.1", **headers) -> bytes:
    """A request as a gateway sends it. Headers by keyword replace those; None leaves one out."""
    fields = {"host": "router", "x-request-id": "r-1", "x-model": model, "x-input-tokens": "12"}
    if chunked:
        fields["transfer-encoding"] = "chunked"
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        fields["content-length"] = str(len(body))
    for name, value in headers.items():
        fields[name.replace("_", "-")] = value
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"POST {path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1") + body


def get(path: str, **headers) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nhost: router\r\n{lines}\r\n".encode()
