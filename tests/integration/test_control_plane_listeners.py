"""gRPC listeners, `WatchStargates`, `ListModels`, the health service."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certs import make_self_signed
from router.control_plane.model_discovery import BlankModelError, list_models
from router.control_plane.worker_auth import StaticAuthenticator
from router.grpc.server import GrpcBindError, GrpcServer, GrpcTls
from router.registry import Registry
from support.control_plane import control_plane, report
from support.registered_worker import INACTIVE
from tunnel_protocol.control import stargate_pb2

pytestmark = pytest.mark.loop("grpc")


TOKENS = StaticAuthenticator({"token-a": "tenant-a", "token-b": "tenant-b"})
Models = stargate_pb2.ListModelsRequest


def watched(*names: str) -> stargate_pb2.WatchStargatesResponse:
    return stargate_pb2.WatchStargatesResponse(
        stargates=[stargate_pb2.StargateInfo(stargate_id=name, advertise_addr=f"{name}:1") for name in names]
    )


# WatchStargates


async def test_watcher_gets_the_current_value_and_every_publication_until_the_drain() -> None:
    async with control_plane() as client:
        early = client.control.WatchStargates(stargate_pb2.WatchStargatesRequest())
        await early.initial_metadata()
        client.router.watch.publish(watched("a"))
        assert await early.read() == watched("a")
        late = client.control.WatchStargates(stargate_pb2.WatchStargatesRequest())
        assert await late.read() == watched("a")
        client.router.watch.publish(watched("a"))
        assert await early.read() == watched("a")
        assert await late.read() == watched("a")
        client.router.service.stop()
        for call in (early, late):
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK


async def test_watcher_that_leaves_disturbs_no_other() -> None:
    async with control_plane() as client:
        calls = [client.control.WatchStargates(stargate_pb2.WatchStargatesRequest()) for _ in range(2)]
        for call in calls:
            await call.initial_metadata()
        calls[0].cancel()
        client.router.watch.publish(watched("a"))
        assert await calls[1].read() == watched("a")


# ListModels


async def listed(client: Any, *model_ids: str, routing_key: str | None = None) -> list[str]:
    request = Models(model_ids=model_ids)
    if routing_key is not None:
        request.routing_key = routing_key
    return list((await client.models.ListModels(request)).model_ids)


async def test_models_are_listed_as_they_come_and_go() -> None:
    async with control_plane() as client:
        assert await listed(client) == []
        worker, _ = await client.register("a", ("zeta",))
        await client.register("b", ("alpha",))
        assert await listed(client) == ["alpha", "zeta"]
        assert await listed(client, " zeta ", "zeta", "unknown") == ["zeta"]
        await worker.update(report("a", "zeta", status=INACTIVE))
        assert await listed(client) == ["alpha"]


async def test_models_are_listed_per_routing_key() -> None:
    async with control_plane(authenticator=TOKENS) as client:
        await client.register("a", ("x",), credential="token-a")
        await client.register("b", ("y",), credential="token-b")
        assert await listed(client) == []
        assert await listed(client, routing_key="  ") == []
        assert await listed(client, routing_key=" tenant-a ") == ["x"]
        assert await listed(client, "y ", routing_key="tenant-b") == ["y"]
        assert await listed(client, routing_key="unknown") == []
        assert client.router.registry.all_active_models() == ["x", "y"]


async def test_blank_filter_value_is_refused() -> None:
    async with control_plane() as client:
        call = client.models.ListModels(Models(model_ids=["m", " "]))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "model_ids must not contain empty values"

    with pytest.raises(BlankModelError):
        list_models(Registry(), None, [""])


async def test_requests_that_cannot_be_decoded_are_errors_of_their_calls() -> None:
    async with control_plane() as client:
        listing = client.models_channel.unary_unary("/stargate.StargateModelDiscovery/ListModels")
        checking = client.models_channel.unary_unary("/grpc.health.v1.Health/Check")
        for call in (listing(b"\xff"), checking(b"\xff")):
            assert await call.code() is grpc.StatusCode.INTERNAL
            assert await call.details() == "the request cannot be decoded"


async def test_each_service_is_known_only_on_its_own_listener() -> None:
    async with control_plane() as client:
        call = client.models_on_control.ListModels(Models())
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        watch = client.models_channel.unary_stream("/stargate.StargateControlPlane/WatchStargates")(b"")
        assert await watch.code() is grpc.StatusCode.UNIMPLEMENTED


# Listeners


@pytest.mark.parametrize("bound_twice_by", ["grpc", "plain socket"])
async def test_port_in_use_is_an_error_and_never_shared(bound_twice_by: str) -> None:
    first = GrpcServer()
    port = first.bind("127.0.0.1:0")
    assert port == first.port > 0
    if bound_twice_by == "grpc":
        second = GrpcServer()
        with pytest.raises(GrpcBindError) as failed:
            second.bind(f"127.0.0.1:{port}")
        assert failed.value.address == f"127.0.0.1:{port}"
        await second.stop(0)
    else:
        with pytest.raises(OSError, match="in use"):
            await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", port)
    await first.stop(0)


async def test_health_service_knows_its_services_and_ends_watches_at_the_drain() -> None:
    async with control_plane() as client:
        stub = health_pb2_grpc.HealthStub(client.control_channel)
        request = health_pb2.HealthCheckRequest
        for name in ("", "stargate.StargateControlPlane"):
            reply = await stub.Check(request(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        unknown = stub.Check(request(service="stargate.StargateModelDiscovery"))
        assert await unknown.code() is grpc.StatusCode.NOT_FOUND
        watches = [stub.Watch(request(service=name)) for name in ("", "nobody")]
        assert (await watches[0].read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await watches[1].read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        client.router.service.stop()
        stopped = asyncio.create_task(client.router.server.stop(5.0))
        assert (await watches[0].read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for watch in watches:
            while await watch.read() is not grpc.aio.EOF:
                pass
            assert await watch.code() is grpc.StatusCode.OK
        assert await stopped is True


async def test_drain_that_takes_too_long_is_told() -> None:
    async with control_plane() as client:
        call = client.control.WatchStargates(stargate_pb2.WatchStargatesRequest())
        await call.initial_metadata()
        assert await client.router.server.stop(0.05) is False


async def test_tls_identity_can_be_replaced_while_running() -> None:
    first, second = (make_self_signed(["localhost"], days=1) for _ in range(2))
    server = GrpcServer(tls=GrpcTls(cert_pem=first.cert_pem, key_pem=first.key_pem))
    port = server.bind("127.0.0.1:0")
    await server.start()

    async def healthy(trust: bytes) -> bool:
        credentials = grpc.ssl_channel_credentials(trust)
        async with grpc.aio.secure_channel(
            f"127.0.0.1:{port}", credentials, options=[("grpc.ssl_target_name_override", "localhost")]
        ) as channel:
            try:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.aio.AioRpcError:
                return False
            return True

    assert await healthy(first.cert_pem)
    server.replace_tls(GrpcTls(cert_pem=second.cert_pem, key_pem=second.key_pem))
    assert not await healthy(first.cert_pem)
    assert await healthy(second.cert_pem)
    await server.stop(0)
