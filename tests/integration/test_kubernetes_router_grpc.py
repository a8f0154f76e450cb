"""The gRPC listener of `stargate-k8s-router`, with clients and servers of the grpc library on both sides."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kubernetes_router import grpc_listener
from kubernetes_router.targets import Target
from support.kubernetes_router import DIAL, EOF, Context, Door, door, fake_router, message, within
from support.waiting import eventually
from tunnel_protocol.control import stargate_pb2 as pb

pytestmark = pytest.mark.loop("grpc")

ROUTER_0 = "router-0.routers.nvcf.svc:50071"


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call that is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(call.read())
    return caught.value.code(), caught.value.details() or ""


def register(at: Door, authority: str, **options: Any) -> Any:
    return at.stub(authority).RegisterInferenceServer(**options)


# --- Watch ------------------------------------------------------------------------------------------------------------


async def test_nothing_is_published_before_the_first_complete_list() -> None:
    async with door(heartbeat_s=0.01, remote_urls=["https://far:443"]) as at:
        call = at.stub().WatchStargates(pb.WatchStargatesRequest())
        await within(call.initial_metadata())
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait([reading], timeout=0.2)
        assert not reading.done()
        at.targets.publish([Target("router-1", "10.0.0.2", 1, 2), Target("router-0", "10.0.0.1", 1, 2)])
        found = await within(reading)
        assert list(found.stargates) == [
            pb.StargateInfo(
                stargate_id=f"router-{index}",
                advertise_addr=f"router-{index}.routers.nvcf.svc:50071",
                grpc_pylon_dial_addr=DIAL,
            )
            for index in (0, 1)
        ]
        assert list(found.watch_stargate_urls) == ["https://far:443"]
        call.cancel()


async def test_an_empty_list_is_published_too() -> None:
    async with door() as at:
        at.targets.publish([])
        call = at.stub().WatchStargates(pb.WatchStargatesRequest())
        assert await within(call.read()) == pb.WatchStargatesResponse()
        call.cancel()


async def test_changes_and_heartbeats_follow() -> None:
    async with door(heartbeat_s=0.05) as at:
        at.targets.publish([Target("router-0", "10.0.0.1", 1, 2)])
        call = at.stub("anything.at.all").WatchStargates(pb.WatchStargatesRequest())
        first = await within(call.read())
        assert await within(call.read()) == first
        assert await within(call.read()) == first
        at.targets.publish([])
        while (found := await within(call.read())) == first:
            pass
        assert list(found.stargates) == []
        call.cancel()
        await eventually(lambda: at.publisher.open == 0)


async def test_without_change_nothing_is_sent_before_the_heartbeat() -> None:
    async with door(heartbeat_s=60) as at:
        at.targets.publish([Target("router-0", "10.0.0.1", 1, 2)])
        call = at.stub().WatchStargates(pb.WatchStargatesRequest())
        first = await within(call.read())
        at.targets.publish([Target("router-0", "10.0.0.1", 1, 2)])
        at.targets.publish([Target("router-1", "10.0.0.1", 1, 2)])
        assert await within(call.read()) != first
        call.cancel()


# --- Registrations ----------------------------------------------------------------------------------------------------


async def test_a_registration_reaches_the_router_that_its_authority_names_with_metadata_both_ways() -> None:
    async with fake_router() as router, door() as at:
        at.targets.publish([router.target])
        metadata = [("authorization", "Bearer t"), ("x-some-bin", b"\0\xff"), ("x-twice", "1"), ("x-twice", "2")]
        call = register(at, ROUTER_0, metadata=metadata)
        assert ("x-router", "zero") in list(await within(call.initial_metadata()))
        for worker_id in ("one", "two"):
            await call.write(message(worker_id))
            assert (await within(call.read())).reverse_tunnel_target == worker_id
        await call.done_writing()
        assert await within(call.read()) is EOF
        assert await call.code() is grpc.StatusCode.OK
        assert ("x-last", "one") in list(await call.trailing_metadata())
        received = [(key, value) for key, value in router.calls[0].invocation_metadata() if key != "user-agent"]
        assert received == metadata
        assert at.outcome("accepted") == at.outcome("completed") == 1
        await eventually(lambda: at.metrics.registrations_open.series() == 1)


@pytest.mark.parametrize(
    ("authority", "code", "details"),
    [
        (
            "elsewhere.example.org:50071",
            grpc.StatusCode.INVALID_ARGUMENT,
            "registration authority elsewhere.example.org does not match advertised stargate hostname template",
        ),
        ("router-9.routers.nvcf.svc", grpc.StatusCode.UNAVAILABLE, "target stargate router-9 is not ready"),
        (
            "Router-0.Routers.nvcf.svc",
            grpc.StatusCode.INVALID_ARGUMENT,
            "registration authority Router-0.Routers.nvcf.svc does not match advertised stargate hostname template",
        ),
    ],
)
async def test_registrations_that_name_no_router_are_refused(
    authority: str, code: grpc.StatusCode, details: str
) -> None:
    async with door() as at:
        at.targets.publish([Target("router-0", "127.0.0.1", 9, 9)])
        assert await refusal(register(at, authority)) == (code, details)


async def test_before_the_first_list_no_router_is_ready() -> None:
    async with door() as at:
        expected = (grpc.StatusCode.UNAVAILABLE, "target stargate router-0 is not ready")
        assert await refusal(register(at, ROUTER_0)) == expected


async def test_the_port_of_the_authority_does_not_matter() -> None:
    async with fake_router() as router, door() as at:
        at.targets.publish([router.target])
        for authority in ("router-0.routers.nvcf.svc", "router-0.routers.nvcf.svc:1"):
            call = register(at, authority)
            await call.write(message("w"))
            assert (await within(call.read())).reverse_tunnel_target == "w"
            call.cancel()


async def test_a_status_of_the_router_reaches_the_worker_as_it_is() -> None:
    async def refuse(_requests: Any, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "caf\u00e9: 100 % refused", (("x-why", "because"),))

    async with fake_router(refuse) as router, door() as at:
        at.targets.publish([router.target])
        call = register(at, ROUTER_0)
        assert await refusal(call) == (grpc.StatusCode.UNAUTHENTICATED, "caf\u00e9: 100 % refused")
        assert ("x-why", "because") in list(await call.trailing_metadata())


async def test_a_refusal_behind_messages_comes_after_them() -> None:
    async def refuse(_requests: Any, context: Context) -> None:
        await context.write(pb.InferenceServerAck(reverse_tunnel_target="first"))
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "then this")

    async with fake_router(refuse) as router, door() as at:
        at.targets.publish([router.target])
        call = register(at, ROUTER_0)
        assert (await within(call.read())).reverse_tunnel_target == "first"
        assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "then this")


async def test_a_router_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with door() as at:
        at.targets.publish([Target("router-0", "127.0.0.1", port, 9)])
        code, details = await refusal(register(at, ROUTER_0))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details.startswith("failed to connect to stargate target: ")
        assert at.outcome("connect_failed") == 1


async def test_a_router_that_does_not_answer_is_given_up_after_the_limit() -> None:
    # A listener whose queue of connections is full drops the first packets of further ones.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(address)
            waiting.append(sock)
        async with door(connect_timeout_s=0.3) as at:
            at.targets.publish([Target("router-0", address[0], address[1], 9)])
            expected = (grpc.StatusCode.UNAVAILABLE, "timed out connecting to stargate target")
            assert await refusal(register(at, ROUTER_0)) == expected
        for sock in waiting:
            sock.close()


async def test_a_worker_that_leaves_ends_the_call_at_the_router() -> None:
    ended = asyncio.Event()

    async def wait(_requests: Any, context: Context) -> None:
        context.add_done_callback(lambda _context: ended.set())
        await context.send_initial_metadata(())
        await asyncio.Event().wait()

    async with fake_router(wait) as router, door() as at:
        at.targets.publish([router.target])
        call = register(at, ROUTER_0)
        await within(call.initial_metadata())
        call.cancel()
        await within(ended.wait())
        assert at.outcome("worker_left") == 1


async def test_a_router_that_is_lost_makes_the_call_unavailable() -> None:
    lost = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(24)
        writer.transport.abort()
        lost.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, door() as at:
        at.targets.publish([Target("router-0", *server.sockets[0].getsockname(), 9)])
        expected = (grpc.StatusCode.UNAVAILABLE, "connection to stargate target lost")
        assert await refusal(register(at, ROUTER_0)) == expected
        assert at.outcome("target_lost") == 1


async def test_a_registration_keeps_its_router_when_the_pod_leaves_the_list() -> None:
    async with fake_router() as router, door() as at:
        at.targets.publish([router.target])
        call = register(at, ROUTER_0)
        await call.write(message("w"))
        await within(call.read())
        at.targets.publish([])
        await call.write(message("x"))
        assert (await within(call.read())).reverse_tunnel_target == "x"
        call.cancel()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
async def test_a_pod_may_have_an_ipv6_address() -> None:
    async with fake_router(host="[::1]") as router, door() as at:
        at.targets.publish([Target("router-0", "::1", router.port, 9)])
        call = register(at, ROUTER_0)
        await call.write(message("w"))
        assert (await within(call.read())).reverse_tunnel_target == "w"
        call.cancel()


async def test_large_messages_pass_in_both_directions() -> None:
    async with fake_router() as router, door() as at:
        at.targets.publish([router.target])
        call = register(at, ROUTER_0)
        large = "x" * 1_000_000
        for _ in range(3):
            await within(call.write(message(large)))
            assert (await within(call.read())).reverse_tunnel_target == large
        call.cancel()


async def test_many_registrations_share_a_connection_and_one_slow_router_does_not_hold_up_the_others() -> None:
    async def never_read(_requests: Any, context: Context) -> None:
        await context.send_initial_metadata(())
        await asyncio.Event().wait()

    async with fake_router() as router, fake_router(never_read) as slow, door() as at:
        slow_target = Target("router-0", "127.0.0.1", slow.port, 9)
        at.targets.publish([slow_target])
        stub = at.stub(ROUTER_0)
        calls = [stub.RegisterInferenceServer() for _ in range(100)]
        for call in calls:
            await within(call.initial_metadata())
        writing = [asyncio.ensure_future(call.write(message("x" * 200_000))) for call in calls]
        at.targets.publish([router.target])
        call = stub.RegisterInferenceServer()
        await within(call.write(message("quick")))
        assert (await within(call.read())).reverse_tunnel_target == "quick"
        for one in [call, *calls]:
            one.cancel()
        await asyncio.wait(writing)
        await eventually(lambda: at.outcome("worker_left") == 101)


async def test_what_is_neither_watch_nor_registration_is_not_served() -> None:
    async with door() as at:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{at.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await within(channel.unary_unary("/stargate.StargateModelDiscovery/ListModels")(b""))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- Shutdown ---------------------------------------------------------------------------------------------------------


async def test_a_drain_ends_open_and_new_calls_as_unavailable() -> None:
    async with fake_router() as router, door() as at:
        at.targets.publish([router.target])
        watch = at.stub().WatchStargates(pb.WatchStargatesRequest())
        await within(watch.read())
        stub = at.stub(ROUTER_0)
        registration = stub.RegisterInferenceServer()
        await registration.write(message("w"))
        await within(registration.read())
        early = stub.RegisterInferenceServer()
        await within(early.initial_metadata())
        draining = asyncio.create_task(at.listener.drain())
        expected = (grpc.StatusCode.UNAVAILABLE, "router is shutting down")
        for call in (watch, registration, early):
            assert await refusal(call) == expected
        await within(draining)
        assert (await refusal(stub.RegisterInferenceServer()))[0] is grpc.StatusCode.UNAVAILABLE
        assert at.metrics.registrations_open.value() == 0


async def test_workers_that_do_not_read_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flood(_requests: Any, context: Context) -> None:
        await context.write(pb.InferenceServerAck(reverse_tunnel_target="x" * 1_000_000))
        await asyncio.Event().wait()

    monkeypatch.setattr(grpc_listener, "_READ_S", 0.1)
    async with fake_router(flood) as router, door() as at:
        at.targets.publish([router.target])
        call = register(at, ROUTER_0)
        await within(call.initial_metadata())
        await within(at.listener.drain())
        assert at.metrics.grpc_connections.value() == 0
        call.cancel()
