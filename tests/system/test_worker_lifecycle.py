"""The life of workers as callers, operators and other services see it: a real router process, workers under control."""

import asyncio
import signal
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from aiohttp import BasicAuth, web

from llm_request_router.testing import System
from support.registered_worker import (
    ACTIVE,
    INACTIVE,
    RegisteredWorker,
    RegistrationEnded,
    ask,
    gauge,
    get_json,
    list_models,
    routable,
    unroutable,
)
from support.scripted_worker import ScriptedWorker
from support.waiting import becomes
from tunnel_protocol.control import llm_gateway_pb2, llm_gateway_pb2_grpc, stargate_pb2_grpc
from tunnel_protocol.control import stargate_pb2 as pb

pytestmark = pytest.mark.loop("grpc")


@asynccontextmanager
async def workers(system, *made):
    """Ends every worker, whatever happens."""
    try:
        yield
    finally:
        for worker in made:
            await worker.stop()


async def test_status_controls_routing_on_the_same_registration(llm_router):
    worker = RegisteredWorker(llm_router, "w1")
    async with workers(llm_router, worker):
        worker.advertise("m")
        await worker.update()
        assert (await ask(llm_router, "m"))[0] == 503  # known, but no tunnel yet
        await worker.dial()
        await worker.update()
        await routable(llm_router, "m", "w1")
        assert await gauge(llm_router, "m") == 1
        worker.advertise("m", status=INACTIVE)
        await worker.update()
        assert (await ask(llm_router, "m"))[0] == 503
        assert await gauge(llm_router, "m") == 0
        worker.advertise("m", status=ACTIVE)
        await worker.update()
        assert (await ask(llm_router, "m"))[0] == 200
    status, _, _, code = await becomes(lambda: _when(llm_router, "m", 404), "the last advertiser is gone")
    assert (status, code) == (404, "no_eligible_candidates")


async def _when(system, model, status):
    answer = await ask(system, model)
    return answer if answer[0] == status else None


async def test_a_worker_without_answers_to_probes_is_not_routable_until_it_answers(llm_router):
    worker = RegisteredWorker(llm_router, "w1").advertise("m")
    async with workers(llm_router, worker):
        await worker.update()
        await worker.dial()
        worker.tunnel.answers_probes = False
        await worker.update()
        assert (await ask(llm_router, "m"))[0] == 503
        worker.tunnel.answers_probes = True
        for probe in worker.tunnel.probes:
            if probe.stream is not None and not probe.reset and not probe.stopped:
                probe.answer()
        await becomes(lambda: _updated(worker, llm_router, "m"), "routable once probes are answered")


async def test_a_worker_whose_health_fails_is_out_until_it_succeeds_on_the_same_registration(llm_router):
    worker = await RegisteredWorker(llm_router, "w1").start("m")
    async with workers(llm_router, worker):
        assert (await ask(llm_router, "m"))[0] == 200
        worker.tunnel.probe_status = 500

        async def out():
            return not await _updated(worker, llm_router, "m")

        await becomes(out, "unroutable once health fails")
        assert (await ask(llm_router, "m"))[0] == 503
        worker.tunnel.probe_status = 200
        await becomes(lambda: _updated(worker, llm_router, "m"), "routable once health is back")
    assert llm_router.router.log().count("reverse tunnel connection established") == 1


async def _updated(worker, system, model):
    await worker.update()
    return (await ask(system, model))[0] == 200


async def test_the_id_of_a_worker_that_is_dialled_opens_no_tunnel_and_its_route_goes_on(llm_router):
    dialled = await ScriptedWorker.listen()
    worker = RegisteredWorker(llm_router, "w1", url=f"quic://127.0.0.1:{dialled.port}")
    async with workers(llm_router, worker):
        worker.advertise("m")
        await worker.update(reverse_tunnel=False)
        intruder = await ScriptedWorker.dial(int(llm_router.ports.reverse_tunnel.rpartition(":")[2]))
        assert await intruder.handshake("w1") == (False, "unauthorized inference_server_id")
        answer = asyncio.create_task(ask(llm_router, "m"))
        (await dialled.next_request()).answer(200, b"the dialled one")
        assert (await answer)[:2] == (200, "the dialled one")
        await intruder.close()
    await dialled.close()


async def test_a_changed_cluster_ends_the_registration_and_its_routes(llm_router):
    worker = await RegisteredWorker(llm_router, "w1", cluster_id="c1").start("m")
    async with workers(llm_router, worker):
        assert (await ask(llm_router, "m"))[0] == 200
        with pytest.raises(RegistrationEnded) as ended:
            await worker.update(cluster_id="other")
        assert ended.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "cluster_id changed" in ended.value.details
        await unroutable(llm_router, "m")


async def test_models_come_and_go_one_by_one_and_siblings_stay(llm_router):
    one = await RegisteredWorker(llm_router, "w1", cluster_id="shared").start("alpha", "s")
    two = await RegisteredWorker(llm_router, "w2", cluster_id="shared").start("s", "beta")
    async with workers(llm_router, one, two):
        assert await gauge(llm_router, "s") == 2
        assert {(await ask(llm_router, "s"))[2] for _ in range(4)} == {"w1", "w2"}
        assert (await ask(llm_router, "alpha"))[2] == "w1"
        assert (await ask(llm_router, "beta"))[2] == "w2"
        one.advertise("s", status=INACTIVE)
        await one.update()
        assert {(await ask(llm_router, "s"))[2] for _ in range(4)} == {"w2"}
        assert (await ask(llm_router, "alpha"))[2] == "w1"
        del one.models["s"]
        one.models.pop("alpha")
        await one.update()
        assert (await ask(llm_router, "alpha"))[0] == 404
        assert (await ask(llm_router, "s"))[2] == "w2"
        await two.stop()
        await unroutable(llm_router, "s")
        await unroutable(llm_router, "beta")


async def test_inactive_workers_leave_lists_and_gauges_step_by_step(llm_router):
    one = await RegisteredWorker(llm_router, "w1").start("m")
    two = await RegisteredWorker(llm_router, "w2").start("m")
    async with workers(llm_router, one, two):
        one.advertise("m", status=INACTIVE)
        await one.update()
        assert await gauge(llm_router, "m") == 1
        assert await list_models(llm_router, "m") == ["m"]
        assert {(await ask(llm_router, "m"))[2] for _ in range(3)} == {"w2"}
        two.advertise("m", status=INACTIVE)
        await two.update()
        assert await gauge(llm_router, "m") == 0
        assert await list_models(llm_router, "m") == []
        assert (await ask(llm_router, "m"))[0] == 503


async def test_work_goes_to_the_worker_with_the_shorter_queue(llm_router):
    busy = await RegisteredWorker(llm_router, "busy").start("m", queued_input_size=1000)
    idle = await RegisteredWorker(llm_router, "idle").start("m")
    async with workers(llm_router, busy, idle):
        for _ in range(20):
            assert (await ask(llm_router, "m"))[2] == "idle"
            await idle.update()  # a fresh report, so that reservations do not add up


async def test_lists_agree_over_grpc_and_http(llm_router):
    one = await RegisteredWorker(llm_router, "w1").start("b-model")
    two = await RegisteredWorker(llm_router, "w2").start("a-model")
    async with workers(llm_router, one, two):
        assert await list_models(llm_router) == ["a-model", "b-model"]
        assert await list_models(llm_router, " b-model ") == ["b-model"]
        assert await get_json(llm_router, "/v1/models?model_ids=+b-model%20&model_ids=none") == (
            200,
            {"model_ids": ["b-model"]},
        )
        assert await get_json(llm_router, "/v1/models?model_ids=%20") == (400, None)
        status, state = await get_json(llm_router, "/debug/state")
        assert status == 200
        assert state["active_model_ids"] == ["a-model", "b-model"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await list_models(llm_router, " ")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        async with grpc.aio.insecure_channel(llm_router.ports.grpc) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as wrong_port:
                await stargate_pb2_grpc.StargateModelDiscoveryStub(channel).ListModels(pb.ListModelsRequest())
        assert wrong_port.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await two.stop()
        await becomes(lambda: _listed(llm_router, ["b-model"]), "the model of a gone worker is not listed")


async def _listed(system, models):
    return await list_models(system) == models


class Gateway(llm_gateway_pb2_grpc.LlmGatewayServicer):
    """Knows tokens `tenant-a` and `tenant-b`, each standing for a routing key of its own."""

    async def AuthLlmWorker(self, request, context):  # noqa: N802 - the name in the proto
        if request.workerToken not in ("tenant-a", "tenant-b"):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who is that")
        return llm_gateway_pb2.AuthLlmWorkerResponse(routingKey=f" key-of-{request.workerToken} ")


async def test_tenants_see_only_their_own_workers():
    server = grpc.aio.server()
    llm_gateway_pb2_grpc.add_LlmGatewayServicer_to_server(Gateway(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    system = await asyncio.to_thread(System.start, f"--worker-auth-endpoint=http://127.0.0.1:{port}")
    a = await RegisteredWorker(system, "w-a", token="tenant-a").start("m")  # noqa: S106
    b = await RegisteredWorker(system, "w-b", token="tenant-b").start("m")  # noqa: S106
    stranger = RegisteredWorker(system, "w-c", token="nobody").advertise("m")  # noqa: S106
    try:
        async with workers(system, a, b, stranger):
            for _ in range(3):
                assert (await ask(system, "m", key="key-of-tenant-a"))[2] == "w-a"
                assert (await ask(system, "m", key="key-of-tenant-b"))[2] == "w-b"
            for key in (None, "wrong"):
                assert (await ask(system, "m", key=key))[::3] == (404, "no_eligible_candidates")
            assert await list_models(system) == []
            assert await list_models(system, key=" key-of-tenant-a ") == ["m"]
            assert await list_models(system, key="wrong") == []
            assert (await get_json(system, "/v1/models"))[1] == {"model_ids": []}
            assert (await get_json(system, "/debug/state"))[1]["active_model_ids"] == ["m"]
            with pytest.raises(RegistrationEnded) as refused:
                await stranger.update()
            assert (refused.value.code, refused.value.details) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "authentication failed",
            )
            a.advertise("m", status=INACTIVE)
            await a.update()
            assert (await ask(system, "m", key="key-of-tenant-a"))[0] == 503
            assert (await ask(system, "m", key="key-of-tenant-b"))[0] == 200
            thief = RegisteredWorker(system, "w-b", token="tenant-a").advertise("m")  # noqa: S106
            async with workers(system, thief):
                with pytest.raises(RegistrationEnded) as taken:
                    await thief.update()
                assert taken.value.code is grpc.StatusCode.ALREADY_EXISTS
                assert "'w-b' is already registered" in taken.value.details
            assert (await ask(system, "m", key="key-of-tenant-b"))[2] == "w-b"
    finally:
        await asyncio.to_thread(system.close)
        await server.stop(None)


@asynccontextmanager
async def a_gateway_and_a_provider(secrets):
    """Router options; what the gateway was shown. The provider's tokens are the client secrets it was asked with."""
    shown = []

    class Witness(Gateway):
        async def AuthLlmWorker(self, request, context):  # noqa: N802 - the name in the proto
            shown.append(dict(context.invocation_metadata())["authorization"])
            return await super().AuthLlmWorker(request, context)

    async def mint(request):
        return web.json_response({"access_token": BasicAuth.decode(request.headers["authorization"]).password})

    server = grpc.aio.server()
    llm_gateway_pb2_grpc.add_LlmGatewayServicer_to_server(Witness(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    provider = web.AppRunner(web.Application())
    provider.app.router.add_post("/token", mint)
    await provider.setup()
    await web.TCPSite(provider, "127.0.0.1", 0).start()
    options = {
        "worker-auth-endpoint": f"http://127.0.0.1:{port}",
        "worker-auth-cache-ms": 0,
        "oauth2-provider-host": f"http://127.0.0.1:{provider.addresses[0][1]}",
        "secrets-path": secrets,
    }
    try:
        yield [f"--{name}={value}" for name, value in options.items()], shown
    finally:
        await provider.cleanup()
        await server.stop(None)


async def test_a_hangup_replaces_the_routers_own_token_by_one_of_the_secret_as_it_is_now(tmp_path):
    secrets = tmp_path / "secrets.json"

    secrets.write_text('{"id": "router", "secret": "old"}')
    async with a_gateway_and_a_provider(secrets) as (options, shown):
        system = await asyncio.to_thread(System.start, *options)
        try:

            async def shown_to_the_gateway():
                worker = RegisteredWorker(system, f"w{len(shown)}", token="tenant-a").advertise("m")  # noqa: S106
                async with workers(system, worker):
                    await worker.update()
                return shown[-1]

            assert await shown_to_the_gateway() == "Bearer old"
            secrets.write_text('{"id": "router", "secret": "new"}')
            assert await shown_to_the_gateway() == "Bearer old"
            system.router.send(signal.SIGHUP)

            async def renewed():
                return await shown_to_the_gateway() == "Bearer new"

            await becomes(renewed, "the token of the new secret is shown")
        finally:
            await asyncio.to_thread(system.close)


async def watched(system):
    """Two snapshots of a watch, one after the other."""
    async with grpc.aio.insecure_channel(system.ports.grpc) as channel:
        stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)
        call = stub.WatchStargates(pb.WatchStargatesRequest())
        async with asyncio.timeout(10):
            return await call.read(), await call.read()


async def test_a_watch_names_this_router_and_trimmed_unique_remote_addresses_with_their_scheme():
    system = await asyncio.to_thread(
        System.start,
        *("--remote-stargate-url= http://b:1/ ,https://a:1,http://b:1", "--allow-insecure-remote-watch-http"),
        *("--grpc-pylon-dial-addr=https://front.example:443", "--watch-heartbeat-ms=100"),
    )
    try:
        first, again = await watched(system)
        assert first == again
        assert [info.advertise_addr for info in first.stargates] == [system.ports.grpc]
        assert [info.grpc_pylon_dial_addr for info in first.stargates] == ["https://front.example:443"]
        assert list(first.watch_stargate_urls) == ["https://a:1", "http://b:1"]
    finally:
        await asyncio.to_thread(system.close)


async def test_with_the_older_release_line_addresses_without_scheme_are_published_with_one_warning():
    system = await asyncio.to_thread(
        System.start,
        *("--compat=0.11", "--remote-stargate-url= b:1 ,,http://a:1", "--grpc-pylon-dial-addr=front.example:50071"),
        "--watch-heartbeat-ms=100",
    )
    try:
        first, _ = await watched(system)
        assert [info.grpc_pylon_dial_addr for info in first.stargates] == ["front.example:50071"]
        assert list(first.watch_stargate_urls) == ["http://a:1", "b:1"]
        warnings = [line for line in system.router.log().splitlines() if "have no http:// or https://" in line]
        assert len(warnings) == 1
        assert 'addresses="b:1, front.example:50071"' in warnings[0]
    finally:
        await asyncio.to_thread(system.close)


async def test_a_worker_follows_watch_addresses_and_serves_through_every_router_they_name():
    with (
        System.start() as far,
        System.start(f"--remote-stargate-url=http://{far.ports.grpc}", "--allow-insecure-remote-watch-http") as near,
    ):
        near.add_worker("m")
        await routable(far, "m", "worker-0")
        await routable(near, "m", "worker-0")
        near.workers[0].process.stop()
        await unroutable(far, "m")
        await unroutable(near, "m")
