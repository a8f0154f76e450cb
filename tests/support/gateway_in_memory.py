"""What the tests of the HTTP front share: the real listener on a real socket, and tunnels behind it that the test plays."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from router.balancing import BalancingConfig, Selector, load_config
from router.balancing.settings import CURRENT, BalancingSettings
from router.http1.server import HttpServer
from router.http1.settings import HttpSettings
from router.openai.model_names import KnownTargets
from router.ports.tunnels import ExchangeSink, TunnelError
from router.proxy.proxy import Proxy
from router.proxy.routes import Routes
from router.proxy.settings import ProxySettings
from router.registry import Identity, ModelStats, ModelUpdate, Registration, Registry, TargetKey
from router.telemetry.metrics import Metrics
from support.http_client import HttpAnswer, HttpClient
from support.package_settings import http_settings, proxy_settings
from support.waiting import eventually
from tunnel_protocol.head import HeaderList, RequestHead, ResponseHead


class PlayedExchange:
    """One request at a scripted worker; the test plays the worker with `head`, `body`, `end`, `fail`."""

    def __init__(self, head: RequestHead, sink: ExchangeSink, *, ended: bool) -> None:
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

    def send_body(self, data: bytes) -> bool:
        assert not self.ended, "body after its end"
        self.pieces.append(data)
        return self.writable

    def end_body(self) -> None:
        self.ended = True

    def abort_upload(self) -> None:
        self.upload_aborted = True

    def cancel(self) -> None:
        self.cancelled = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def upload_acknowledged(self) -> bool:
        return self.acknowledged

    # --- the worker, played by the test

    @property
    def received(self) -> bytes:
        return b"".join(self.pieces)

    def header(self, name: str) -> str | None:
        values = [value.decode("latin-1") for key, value in self.request.headers if key == name.encode()]
        assert len(values) < 2, values
        return values[0] if values else None

    def head(self, status: int = 200, **headers: object) -> None:
        entries = [(name.replace("_", "-").encode(), str(value).encode("latin-1")) for name, value in headers.items()]
        if not self.cancelled:
            self.sink.on_head(ResponseHead(status, entries))

    def body(self, data: bytes) -> None:
        if not self.cancelled:
            self.sink.on_body(data)

    def end(self) -> None:
        if not self.cancelled:
            self.sink.on_end()

    def fail(self, reason: str = "stream reset by peer", *, accepted: bool = False) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.sink.on_failed(TunnelError(reason, accepted=accepted))

    def answer_raw(self, status: int, headers: HeaderList, data: bytes = b"ok") -> None:
        """As `answer`, with headers as they are, repeated ones too."""
        self.sink.on_head(ResponseHead(status, headers))
        self.body(data)
        self.end()

    def stop_upload(self) -> None:
        """The worker takes no more of the body."""
        self.sink.on_upload_stopped()

    def answer(self, status: int = 200, data: bytes = b"ok", **headers: object) -> None:
        self.head(status, **headers)
        if data:
            self.body(data)
        self.end()

    def reject(self, status: int = 429, reason: str = "upstream_admission_rejected") -> None:
        self.answer(status, b'{"rejected":true}', x_stargate_retryable="true", x_stargate_retry_reason=reason)


class PlayedWorker:
    """The tunnels of one registration, scripted. `on_request` is called with every exchange in the next turn of the loop."""

    def __init__(
        self, worker_id: str, *, direct: bool, on_request: Callable[[PlayedExchange], object] | None = None
    ) -> None:
        self.worker_id = worker_id
        self.direct = direct
        self.on_request = on_request
        self.up = True
        self.free = 100
        self.refusal: str | None = None
        self.exchanges: list[PlayedExchange] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.reconnects = 0
        self.reconnecting: asyncio.Event | None = None
        self.dialable = True
        self.registration: Registration

    def healthy(self) -> bool:
        return self.up

    def free_streams(self) -> int:
        return self.free if self.up else 0

    def silent_since(self) -> float | None:
        return None

    def try_open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> PlayedExchange | None:
        if not self.up:
            raise TunnelError(f"no connection for exact inference server registration '{self.worker_id}'")
        if self.refusal is not None:
            raise TunnelError(self.refusal)
        if self.free <= 0:
            return None
        exchange = PlayedExchange(head, sink, ended=end)
        self.exchanges.append(exchange)
        if self.on_request is not None:
            asyncio.get_running_loop().call_soon(self.on_request, exchange)
        return exchange

    async def open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> PlayedExchange:
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

    async def reconnect(self) -> None:
        self.reconnects += 1
        if self.reconnecting is not None:
            await self.reconnecting.wait()
        if not self.dialable:
            raise TunnelError("quic connect timed out")
        self.up = True

    @property
    def url(self) -> str:
        return "quic://127.0.0.1:1" if self.direct else f"http://engine-of-{self.worker_id}:8000"

    async def next(self, number: int = 0) -> PlayedExchange:
        await eventually(lambda: len(self.exchanges) > number)
        return self.exchanges[number]


class GatewayInMemory:
    """Registry, policy, metrics, proxy and listener; workers and clients are added by the test."""

    def __init__(
        self, settings: ProxySettings, config: BalancingConfig, http: HttpSettings, balancing: BalancingSettings
    ) -> None:
        self.metrics = Metrics()
        self.known = KnownTargets(asyncio.get_running_loop().time)
        self.registry = Registry(self.known.note)
        self.selector = Selector(config, Random(1), settings=balancing)
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
        self.http = HttpServer(routes, loop.time, http)
        self.port = 0
        self.clients: list[HttpClient] = []

    def worker(
        self,
        worker_id: str = "w1",
        *,
        cluster: str | None = None,
        model: str = "m",
        key: str | None = None,
        direct: bool = False,
        on_request: Callable[[PlayedExchange], object] | None = None,
        active: bool = True,
        **stats: Any,
    ) -> PlayedWorker:
        """A registered worker, routable unless told otherwise; `stats` are fields of its figures."""
        worker = PlayedWorker(worker_id, direct=direct, on_request=on_request)
        identity = Identity(worker_id, cluster or worker_id, worker.url, key, not direct)
        worker.registration = self.registry.begin(identity, worker)
        self.update(worker, model, active=active, **stats)
        return worker

    def update(self, worker: PlayedWorker, model: str = "m", *, active: bool = True, **stats: Any) -> None:
        figures = ModelStats(**{"last_mean_input_tps": 1000.0, "output_tps": 10.0, **stats})
        now = asyncio.get_running_loop().time()
        update = {model: ModelUpdate(active, figures)}
        self.registry.apply(worker.registration, update, connected=True, rtt_ns=1_000_000, now=now)

    def queue_size(self, cluster_id: str, model: str = "m") -> int:
        target = self.registry.target(TargetKey(None, model))
        assert target is not None
        return next(one.queue_size for one in target.candidates() if one.cluster_id == cluster_id)

    async def client(self) -> "HttpClient":
        client = await HttpClient.connect(self.port)
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> "HttpAnswer":
        """One request on a connection of its own."""
        client = await self.client()
        client.send(data)
        return await client.answer()

    def series(self, family: str, *labels: str) -> list[str]:
        """The series of a family whose labels contain all of `labels`."""
        lines = self.metrics.render(additional=True).decode().splitlines()
        found = [line for line in lines if line.startswith((f"stargate_{family}{{", f"stargate_{family} "))]
        return [line for line in found if all(label in line for label in labels)]

    def count(self, family: str, *labels: str) -> float:
        """The sum over all series of a family whose labels contain all of `labels`."""
        return sum(float(line.rpartition(" ")[2]) for line in self.series(family, *labels))


@asynccontextmanager
async def gateway_in_memory(
    config: bytes | None = None,
    http: HttpSettings | None = None,
    balancing: BalancingSettings = CURRENT,
    **settings: Any,
) -> AsyncIterator[GatewayInMemory]:
    policy = BalancingConfig() if config is None else load_config(config, settings=balancing)
    harness = GatewayInMemory(proxy_settings(**settings), policy, http or http_settings(), balancing)
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
