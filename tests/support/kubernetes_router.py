"""A gRPC listener of `stargate-k8s-router` in this process, routers behind it, and workers in front of it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from kubernetes_router.grpc_listener import GrpcListener
from kubernetes_router.metrics import Metrics
from kubernetes_router.targets import HostnameTemplate, Target, TargetList
from kubernetes_router.watch import WatchPublisher
from support.waiting import DEADLINE_S
from tunnel_protocol.control import stargate_pb2 as pb
from tunnel_protocol.control import stargate_pb2_grpc

TEMPLATE = "{pod_name}.routers.nvcf.svc"
DIAL = "http://door.nvcf.svc:50071"
EOF = grpc.aio.EOF  # type: ignore[attr-defined]
Context = grpc.aio.ServicerContext[Any, Any]
Register = Callable[[Any, Context], Awaitable[None]]


class Door:
    """The listener and its parts."""

    def __init__(self, *, heartbeat_s: float, remote_urls: Sequence[str], connect_timeout_s: float) -> None:
        self.metrics = Metrics()
        self.targets = TargetList(HostnameTemplate(TEMPLATE, "nvcf"))
        self.publisher = WatchPublisher(
            self.targets, grpc_port=50071, dial_addr=DIAL, remote_urls=remote_urls, heartbeat_s=heartbeat_s
        )
        self.listener = GrpcListener(self.targets, self.publisher, self.metrics, connect_timeout_s=connect_timeout_s)
        self.port = 0
        self._channels: list[grpc.aio.Channel] = []

    def stub(self, authority: str | None = None, credentials: grpc.ChannelCredentials | None = None) -> Any:
        """A worker's stub, on a connection of its own; `authority` is what it calls the router."""
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if authority is not None:
            options.append(("grpc.default_authority", authority))
        address = f"127.0.0.1:{self.port}"
        if credentials is None:
            channel = grpc.aio.insecure_channel(address, options=options)
        else:
            channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._channels.append(channel)
        return stargate_pb2_grpc.StargateControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated

    def outcome(self, name: str) -> float:
        return self.metrics.registrations_total.value((name,))

    async def close_channels(self) -> None:
        for channel in self._channels:
            await channel.close(None)


@asynccontextmanager
async def door(
    *,
    heartbeat_s: float = 60,
    remote_urls: Sequence[str] = (),
    connect_timeout_s: float = 5,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Door]:
    found = Door(heartbeat_s=heartbeat_s, remote_urls=remote_urls, connect_timeout_s=connect_timeout_s)
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    found.port = sock.getsockname()[1]
    await found.listener.start(sock, tls)
    heartbeats = asyncio.create_task(found.publisher.run())
    try:
        yield found
    finally:
        await found.close_channels()
        found.listener.abort()
        heartbeats.cancel()
        await asyncio.wait([heartbeats])


class FakeRouter(stargate_pb2_grpc.StargateControlPlaneServicer):
    """A control plane that does with a registration what the test says."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self.calls: list[Context] = []
        self.port = 0

    async def RegisterInferenceServer(self, requests: Any, context: Context) -> None:  # noqa: N802 (name of the RPC)
        self.calls.append(context)
        await self._register(requests, context)

    @property
    def target(self) -> Target:
        return Target("router-0", "127.0.0.1", self.port, 50072)


async def acknowledge(_requests: Any, context: Context) -> None:
    """What a router does: an acknowledgement for every message."""
    await context.send_initial_metadata((("x-router", "zero"),))
    while (message := await context.read()) is not EOF:
        await context.write(pb.InferenceServerAck(reverse_tunnel_target=message.inference_server_id))
    context.set_trailing_metadata((("x-last", "one"),))


@asynccontextmanager
async def fake_router(register: Register = acknowledge, host: str = "127.0.0.1") -> AsyncIterator[FakeRouter]:
    router = FakeRouter(register)
    server = grpc.aio.server()
    stargate_pb2_grpc.add_StargateControlPlaneServicer_to_server(router, server)  # type: ignore[no-untyped-call]
    router.port = server.add_insecure_port(f"{host}:0")
    await server.start()
    try:
        yield router
    finally:
        await server.stop(0)


def message(worker_id: str) -> pb.InferenceServerRegistration:
    return pb.InferenceServerRegistration(inference_server_id=worker_id)


async def within(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await work
