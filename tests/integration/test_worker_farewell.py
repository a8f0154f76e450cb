"""How our worker leaves a router, or gives one up, seen by a control plane that answers when the test says so."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from stargate_client.registration import RETIRED, Registration
from stargate_client.router_address import GrpcAddress, RouterAddress
from stargate_client.router_trust import grpc_trust
from stargate_client.settings import parse
from support.waiting import eventually
from tunnel_protocol.control import stargate_pb2 as pb
from tunnel_protocol.control import stargate_pb2_grpc
from tunnel_protocol.quic.settings import QuicSettings

pytestmark = pytest.mark.loop("grpc")


ACTIVE, INACTIVE = pb.INFERENCE_SERVER_STATUS_ACTIVE, pb.INFERENCE_SERVER_STATUS_INACTIVE


class HandshakeContext(stargate_pb2_grpc.StargateControlPlaneServicer):
    """Takes reports; acknowledges each when `take` is called."""

    def __init__(self):
        self.reports = asyncio.Queue()
        self.acks = asyncio.Semaphore(0)
        self.calls = 0

    async def RegisterInferenceServer(self, requests, context):  # noqa: N802 - the name in the proto
        self.calls += 1
        async for report in requests:
            self.reports.put_nowait(report)
            await self.acks.acquire()
            yield pb.InferenceServerAck()

    async def take(self):
        async with asyncio.timeout(5):
            report = await self.reports.get()
        self.acks.release()
        return report


def statuses(connected):
    status = ACTIVE if connected else INACTIVE
    return {"m": pb.InferenceServerModelRegistration(status=status, stats=pb.ModelStats())}


def make_registration(address, interval_ms=60_000, **options):
    flags = ["--stargate-address", address, "--upstream-http-base-url", "http://127.0.0.1:1", "--model-name", "m"]
    flags += [
        "--inference-server-id",
        "w",
        "--backend-connectivity",
        "reverse",
        "--quic-insecure",
        "--min-update-interval-ms",
        str(interval_ms),
    ]
    router, trust = RouterAddress(address, GrpcAddress(address)), grpc_trust(None, "")
    return Registration(router, parse(flags, {}), trust, None, QuicSettings(), statuses, **options)


@asynccontextmanager
async def a_registration(**options):
    """(control plane, registration, its running task)."""
    context = HandshakeContext()
    server = grpc.aio.server()
    stargate_pb2_grpc.add_StargateControlPlaneServicer_to_server(context, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    registration = make_registration(address, **options)
    task = asyncio.create_task(registration.run())
    try:
        yield context, registration
    finally:
        task.cancel()
        await asyncio.wait({task})
        await server.stop(None)


async def test_a_worker_that_leaves_says_so_and_waits_until_the_router_has_taken_note():
    async with a_registration() as (context, registration):
        await context.take()
        leaving = asyncio.create_task(registration.leave())
        farewell = await asyncio.wait_for(context.reports.get(), 5)
        assert farewell.models["m"].status == INACTIVE
        assert not leaving.done()
        context.acks.release()
        await asyncio.wait_for(leaving, 5)


async def test_a_router_that_takes_no_note_is_not_waited_for_long():
    async with a_registration() as (context, registration):
        await context.reports.get()  # never acknowledged
        async with asyncio.timeout(2):
            await registration.leave()


async def test_without_a_router_there_is_nobody_to_wait_for():
    async with asyncio.timeout(0.1):
        await make_registration("127.0.0.1:1").leave()


async def test_a_router_that_stops_answering_reports_is_registered_with_anew():
    async with a_registration(ack_timeout_s=0.3, interval_ms=50) as (context, _):
        await context.take()
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            await context.reports.get()  # never acknowledged, on a connection that works
            await context.reports.get()
        assert context.calls == 2
        assert asyncio.get_running_loop().time() - began >= 0.3


async def test_a_registration_whose_first_report_is_not_answered_is_begun_anew():
    async with a_registration(ack_timeout_s=0.3) as (context, _):
        async with asyncio.timeout(5):
            await context.reports.get()
            await context.reports.get()
        assert context.calls == 2


async def test_answers_that_take_long_but_come_keep_the_registration():
    """As when a router waits for the tunnel before each of its answers."""
    async with a_registration(ack_timeout_s=1.0) as (context, registration):
        for _ in range(4):
            registration.poke()
            await asyncio.wait_for(context.reports.get(), 5)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(context.reports.get(), 0.4)
            context.acks.release()
        assert context.calls == 1


async def test_a_registration_with_nothing_to_report_waits_for_no_answer():
    async with a_registration(ack_timeout_s=0.2) as (context, _):
        await context.take()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(context.reports.get(), 1.5)
        assert context.calls == 1


class RetiredTunnel:
    """A tunnel whose requests go on until the test ends them."""

    connected = True

    def __init__(self):
        self.retired = False
        self.over = asyncio.Event()
        self.serving = asyncio.create_task(self.over.wait())

    def retire(self):
        self.retired = True


async def test_of_tunnels_whose_registrations_have_ended_the_oldest_makes_way_beyond_the_limit():
    registration = make_registration("127.0.0.1:9")
    tunnels = [RetiredTunnel() for _ in range((RETIRED.pieces or 0) + 2)]
    await asyncio.sleep(0)
    for tunnel in tunnels:
        registration._retire(tunnel, tunnel.serving)
        assert tunnel.retired
        await asyncio.wait({tunnel.serving}, timeout=0)
    await eventually(lambda: tunnels[1].serving.done())
    assert [tunnel.serving.cancelled() for tunnel in tunnels] == [True, True] + [False] * (len(tunnels) - 2)
    for tunnel in tunnels:
        tunnel.over.set()
    await eventually(lambda: all(tunnel.serving.done() for tunnel in tunnels))
