"""A worker under full control of a test: its own registration stream, its own tunnel, its own answers."""

import asyncio
import http.client
import json
from typing import Any

import grpc
import grpc.aio

from llm_request_router.testing import System
from support.scripted_worker import ScriptedWorker
from support.waiting import DEADLINE_S, becomes
from tunnel_protocol.control import stargate_pb2 as pb
from tunnel_protocol.control import stargate_pb2_grpc
from tunnel_protocol.quic.settings import QuicSettings

EOF = grpc.aio.EOF  # type: ignore[attr-defined]
ACTIVE, INACTIVE = pb.INFERENCE_SERVER_STATUS_ACTIVE, pb.INFERENCE_SERVER_STATUS_INACTIVE


class RegistrationEnded(Exception):  # noqa: N818
    """The router ended the registration stream."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


class RegisteredWorker:
    """Registers, dials in, and answers every request with its own id."""

    def __init__(
        self,
        system: System,
        worker_id: str,
        *,
        cluster_id: str = "",
        token: str | None = None,
        url: str = "http://engine.example:80",
    ) -> None:
        self.system = system
        self.worker_id = worker_id
        self.cluster_id = cluster_id
        self.token = token
        self.url = url
        self.models: dict[str, pb.InferenceServerModelRegistration] = {}
        self.tunnel: ScriptedWorker | None = None
        self._serving: asyncio.Task[None] | None = None
        self._channel = grpc.aio.insecure_channel(system.ports.grpc)
        metadata = [("x-stargate-registration-heartbeat-ms", "1000")]
        if token is not None:
            metadata.append(("authorization", f"Bearer {token}"))
        stub = stargate_pb2_grpc.StargateControlPlaneStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self.call = stub.RegisterInferenceServer(metadata=metadata)

    def advertise(
        self, *models: str, status: pb.InferenceServerStatus.ValueType = ACTIVE, **stats: Any
    ) -> "RegisteredWorker":
        """Set what is told of these models with the next update."""
        stats = {"last_mean_input_tps": 100.0, **stats}
        for model in models:
            self.models[model] = pb.InferenceServerModelRegistration(status=status, stats=pb.ModelStats(**stats))
        return self

    async def update(self, **changes: Any) -> pb.InferenceServerAck:
        """Send a full report and wait for its acknowledgement."""
        message = pb.InferenceServerRegistration(
            inference_server_id=self.worker_id,
            inference_server_url=self.url,
            models=self.models,
            reverse_tunnel=self.system.reverse,
            cluster_id=self.cluster_id,
        )
        for name, value in changes.items():
            setattr(message, name, value)
        async with asyncio.timeout(DEADLINE_S):
            try:
                await self.call.write(message)
                ack: pb.InferenceServerAck = await self.call.read()
                if ack is not EOF:
                    return ack
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            raise RegistrationEnded(await self.call.code(), await self.call.details())

    async def dial(self, **options: Any) -> None:
        """The tunnel; requests are answered from now on."""
        assert self.system.ports.reverse_tunnel is not None
        port = int(self.system.ports.reverse_tunnel.rpartition(":")[2])
        self.tunnel = await ScriptedWorker.dial(port, **options)
        assert await self.tunnel.handshake(self.worker_id, self.token) == (True, "")
        self._serving = asyncio.create_task(self._serve())

    async def start(self, *models: str, streams: int | None = None, **stats: Any) -> "RegisteredWorker":
        """All of it: registered, dialled in, routable. `streams`: how many it allows at a time."""
        self.advertise(*models, **stats)
        await self.update()
        await self.dial(settings=None if streams is None else QuicSettings(max_streams_bidi=streams))
        await self.update()
        return self

    async def stop_serving(self) -> None:
        """Leave the requests that arrive to the test."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})
            self._serving = None

    async def stop(self) -> None:
        """End the registration and the tunnel."""
        await self.stop_serving()
        if self.tunnel is not None:
            await self.tunnel.close()
            self.tunnel = None
        self.call.cancel()
        await self._channel.close(None)

    async def _serve(self) -> None:
        tunnel = self.tunnel
        assert tunnel is not None
        while True:
            await tunnel._arrived.wait()
            tunnel._arrived.clear()
            while tunnel.requests:
                request = tunnel.requests.pop(0)
                request.send_head()
                request.send_body(self.worker_id.encode())
                request.end()


async def ask(
    system: System, model: str, *, key: str | None = None, path: str = "/v1/chat/completions"
) -> tuple[int, str, str | None, str | None]:
    """(status, answer, worker id, error code) of one request."""

    def request() -> tuple[int, str, str | None, str | None]:
        connection = http.client.HTTPConnection(system.ports.http, timeout=10)
        try:
            connection.request("POST", path, b'{"stream":true,"max_tokens":1}', system.headers(model, routing_key=key))
            response = connection.getresponse()
            headers = response.headers
            return (
                response.status,
                response.read().decode(),
                headers["x-inference-server-id"],
                headers["x-stargate-error-code"],
            )
        finally:
            connection.close()

    return await asyncio.to_thread(request)


async def routable(system: System, model: str, worker_id: str | None = None, key: str | None = None) -> None:
    async def served() -> bool:
        status, _, by, _ = await ask(system, model, key=key)
        return status == 200 and (worker_id is None or by == worker_id)

    await becomes(served, f"{model} is served by {worker_id or 'somebody'}")


async def unroutable(system: System, model: str, key: str | None = None) -> None:
    async def refused() -> bool:
        return (await ask(system, model, key=key))[0] in (404, 502, 503)

    await becomes(refused, f"{model} is not served")


async def list_models(system: System, *models: str, key: str | None = None) -> list[str]:
    async with grpc.aio.insecure_channel(system.ports.model_discovery) as channel:
        stub = stargate_pb2_grpc.StargateModelDiscoveryStub(channel)  # type: ignore[no-untyped-call]  # generated
        request = pb.ListModelsRequest(model_ids=models)
        if key is not None:
            request.routing_key = key
        return list((await stub.ListModels(request)).model_ids)


async def get_json(system: System, path: str) -> tuple[int, Any]:
    """(status, JSON or None) of a GET on the HTTP port."""
    reply = await asyncio.to_thread(system.request, "GET", path)
    return reply.status, json.loads(reply.body) if reply.body else None


async def gauge(system: System, model: str, key: str | None = "") -> float | None:
    page = await asyncio.to_thread(system.metrics)
    return page.get(f'stargate_active_inference_servers{{model="{model}",routing_key="{key}"}}')
