"""A control plane on loopback with tunnels a test moves by hand, and raw registration streams to talk to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from router.control_plane.model_discovery import MODEL_DISCOVERY, ModelDiscovery
from router.control_plane.service import CONTROL_PLANE, ControlPlane
from router.control_plane.watch import WatchCell
from router.control_plane.worker_auth import OpenAuthenticator
from router.grpc.server import GrpcServer
from router.ports.authentication import Authenticator
from router.ports.tunnels import TunnelStep
from router.registry import Identity, Registry, TargetKey
from router.telemetry.metrics import Metrics
from support.package_settings import control_plane_settings
from support.registered_worker import ACTIVE, EOF
from support.waiting import DEADLINE_S
from tunnel_protocol.control import stargate_pb2, stargate_pb2_grpc


class FakeTunnels:
    """What `router.tunnels` gives the control plane, moved by the test instead of by packets."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.direct = not identity.reverse
        self.open_connection = not identity.reverse
        self.step: TunnelStep | None = None
        self.rtt: int | None = 5_000_000
        self.steps = 0
        self.settled = False
        self.reports = 0
        self.started = False
        self.retired = asyncio.Event()
        self.step_gate = asyncio.Event()
        self.step_gate.set()
        self.waiting_in_step = asyncio.Event()
        self.health_loop_hangs = False
        self._on_lost: Callable[[], None] = lambda: None
        self._on_recovered: Callable[[], None] = lambda: None

    def healthy(self) -> bool:
        return self.open_connection and not self.retired.is_set()

    def free_streams(self) -> int:
        return 100

    def silent_since(self) -> float | None:
        return None

    def try_open(self, head: Any, sink: Any, *, end: bool) -> Any:
        raise NotImplementedError

    async def open(self, head: Any, sink: Any, *, end: bool) -> Any:
        raise NotImplementedError

    async def reconnect(self) -> None:
        raise NotImplementedError

    def start(self, on_lost: Callable[[], None], on_recovered: Callable[[], None]) -> None:
        self.started = True
        self._on_lost = on_lost
        self._on_recovered = on_recovered

    def reported(self) -> None:
        self.reports += 1

    def settled_rtt_ns(self) -> int | None:
        return self.rtt if self.settled else None

    async def tunnel_step(self) -> TunnelStep:
        self.steps += 1
        self.waiting_in_step.set()
        await self.step_gate.wait()
        if self.step is not None:
            return self.step
        if self.identity.reverse and (self.steps == 1 or not self.open_connection):
            return TunnelStep.REVERSE_DISCONNECTED
        return TunnelStep.CONNECTED if self.open_connection else TunnelStep.UNAVAILABLE

    async def rtt_ns(self) -> int | None:
        return self.rtt if self.healthy() else None

    def retire(self) -> None:
        self.retired.set()

    async def wait_retired(self) -> None:
        await self.retired.wait()
        if self.health_loop_hangs:
            await asyncio.Event().wait()

    def lose(self, *, closed: bool = True) -> None:
        self.open_connection = not closed
        self.rtt = None
        self._on_lost()

    def recover(self, rtt: int = 7_000_000) -> None:
        self.open_connection = True
        self.rtt = rtt
        self._on_recovered()


class ControlPlaneInMemory:
    """Everything of one control plane, reachable for the test."""

    def __init__(self, settings: dict[str, Any], authenticator: Authenticator | None) -> None:
        self.metrics = Metrics()
        self.registry = Registry(
            lambda key, count: self.metrics.active_inference_servers.set(count, (key.routing_key or "", key.model))
        )
        self.watch = WatchCell()
        self.tunnels: dict[str, FakeTunnels] = {}
        defaults: dict[str, Any] = {
            "reverse_tunnel_target": "router-0.stargate.external:50072",
            "duplicate_delay_ms": 1,
        }
        self.settings = control_plane_settings(**{**defaults, **settings})
        self.service = ControlPlane(
            self.registry,
            authenticator or OpenAuthenticator(),
            self.make_tunnels,
            self.watch,
            self.settings,
            self.metrics,
        )
        self.server = GrpcServer()
        self.discovery_server = GrpcServer()
        self.prepare_tunnels: Callable[[FakeTunnels], None] = lambda _: None

    def make_tunnels(self, identity: Identity) -> FakeTunnels:
        tunnels = FakeTunnels(identity)
        self.prepare_tunnels(tunnels)
        self.tunnels[identity.inference_server_id] = tunnels
        return tunnels

    def routable(self, model: str, routing_key: str | None = None) -> list[str]:
        target = self.registry.target(TargetKey(routing_key, model))
        if target is None:
            return []
        return [each.inference_server_id for shown in target.candidates() for each in shown.cluster.backends()]

    def shown_metrics(self) -> bytes:
        return self.metrics.render(additional=True)

    def gauge(self, model: str, routing_key: str = "") -> str | None:
        wanted = f'stargate_active_inference_servers{{model="{model}",routing_key="{routing_key}"}} '
        other = f'stargate_active_inference_servers{{routing_key="{routing_key}",model="{model}"}} '
        for line in self.metrics.render().decode().splitlines():
            if line.startswith((wanted, other)):
                return line.rpartition(" ")[2]
        return None


class RegistrationStream:
    """One raw registration stream."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, message: stargate_pb2.InferenceServerRegistration) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.call.write(message)

    async def ack(self) -> stargate_pb2.InferenceServerAck:
        async with asyncio.timeout(DEADLINE_S):
            ack: stargate_pb2.InferenceServerAck = await self.call.read()
        assert ack is not EOF, "the stream ended instead of acknowledging"
        return ack

    async def update(self, message: stargate_pb2.InferenceServerRegistration) -> stargate_pb2.InferenceServerAck:
        await self.send(message)
        return await self.ack()

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the router ended the stream."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while await self.call.read() is not EOF:
                    pass
            except grpc.aio.AioRpcError:
                pass
            return await self.call.code(), await self.call.details()


class ControlPlaneClient:
    """A caller of both gRPC services."""

    def __init__(self, router: ControlPlaneInMemory, control: grpc.aio.Channel, models: grpc.aio.Channel) -> None:
        self.router = router
        self.control = stargate_pb2_grpc.StargateControlPlaneStub(control)  # type: ignore[no-untyped-call]  # generated
        self.models = stargate_pb2_grpc.StargateModelDiscoveryStub(models)  # type: ignore[no-untyped-call]  # generated
        self.models_on_control = stargate_pb2_grpc.StargateModelDiscoveryStub(control)  # type: ignore[no-untyped-call]  # generated
        self.control_channel = control
        self.models_channel = models

    async def open(self, *, credential: str | None = None, heartbeat_ms: int | str | None = None) -> RegistrationStream:
        """A registration stream whose response headers have arrived, as workers insist on."""
        metadata = []
        if credential is not None:
            metadata.append(("authorization", f"Bearer {credential}"))
        if heartbeat_ms is not None:
            metadata.append(("x-stargate-registration-heartbeat-ms", str(heartbeat_ms)))
        call = self.control.RegisterInferenceServer(metadata=metadata)
        async with asyncio.timeout(DEADLINE_S):
            await call.initial_metadata()
        return RegistrationStream(call)

    async def register(
        self, server_id: str = "w", models: tuple[str, ...] = ("m",), **identity: Any
    ) -> tuple[RegistrationStream, FakeTunnels]:
        """A direct worker whose models are routable."""
        credential = identity.pop("credential", None)
        heartbeat_ms = identity.pop("heartbeat_ms", None)
        worker = await self.open(credential=credential, heartbeat_ms=heartbeat_ms)
        await worker.update(report(server_id, *models, **identity))
        return worker, self.router.tunnels[server_id]


def report(
    server_id: str = "w",
    *models: str,
    status: stargate_pb2.InferenceServerStatus.ValueType = ACTIVE,
    url: str | None = None,
    reverse: bool = False,
    cluster_id: str = "",
    **stats: Any,
) -> stargate_pb2.InferenceServerRegistration:
    """One registration message; `stats` go to every model."""
    return stargate_pb2.InferenceServerRegistration(
        inference_server_id=server_id,
        inference_server_url=url or ("http://engine:8000" if reverse else "quic://127.0.0.1:8443"),
        reverse_tunnel=reverse,
        cluster_id=cluster_id,
        models={
            model: stargate_pb2.InferenceServerModelRegistration(status=status, stats=stargate_pb2.ModelStats(**stats))
            for model in models
        },
    )


@asynccontextmanager
async def control_plane(
    *, authenticator: Authenticator | None = None, **settings: Any
) -> AsyncIterator[ControlPlaneClient]:
    """A running control plane and a client for it."""
    router = ControlPlaneInMemory(settings, authenticator)
    port = router.server.bind("127.0.0.1:0")
    models_port = router.discovery_server.bind("127.0.0.1:0")
    router.server.add_service(CONTROL_PLANE, router.service.methods())
    router.discovery_server.add_service(MODEL_DISCOVERY, ModelDiscovery(router.registry).methods())
    await router.server.start()
    await router.discovery_server.start()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as control,
        grpc.aio.insecure_channel(f"127.0.0.1:{models_port}") as models,
    ):
        try:
            yield ControlPlaneClient(router, control, models)
        finally:
            router.service.stop()
            await router.server.stop(1.0)
            await router.discovery_server.stop(1.0)
