"""What the tunnel tests share: a reverse listener with a registry, a caller, and small waits with deadlines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import certs
from router.ports.authentication import AuthenticationError
from router.ports.identity import Identity
from router.ports.tunnels import ExchangeSink, TunnelError
from router.registry import Registration
from router.registry.registry import Registry
from router.telemetry.metrics import Metrics
from router.tunnels.direct_tunnels import DirectTunnels
from router.tunnels.listener import ReverseListener
from router.tunnels.reverse_tunnels import ReverseTunnels
from router.tunnels.settings import TunnelSettings
from support.package_settings import tunnel_settings
from support.scripted_worker import ScriptedWorker
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ServerTls
from tunnel_protocol.raw_quic import RAW_QUIC

HEAD_WITH_QUERY = RequestHead(
    b"POST", b"/v1/chat/completions?x=1", [(b"x-model", b"m"), (b"x-a", b"1"), (b"x-a", b"2")]
)
SETTINGS = tunnel_settings(handshake_timeout_ms=3_000)
CERTIFICATE = certs.make_self_signed(["localhost", "stargate"])


class Tokens:
    """Accepts any token and no token; `keys` gives some a routing key, `bad` is refused; `gate` holds everyone up."""

    def __init__(self, keys: dict[str | None, str] | None = None) -> None:
        self.keys = keys or {}
        self.seen: list[str | None] = []
        self.waiting = 0
        self.gate: asyncio.Event | None = None

    async def routing_key(self, token: str | None) -> str | None:
        self.seen.append(token)
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        if token == "bad":  # noqa: S105 - a token of this test
            raise AuthenticationError("unknown worker token")
        return self.keys.get(token)


class ListenerInMemory:
    def __init__(self, tokens: Tokens, settings: TunnelSettings) -> None:
        self.registry = Registry()
        self.tokens = tokens
        self.settings = settings
        self.metrics = Metrics()
        self.listener = ReverseListener(self.registry, tokens, RAW_QUIC, settings, self.metrics)
        self.port = 0
        self.workers: list[ScriptedWorker] = []

    def register(self, worker_id: str = "w1", *, routing_key: str | None = None, reverse: bool = True) -> Registration:
        identity = Identity(worker_id, worker_id, "http://engine.example", routing_key, reverse)
        tunnels = (
            ReverseTunnels(identity, self.settings, self.metrics)
            if reverse
            else DirectTunnels(identity, self.settings, self.metrics, None)  # type: ignore[arg-type]  # nobody dials here
        )
        return self.registry.begin(identity, tunnels)

    def end(self, registration: Registration) -> None:
        self.registry.end(registration)
        registration.tunnels.retire()  # type: ignore[attr-defined]  # they are ours

    async def dial(self, **options: Any) -> ScriptedWorker:
        worker = await ScriptedWorker.dial(self.port, **options)
        self.workers.append(worker)
        return worker

    async def tunnel(self, worker_id: str = "w1", token: str | None = None, **options: Any) -> ScriptedWorker:
        """A worker whose handshake was accepted."""
        worker = await self.dial(**options)
        assert await worker.handshake(worker_id, token) == (True, "")
        return worker


@asynccontextmanager
async def reverse_listener(
    tokens: Tokens | None = None, settings: TunnelSettings = SETTINGS, identity: certs.Identity = CERTIFICATE
) -> AsyncIterator[ListenerInMemory]:
    harness = ListenerInMemory(tokens or Tokens(), settings)
    tls = ServerTls(identity.cert_pem, identity.key_pem)
    _, harness.port = await harness.listener.listen("127.0.0.1", 0, tls, QuicSettings())
    try:
        yield harness
    finally:
        for worker in harness.workers:
            await worker.close()
        await harness.listener.close()


class Caller(ExchangeSink):
    """The sink of a request of ours."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = b""
        self.error: TunnelError | None = None
        self.over = asyncio.Event()

    def on_head(self, head: ResponseHead) -> None:
        self.status = head.status

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.over.set()

    def on_failed(self, error: TunnelError) -> None:
        self.error = error
        self.over.set()

    def on_upload_writable(self) -> None: ...

    def on_upload_stopped(self) -> None: ...

    async def done(self) -> tuple[int | None, bytes, TunnelError | None]:
        await asyncio.wait_for(self.over.wait(), 5)
        return self.status, self.body, self.error


async def serves(registration: Registration, worker: ScriptedWorker) -> bool:
    """Whether a request of this registration reaches exactly this worker and its answer comes back."""
    caller = Caller()
    await registration.tunnels.open(HEAD_WITH_QUERY, caller, end=True)
    request = await worker.next_request()
    request.answer(200, b"hello")
    assert await caller.done() == (200, b"hello", None)
    return True
