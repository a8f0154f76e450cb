"""The control plane between two events that usually do not meet, and what only its peers could show."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from structlog.testing import capture_logs

from router.control_plane.gateway_auth import GatewayAuthenticator
from router.control_plane.registration_stream import RegistrationStream
from router.control_plane.registration_table import RegistrationTable
from router.control_plane.replicas import LookupFailedError
from router.control_plane.resolver import Resolver
from router.registry.registry import Registry
from router.telemetry.metrics import Metrics
from support.control_plane import control_plane, report
from support.package_settings import control_plane_settings, gateway_auth_settings
from support.waiting import eventually

DEADLINE_S = 10.0


def a_stream(*messages):
    loop = asyncio.get_running_loop()
    table = RegistrationTable(Registry(), None, control_plane_settings(), Metrics(), clock=loop.time)

    def receive(on_message, on_closed):
        for message in messages:
            on_message(message)

    call = SimpleNamespace(receive=receive)
    return RegistrationStream(table, call, routing_key=None, heartbeat_ms=None, peer="ipv4:192.0.2.1:1")


async def test_a_stream_that_is_stopped_before_it_runs_reads_nothing() -> None:
    stream = a_stream(b"unread")
    stream.stop("shutdown")
    stream.stop("superseded")
    async with asyncio.timeout(DEADLINE_S):
        await stream.run()
    assert stream.end_reason == "shutdown"


async def test_a_stream_that_cannot_be_read_ends_with_a_line_that_says_why() -> None:
    stream = a_stream(b"not a registration")
    with capture_logs() as logs:
        async with asyncio.timeout(DEADLINE_S):
            await stream.run()
    assert stream.end_reason == "read_failed"
    lines = [line for line in logs if line["log_level"] == "warning"]
    assert [line["event"] for line in lines] == [
        "inference servers stream read failed or closed",
        "register inference servers stream exited before admission",
    ]
    assert len({line["error"] for line in lines}) == 1
    assert lines[0]["error"]


@pytest.mark.loop("grpc")
async def test_the_id_of_a_lost_worker_that_has_been_silent_for_long_passes_at_once() -> None:
    async with control_plane(min_silence_ms=20) as client:
        old, tunnels = await client.register("w", heartbeat_ms=1)
        tunnels.lose()
        streams = client.router.service._streams
        holder = streams.holders["w"]
        await eventually(lambda: streams.clock() > holder.liveness.dead_at)
        with capture_logs() as logs:
            await client.register("w", heartbeat_ms=1)
        assert "taking over the id of a worker that shows no life" in [line["event"] for line in logs]
        assert (await old.status())[0] is grpc.StatusCode.OK
        assert holder.end_reason == "superseded"


@pytest.mark.loop("grpc")
async def test_of_two_claimants_who_wait_for_a_worker_that_leaves_the_second_is_refused() -> None:
    async with control_plane(min_silence_ms=60_000) as client:
        old, tunnels = await client.register("w")
        tunnels.lose()
        holder = client.router.service._streams.holders["w"]
        claimants = [await client.open() for _ in range(2)]
        for number, claimant in enumerate(claimants, 1):
            await claimant.send(report("w", "m"))
            await eventually(lambda number=number: len(holder._sign_of_life._waiters) == number)
        old.call.cancel()
        await claimants[0].ack()
        assert (await claimants[1].status())[0] is grpc.StatusCode.ALREADY_EXISTS


async def test_a_lookup_that_the_system_does_not_let_out_is_a_failed_lookup() -> None:
    async def resolve(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    resolver = Resolver(ttl_cap_s=5.0, nameserver=("192.0.2.1", 53))
    resolver._resolver.resolve = resolve  # type: ignore[method-assign]
    with pytest.raises(LookupFailedError, match="A lookup: Network is unreachable"):
        await resolver.addresses("routers")


@pytest.mark.loop("grpc")
async def test_without_a_credential_there_is_none_to_renew() -> None:
    authenticator = GatewayAuthenticator(gateway_auth_settings(), None, Metrics())
    with capture_logs() as logs:
        await authenticator.renew_credential()
    assert logs == []
    await authenticator.close()
