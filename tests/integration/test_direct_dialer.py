"""Direct inference servers over real QUIC: dialled as a whole set or not at all, dialled again when they were lost."""

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

import certs
from router.ports.identity import Identity
from router.ports.tunnels import TunnelError, TunnelStep
from router.telemetry.metrics import Metrics
from router.tunnels.dialer import DirectDialer
from router.tunnels.direct_tunnels import DirectTunnels
from support.package_settings import tunnel_settings
from support.reverse_listener import CERTIFICATE, HEAD_WITH_QUERY, Caller
from support.scripted_worker import TunnelledRequest
from support.waiting import eventually
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ClientTls, ServerTls
from tunnel_protocol.raw_quic import RAW_QUIC

SETTINGS = tunnel_settings()


class Worker:
    """Answers every request with its body, after `hold` is set."""

    def __init__(self):
        self.endpoint = None
        self.connections = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def listen(self, port=0):
        tls = ServerTls(CERTIFICATE.cert_pem, CERTIFICATE.key_pem)
        self.endpoint = await Endpoint.listen("127.0.0.1", port, tls, QuicSettings(), self.on_connection)
        return self.endpoint.local_address[1]

    def on_connection(self, connection):
        self.connections.append(connection)
        return self

    def on_stream(self, stream):
        request = _Echo(self)
        request.stream = stream
        return request

    def on_closed(self, error): ...

    async def close(self):
        await self.endpoint.close()


class _Echo(TunnelledRequest):
    def __init__(self, worker):
        super().__init__()
        self._worker = worker
        self._task = None

    def on_end(self):
        self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self):
        await self._worker.hold.wait()
        self.answer(200, self.body or b"ok")


@asynccontextmanager
async def dialling(settings=SETTINGS, trust_pem=CERTIFICATE.cert_pem):
    """A worker that listens, a dialer, and a function that makes tunnels to a port."""
    worker = Worker()
    port = await worker.listen()
    metrics = Metrics()
    tls = ClientTls(trust_pem=trust_pem, server_name="stargate", insecure=trust_pem is None)
    dialer = await DirectDialer.open(tls, RAW_QUIC, QuicSettings(), settings, metrics)

    def tunnels(to=port, ip="127.0.0.1"):
        return DirectTunnels(Identity("w1", "w1", f"quic://{ip}:{to}", None, False), settings, metrics, dialer.dial)

    try:
        yield worker, port, tunnels
    finally:
        await dialer.close()
        await worker.close()


async def ask(tunnels):
    caller = Caller()
    await tunnels.open(HEAD_WITH_QUERY, caller, end=True)
    return await caller.done()


async def test_a_direct_worker_is_dialled_verified_and_serves():
    async with dialling() as (_, _, tunnels):
        direct = tunnels()
        assert await direct.tunnel_step() is TunnelStep.CONNECTED
        assert await direct.rtt_ns() > 0
        assert await ask(direct) == (200, b"ok", None)


async def test_the_broadcast_address_of_a_network_of_this_host_gets_no_packet():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearer:
        hearer.setblocking(False)
        hearer.bind(("127.255.255.255", 0))
        async with dialling(replace(SETTINGS, connect_timeout_ms=300)) as (_, _, tunnels):
            with pytest.raises(TunnelError, match="quic connect"):
                await tunnels(hearer.getsockname()[1], "127.255.255.255").reconnect()
        with pytest.raises(BlockingIOError):
            hearer.recv(1)


async def test_a_direct_worker_must_have_a_certificate_for_the_common_server_name():
    other = certs.make_self_signed(["worker.example"], ["127.0.0.1"])
    async with dialling(trust_pem=other.cert_pem) as (worker, _, tunnels):
        worker.endpoint.replace_tls(ServerTls(other.cert_pem, other.key_pem))
        with pytest.raises(TunnelError, match="quic connect failed"):
            await tunnels().reconnect()


async def test_a_set_of_three_is_rebuilt_whole_when_one_closes():
    async with dialling(replace(SETTINGS, direct_connections=3)) as (worker, _, tunnels):
        direct = tunnels()
        await direct.tunnel_step()
        await eventually(lambda: len(worker.connections) == 3)
        worker.connections[1].close()
        await eventually(direct.slot.needs_replenishing)
        assert direct.healthy()
        assert await direct.tunnel_step() is TunnelStep.CONNECTED
        assert not direct.slot.needs_replenishing()
        await eventually(lambda: sum(not connection.closed for connection in worker.connections) == 3)


async def test_a_worker_with_an_unknown_certificate_is_not_connected():
    async with dialling(trust_pem=certs.make_self_signed(["stargate"]).cert_pem) as (_, _, tunnels):
        direct = tunnels()
        with capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(TunnelError, match="quic connect failed"):
                    await direct.reconnect()
        (told,) = [line for line in logs if "worker's certificate" in line["event"]]
        assert (told["inference_server_id"], told["peer"]) == ("w1", "127.0.0.1")
        metrics = direct._metrics
        assert metrics.worker_credential_failures_total.value(("worker_certificate", "w1", "127.0.0.1")) == 2


async def test_a_silent_address_ends_with_the_connect_timeout():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with dialling(replace(SETTINGS, connect_timeout_ms=200)) as (_, _, tunnels):
            direct = tunnels(silent.getsockname()[1])
            with pytest.raises(TunnelError, match=r"^quic connect timed out$"):
                await direct.reconnect()
            assert await direct.tunnel_step() is TunnelStep.UNAVAILABLE


async def test_a_worker_that_starts_late_is_connected_by_a_later_update():
    async with dialling(replace(SETTINGS, connect_timeout_ms=200)) as (_, _, tunnels):
        late = Worker()
        port = await late.listen()
        await late.close()
        direct = tunnels(port)
        assert await direct.tunnel_step() is TunnelStep.UNAVAILABLE
        await late.listen(port)
        try:
            assert await direct.tunnel_step() is TunnelStep.CONNECTED
        finally:
            await late.close()


async def test_a_reconnect_leaves_the_responses_running_on_the_old_connection_alone():
    async with dialling() as (worker, _, tunnels):
        direct = tunnels()
        await direct.tunnel_step()
        worker.hold.clear()
        caller = Caller()
        await direct.open(HEAD_WITH_QUERY, caller, end=True)
        await direct.reconnect()
        await eventually(lambda: len(worker.connections) == 2)
        worker.hold.set()
        assert await caller.done() == (200, b"ok", None)
        await eventually(lambda: worker.connections[0].closed)
        assert await ask(direct) == (200, b"ok", None)


async def test_a_worker_that_went_away_is_reconnected_on_demand():
    async with dialling() as (worker, port, tunnels):
        direct = tunnels()
        await direct.tunnel_step()
        await worker.close()
        await eventually(lambda: not direct.healthy())
        with pytest.raises(TunnelError, match="no connection for exact inference server registration 'w1'"):
            await ask(direct)
        await worker.listen(port)
        await direct.reconnect()
        assert await ask(direct) == (200, b"ok", None)
